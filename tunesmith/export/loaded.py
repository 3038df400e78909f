"""A model of transformers that answers what the gate asks (protocol.py), in its own arithmetic."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tunesmith.data.template import Renderer
from tunesmith.device import Device
from tunesmith.export.arithmetic import in_fp32
from tunesmith.model.load import context_length, end_ids, load_model, load_tokenizer, stored_dtype
from tunesmith.model.source import Source, resolve


class TransformersModel:
    """A loaded model and its tokenizer as the gate asks them.

    `stored` is the number format of its files; `ends` what ends an answer where its files can't say so.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        stored: torch.dtype | None = None,
        ends: Collection[int] | None = None,
    ) -> None:
        self._model: Any = model
        self._tokenizer = tokenizer
        self._stored = stored
        self._own_ends = ends is None
        self._ends = sorted(end_ids(model) if ends is None else ends)

    def token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, nothing added."""
        ids = self._tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        return cast(list[list[int]], ids)

    @torch.no_grad()
    def logits(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """[T, V] in fp32."""
        ids = torch.tensor([list(token_ids)], device=self._model.device)
        found = self._model(input_ids=ids, use_cache=False).logits[0]
        return cast("NDArray[np.float32]", found.float().cpu().numpy())

    @torch.no_grad()
    def greedy(self, token_ids: Sequence[int], count: int) -> list[int]:
        """The most likely next tokens, without the one that ends the answer."""
        ids = torch.tensor([list(token_ids)], device=self._model.device)
        cache, answer = None, list[int]()
        for _ in range(count):
            found = self._model(input_ids=ids, past_key_values=cache, use_cache=True)
            cache, best = found.past_key_values, int(found.logits[0, -1].argmax())
            if best in self._ends:
                break
            answer.append(best)
            ids = torch.tensor([[best]], device=self._model.device)
        return answer

    def template(self) -> str | None:
        """The tokenizer's chat template."""
        return Renderer(self._tokenizer).text

    def metadata(self) -> dict[str, Any]:
        """Of model, generation config and tokenizer, as they were read."""
        return {
            **of_model(self._model),
            **of_tokenizer(self._tokenizer),
            **({"ends": self._ends} if self._own_ends else {}),
            **({"dtype": str(self._stored).removeprefix("torch.")} if self._stored else {}),
        }

    def close(self) -> None:
        """Let go of the model."""
        self._model = None


def open_folder(folder: Path, device: Device) -> TransformersModel:
    """A model folder, read anew from the disk, computing in fp32."""
    source = resolve(str(folder))
    model = load_model(source, device, dtype=(stored := stored_dtype(source)))
    return TransformersModel(in_fp32(model), load_tokenizer(source), stored=stored)


def of_model(model: Any) -> dict[str, Any]:
    """The metadata that a model knows, loaded or with an adapter on it."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    head = base.get_output_embeddings()
    return {
        "vocabulary": int(head.weight.shape[0])
        if head is not None
        else int(base.config.get_text_config().vocab_size),
        "context": context_length(base),
        "tied": bool(base.config.get_text_config().tie_word_embeddings),
    }


def of_tokenizer(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The metadata that a tokenizer knows."""
    bos = tokenizer.bos_token_id
    return {
        "bos": bos,
        "eos": tokenizer.eos_token_id,
        "pad": tokenizer.pad_token_id,
        "adds_bos": bos is not None and tokenizer("a")["input_ids"][:1] == [bos],
    }


def local_source(folder: Path) -> Source:
    """A folder as a source, for its tokenizer."""
    return Source(str(folder), "folder", folder.resolve())
