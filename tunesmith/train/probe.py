"""What fits into memory: tokens in one forward pass, and whether activations are recomputed.

Neither changes a result beyond rounding, but bit-identical repeats need the same choice again. On a CPU it is
therefore by a table, smaller only where memory asks for it; on a GPU it is found by trying. Either way it is
written into the run's job.yaml, which repeats the run.

    activations    measured: bytes that a small forward pass keeps for its backward pass, per token
    the rest       gradients and the optimizer's states of what is trained, one chunk of logits
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from tunesmith.data.encode import Example
from tunesmith.data.pack import plan_eval
from tunesmith.device import available_memory
from tunesmith.errors import ModelError
from tunesmith.model.attention import segment_attention
from tunesmith.model.quantize import quantised_layers
from tunesmith.train.config import Job
from tunesmith.train.forward import mixed_precision
from tunesmith.train.training import Training, loss_of, microbatch_tokens

LEAST_TOKENS = 256
USABLE = 0.9  # of the free memory: allocators lose some
MARGIN = 1.2  # on activations, for gradients on their way through a layer
GAIN = 1.05  # a larger pass must be so much faster per token
_SAMPLE_TOKENS = 512
_CHUNK = 256 * 3  # rows of fp32 logits that the head holds at once
_STATE_BYTES = {"adamw": 8, "adamw_8bit": 2.1, "sgd": 4, "muon": 4, "adafactor": 0.1}
_GPU_SIZES = tuple(1024 << power for power in range(8))


@dataclass(frozen=True)
class Need:
    """Bytes that training takes beside the loaded model: `token` for each token of a pass, and the rest."""

    token: float
    token_recomputed: float
    rest: float

    def bytes(self, tokens: int, *, recomputed: bool) -> float:
        """All of it, for passes of so many tokens."""
        return MARGIN * tokens * (self.token_recomputed if recomputed else self.token) + self.rest


def settle(training: Training, job: Job, note: Callable[[str], None]) -> Job:
    """Choose what is `auto` of microbatch_tokens and checkpoint_activations, and make the training so.

    Returns the job with both written out. Raises ModelError where activations can't be recomputed.
    """
    wanted = job.train.checkpoint_activations
    free = int(available_memory(training.device.kind) * USABLE)
    tokens = budget = microbatch_tokens(training)
    recompute: bool | int = False if wanted == "auto" else wanted
    if not _surely_fits(training, free):
        need, largest = measure(training), _largest(training, budget)
        on_cpu = training.device.kind == "cpu"
        if wanted == "auto" and not training.model.supports_gradient_checkpointing:
            wanted = False
            if need.bytes(largest, recomputed=False) > free:
                note("Activations can't be recomputed in this model; memory may not suffice.")
        shorten = on_cpu and job.train.microbatch_tokens == "auto"
        start = min(budget, largest)
        options = list(tried(start, wanted, shorten=shorten, half_first=on_cpu))
        fitting = (o for o in options if need.bytes(o[0], recomputed=bool(o[1])) <= free)
        size, recompute = next(fitting, options[-1])
        if shorten and (size, recompute) != options[0]:
            tokens = max(LEAST_TOKENS, size)  # that of validation too, which wasn't measured
        if wanted == "auto" and recompute:
            note("Layers are recomputed in the backward pass, to fit into memory; results stay the same.")
        if tokens < budget:
            note(f"Forward passes take {tokens:,} tokens, to fit into memory; results stay the same.")
    if recompute:
        recompute_layers(training.model, recompute)
    if job.train.microbatch_tokens == "auto" and training.device.kind == "cuda":  # untested here
        tokens = grow(lambda size: attempt(training, size), _GPU_SIZES)
    settings = job.train.model_copy(update={"microbatch_tokens": tokens, "checkpoint_activations": recompute})
    changed = tokens != microbatch_tokens(training)
    training.settings = settings
    if changed:
        training.plan()
    return job.model_copy(update={"train": settings})


def tried(
    tokens: int, recompute: bool | int | Literal["auto"], *, shorten: bool, half_first: bool
) -> Iterator[tuple[int, bool | int]]:
    """Tokens of a pass and whether layers are recomputed, in the order in which training takes what fits.

    `shorten`: passes may be shorter, not below 256 tokens. `half_first`: half as long, without recomputing,
    comes before recomputing: on a CPU it costs a few per cent, the other another forward pass.
    """
    sizes = [tokens]
    while shorten and sizes[-1] > LEAST_TOKENS:
        sizes.append(max(LEAST_TOKENS, sizes[-1] // 2))
    if recompute == "auto":
        yield from ((size, False) for size in sizes[: 1 + half_first])
        recompute = True
    yield from ((size, recompute) for size in sizes)


def grow(seconds: Callable[[int], float], sizes: Iterable[int]) -> int:
    """The last of rising sizes that still made a token cheaper by 5 %, before memory ran out.

    `seconds` runs a pass of so many tokens. Raises torch.OutOfMemoryError where not even the first fits.
    """
    best, cost = 0, float("inf")
    for size in sizes:
        try:
            now = seconds(size) / size
        except torch.OutOfMemoryError:
            if not best:
                raise
            break
        if now * GAIN > cost:
            break
        best, cost = size, now
    return best


def attempt(training: Training, tokens: int) -> float:
    """Seconds of a forward and backward pass over about so many tokens; nothing is left behind."""
    lengths = [len(example.input_ids) for example in training.train]
    packs = plan_eval(lengths, microbatch_tokens=tokens, packing=training.packing)
    fullest = max(packs, key=lambda pack: sum(lengths[i] for i in pack))
    examples = [training.train[i] for i in fullest]
    taken = 0.0
    for _ in range(2):  # the first one warms up
        begun = time.monotonic()
        training.trial_pass(examples)
        if training.device.kind == "cuda":
            torch.cuda.synchronize()
        taken = time.monotonic() - begun
    # As if it had been full: a set of few rows has no pass of that size, and gains nothing by it.
    return taken * tokens / max(1, min(tokens, sum(lengths[i] for i in fullest)))


def measure(training: Training) -> Need:
    """What training takes, by a forward pass over few tokens."""
    examples = _sample(training)
    kept: dict[int, int] = {}
    held = {p.untyped_storage().data_ptr() for p in training.model.parameters()}
    held |= {
        t.untyped_storage().data_ptr() for m in quantised_layers(training.model).values() for t in m.pieces
    }

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in held:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    was_training = training.model.training
    with (
        torch.random.fork_rng(),
        torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor),
        segment_attention(training.model, training.segments),
        mixed_precision(training.device, training.model),
    ):
        training.model.train()
        loss, batch = loss_of(training, examples)
    training.model.train(was_training)
    del loss
    config: Any = training.model.config
    config = config.get_text_config()
    layers = max(1, int(config.num_hidden_layers))
    token = sum(kept.values()) / batch.input_ids.numel()
    # Recomputed: each layer's input, and one layer's activations at a time.
    recomputed = min(token, config.hidden_size * training.device.dtype.itemsize * layers + token / layers)
    return Need(token, recomputed, _rest(training))


def recompute_layers(model: Any, every: bool | int) -> None:
    """Recompute all layers, or every N-th one. Raises ModelError for a model that can't."""
    if not model.supports_gradient_checkpointing:
        raise ModelError(
            f"Activations of a {type(model).__name__} can't be recomputed.",
            fix="Set train.checkpoint_activations=false, and a smaller train.microbatch_tokens.",
        )
    model.activation_checkpointing_enable(
        activation_checkpointing_kwargs={"use_reentrant": False}, every_n_layers=int(every)
    )


