"""lm-evaluation-harness on a model or run of ours: its tasks and metrics, our losses and our generator.

The adapter stays where it is, nothing is merged. What is computed is what the harness's own HFLM computes:
the same tokens, cut from the left where a text is too long, and the same sums; tests compare the two.
Documentation of the three kinds of request: lm_eval.api.model.LM.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from tunesmith.data.batch import collate
from tunesmith.data.encode import Example
from tunesmith.data.pack import plan_eval
from tunesmith.evaluate.perplexity import FORWARD_TOKENS
from tunesmith.infer.config import SAMPLING_ONLY, Sampling
from tunesmith.infer.generate import continuations
from tunesmith.infer.local import LocalModel
from tunesmith.model.attention import can_share, segment_attention
from tunesmith.model.families import can_pack
from tunesmith.records import Origin
from tunesmith.settings import build
from tunesmith.train.forward import label_logits, mixed_precision
from tunesmith.train.losses import row_losses

try:
    from lm_eval.api.model import TemplateLM
    from lm_eval.models.utils import normalize_gen_kwargs
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ImportError:  # `benchmark` has told what is missing before anything gets here
    TemplateLM = object

WINDOW = 2048  # tokens of a window where the model names no limit, as in HFLM
NEW_TOKENS = 256  # of an answer where the task names no limit, as in HFLM

Watch = Callable[[str, int, int], None]


class HarnessModel(TemplateLM):  # type: ignore[misc]
    """A LocalModel as the harness asks for one (lm_eval.api.model.LM)."""

    def __init__(self, model: LocalModel, watch: Watch = lambda *_: None) -> None:
        super().__init__()
        self.model, self.watch = model, watch
        self.tokenizer = model.renderer.tokenizer

    @property
    def eot_token_id(self) -> int:
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else int(bos)

    @property
    def max_length(self) -> int:
        return self.model.context or WINDOW

    @property
    def tokenizer_name(self) -> str:
        return f"{self.model.name}-{self.model.weights}".replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        return self.model.renderer.text if chat_template else None

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The prompt as it is written in training."""
        text = self.tokenizer.apply_chat_template(
            chat_history,
            chat_template=self.model.renderer.text,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )
        return str(text)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Tokens of a text; those that begin a text are added unless it has them already."""
        if add_special_tokens is None:
            add_special_tokens = not string.startswith(self.tokenizer.decode([self.prefix_token_id]))
        return list(self.tokenizer.encode(string, add_special_tokens=add_special_tokens))

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """(log-likelihood of a continuation, whether greedy answers are it) of each request."""
        del disable_tqdm  # progress is told by `watch`
        return list(super().loglikelihood(requests, disable_tqdm=True))

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[float]:
        """The log-likelihood of each whole text, in windows as long as the model reads."""
        del disable_tqdm
        windows, counts = [], []
        for request in requests:
            tokens = self.tok_encode(request.args[0])
            found = [
                (None, *make_disjoint_window(window))
                for window in get_rolling_token_windows(tokens, self.prefix_token_id, self.max_length, 1)
            ]
            windows += found
            counts.append(len(found))
        scores = iter(self._loglikelihood_tokens(windows))
        return [sum(score for score, _ in itertools.islice(scores, count)) for count in counts]

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        examples = []
        for row, (_texts, context, continuation) in enumerate(requests):
            ids = (context + continuation)[-(self.max_length + 1) :]
            labels = min(len(continuation), len(ids) - 1)
            mask = [False] * (len(ids) - labels) + [True] * labels
            examples.append(Example(ids, mask, Origin("request", row + 1, row), row))
        return self._scores(examples)

    def _scores(self, examples: Sequence[Example]) -> list[tuple[float, bool]]:
        """(log-likelihood of its label tokens, whether each is the likeliest) of each example."""
        model, device = self.model.model, self.model.device
        packing, _ = can_pack(model.config)
        sharing = packing and can_share(model)[0]
        plan = plan_eval(
            [len(example.input_ids) for example in examples],
            microbatch_tokens=FORWARD_TOKENS,
            packing=packing,
            shared=[example.input_ids for example in examples] if sharing else None,
        )
        found: dict[int, tuple[float, bool]] = {}
        model.eval()
        for indexes in plan:
            batch = [examples[at] for at in indexes]
            with torch.no_grad(), mixed_precision(device, model), segment_attention(model, sharing):
                laid = collate(batch, packing=packing, pad_id=0, sharing=sharing).to(device.torch_device)
                logits = label_logits(model, laid)
            labels = torch.tensor([sum(one.label_mask[1:]) for one in batch], device=logits.device)
            rows = torch.repeat_interleave(torch.arange(len(batch), device=logits.device), labels)
            sums, _ = row_losses(logits, laid.targets, rows, len(batch))
            missed = torch.bincount(rows[logits.argmax(-1) != laid.targets], minlength=len(batch))
            for at, nll, other in zip(indexes, sums.tolist(), missed.tolist(), strict=True):
                found[at] = (-nll, other == 0)
            self.watch("likelihoods", len(found), len(examples))
        return [found[at] for at in range(len(examples))]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[str]:
        """The answer to each request, up to the first of its stop texts."""
        del disable_tqdm
        groups: dict[str, list[int]] = {}
        for at, request in enumerate(requests):
            groups.setdefault(repr(request.args[1]), []).append(at)
        answers: dict[int, str] = {}
        for group in groups.values():
            sampling = self._sampling(requests[group[0]].args[1])
            room = self.max_length - (sampling.max_new_tokens or NEW_TOKENS)
            prompts = [self.tok_encode(requests[at].args[0])[-room:] for at in group]
            model = self.model
            texts = continuations(model.model, model.renderer, prompts, sampling, batch_size=model.batch_size)
            for at, answer in zip(group, texts, strict=True):
                answers[at] = answer.text
                self.watch("answers", len(answers), len(requests))
        return [answers[at] for at in range(len(requests))]

    def _sampling(self, asked: Mapping[str, Any]) -> Sampling:
        """A task's generation settings as ours. Raises SettingsError for those that aren't known."""
        given = dict(normalize_gen_kwargs(dict(asked), NEW_TOKENS))
        until = [text for text in given.pop("until", None) or [] if text]
        settings = {"max_new_tokens": given.pop("max_gen_toks")}
        if not given.get("do_sample"):
            given = {name: value for name, value in given.items() if name not in SAMPLING_ONLY}
        return build(Sampling, {**given, **settings, **({"stop": tuple(until)} if until else {})})