def _rest(training: Training) -> float:
    trained = sum(p.numel() for p in training.model.parameters() if p.requires_grad)
    config: Any = training.model.config
    logits = _CHUNK * config.get_text_config().vocab_size * 4
    return float(trained * (4 + _STATE_BYTES[training.settings.optimizer]) + logits)


def _surely_fits(training: Training, free: int) -> bool:
    """Whether a rough upper bound is below half of what is free: then nothing needs to be measured."""
    config: Any = training.model.config
    config = config.get_text_config()
    width = config.hidden_size
    inner = getattr(config, "intermediate_size", None) or 4 * width
    numbers = config.num_hidden_layers * (32 * width + 10 * inner)
    tokens = _largest(training, microbatch_tokens(training))
    scores = 0 if training.segments else config.num_attention_heads * tokens * 8
    needed = _rest(training) + 4 * tokens * (numbers + config.num_hidden_layers * scores)
    return bool(needed < free / 2)


def _largest(training: Training, budget: int) -> int:
    """Tokens that the largest forward pass computes, padding included."""
    lengths = [len(example.input_ids) for example in training.train]
    packs = [pack for step in training.plans.first for pack in step.microbatches]
    if not training.packing:
        return max((len(pack) * max(lengths[i] for i in pack) for pack in packs), default=budget)
    longest = max(lengths, default=budget)
    return max((min(sum(lengths[i] for i in pack), max(budget, longest)) for pack in packs), default=budget)


def _sample(training: Training) -> Sequence[Example]:
    """Few rows of the first step: the longest first, up to 512 tokens."""
    rows = sorted(training.plans.first[0].microbatches[0], key=lambda i: -len(training.train[i].input_ids))
    chosen: list[Example] = []
    tokens = 0
    for row in rows:
        length = len(training.train[row].input_ids)
        if chosen and tokens + length > _SAMPLE_TOKENS:
            break
        chosen.append(training.train[row])
        tokens += length
    return chosen
