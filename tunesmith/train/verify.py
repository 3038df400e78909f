"""The gradients of a job's own first rows, by each fast path, against the naive computation in fp32.

Naive: transformers' forward with torch's own attention, one row at a time, nothing shared; PEFT's own LoRA
forward; all logits; torch's cross-entropy; eager. Each fast path is switched on alone, then all together,
as training runs.

    relative difference = |g - naive| / |naive|, over all numbers together, and for the worst single tensor

A tensor whose gradient is rounding noise (a bias of attention keys: truly zero) has no relative
difference; a tensor's norm counts as at least FLOOR of the whole gradient's. LoRA's B starts at zero, and
A's gradient with it: both are filled with small random numbers for the check, or a wrong gradient of A
could not be seen. Dropout and NEFTune are off.

What the job really computes in (bf16, a quantised base) is compared too, and is called approximate
whatever comes out.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tunesmith.data.encode import Example
from tunesmith.device import available_memory
from tunesmith.errors import ModelError
from tunesmith.model import adapters
from tunesmith.model.describe import describe
from tunesmith.model.load import require_free
from tunesmith.train import compiling, dryrun, estimate, paths
from tunesmith.train.config import VERIFIED_TOKENS, Job
from tunesmith.train.listener import Silent
from tunesmith.train.paths import FastPath, Found, Gradients
from tunesmith.train.prepare import prepare
from tunesmith.train.training import Training

# A single tensor sums less and rounds more than the whole gradient.
TENSOR_FACTOR = 10.0
# These optimizers round what they keep of the gradients.
APPROXIMATE = ("adamw_8bit", "adafactor")


@dataclass(frozen=True)
class Line:
    """One comparison. `state`: exact, wrong, approximate, or not used (with `note` saying why)."""

    name: str
    state: str
    overall: float | None = None
    worst: float | None = None
    tensor: str = ""
    loss: float | None = None
    tolerance: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Verdict:
    """All comparisons over so many rows and tokens. `exact`: no fast path was wrong."""

    rows: int
    tokens: int
    lines: list[Line]

    @property
    def exact(self) -> bool:
        return all(line.state != "wrong" for line in self.lines)

    def to_json(self) -> dict[str, Any]:
        """Everything as JSON takes it."""
        return {
            "exact": self.exact,
            "rows": self.rows,
            "tokens": self.tokens,
            "comparisons": [asdict(line) for line in self.lines],
        }


def verify(job: Job, tokens: int = VERIFIED_TOKENS, note: Callable[[str], None] = lambda _: None) -> Verdict:
    """Compare on the job's first rows, about `tokens` of them. Raises PlanError where memory can't do."""
    _check_memory(job, tokens)
    note("Loading the model in fp32 …")
    training = _prepared(_plain(job))
    noise = "dropout" if job.adapter.dropout else "NEFTune" if job.train.neftune else ""
    unshared = f"with {noise} each row draws its own noise" if noise else ""
    if unshared:  # as in training, although the noise itself is off here
        training = replace(training, sharing=False)
    model = training.model
    _fill(model)
    rows = _first_rows(training, tokens)
    labels = sum(sum(row.label_mask) for row in rows)
    note(f"The naive computation: {len(rows)} rows one by one …")
    naive = paths.naive(model, rows, training, labels)
    lines = []
    for path in paths.fast_paths(training, rows, job, unshared):
        if not path.why_not:
            note(f"{path.name} …")
        lines.append(_line(path, model, training, labels, naive))
    note("As the job computes …")
    weights = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    lines.append(_as_the_job(job, training, weights, rows, labels, naive))
    return Verdict(len(rows), sum(len(row.input_ids) for row in rows), lines)


def compare(name: str, found: Found, naive: Found, tolerance: float) -> Line:
    """How far gradients are from the naive ones; `wrong` beyond the tolerance, in all or in one tensor."""
    overall, worst, tensor = paths.difference(found[1], naive[1])
    loss = _apart(found, naive)
    # NaN is never within a tolerance.
    right = overall <= tolerance and worst <= TENSOR_FACTOR * tolerance and loss <= tolerance
    return Line(name, "exact" if right else "wrong", overall, worst, tensor, loss, tolerance)


def _line(path: FastPath, model: nn.Module, training: Training, labels: int, naive: Found) -> Line:
    if path.why_not:
        return Line(path.name, "not used", note=path.why_not)
    try:
        found = paths.run(path, model, training, labels)
    except Exception as error:
        if not path.compiled:
            raise
        reason = (str(error).strip().splitlines() or [""])[0][:120]
        return Line(path.name, "not used", note=f"compiling failed with {type(error).__name__}: {reason}")
    return compare(path.name, found, naive, path.tolerance)


def _as_the_job(
    job: Job, exact: Training, weights: Gradients, rows: Sequence[Example], labels: int, naive: Found
) -> Line:
    """The gradient in the job's own number format and base, far or near: approximate in any case."""
    quantised = job.quantization
    told = [f"base in {quantised.type}"] if quantised is not None else []
    if (optimizer := str(job.train.optimizer)) in APPROXIMATE:
        told.append(f"optimizer {optimizer}: approximate updates")
    own = _prepared(_plain(job, dtype=job.train.dtype, quantised=True))
    if own.device.dtype is torch.float32 and quantised is None:
        note = "; ".join(["float32: nothing is rounded further", *told])
        return Line("as the job computes", "not used", note=note)
    parameters = dict(own.model.named_parameters())
    with torch.no_grad():
        for name, value in weights.items():
            parameters[name].copy_(value)
    path = FastPath(
        f"as the job computes: {own.device.dtype_name}",
        paths.microbatches(exact, rows), paths.objective_loss(own.objective), paths.as_it_is,
        packing=exact.packing, segments=exact.segments, sharing=exact.sharing,
    )  # fmt: skip
    found = None
    if job.train.compile is not False and not compiling.missing():
        compiled = replace(path, setting=partial(paths.compiled, job=job, device=own.device))
        try:
            found = paths.run(compiled, own.model, own, labels)
            told.append("compiled")
        except Exception as error:
            told.append(f"compiling failed with {type(error).__name__}")
    found = found or paths.run(path, own.model, own, labels)
    overall, worst, tensor = paths.difference(found[1], naive[1])
    return Line(path.name, "approximate", overall, worst, tensor, _apart(found, naive), note="; ".join(told))


def _apart(found: Found, naive: Found) -> float:
    return abs(found[0] - naive[0]) / max(abs(naive[0]), 1e-12)


def _plain(job: Job, dtype: str = "fp32", quantised: bool = False) -> Job:
    """The job without noise, compilation and recomputation, in a number format."""
    train = {"dtype": dtype, "neftune": 0.0, "compile": False, "checkpoint_activations": False}
    update: dict[str, Any] = {
        "train": job.train.model_copy(update=train),
        "adapter": job.adapter.model_copy(update={"dropout": 0.0}),
    }
    if not quantised:
        update["quantization"] = None
    return job.model_copy(update=update)


def _prepared(job: Job) -> Training:
    return prepare(job, Path(tempfile.gettempdir()) / "tunesmith-verify-unused", Silent()).training


def _first_rows(training: Training, tokens: int) -> list[Example]:
    """Rows of the first step while they fit into `tokens`; two at least, where there are two."""
    order = [i for step in training.plans.first for batch in step.microbatches for i in batch]
    rows: list[Example] = []
    taken = 0
    for index in order:
        row = training.train[index]
        if len(rows) >= 2 and taken + len(row.input_ids) > tokens:
            break
        rows.append(row)
        taken += len(row.input_ids)
    return rows


def _fill(model: nn.Module) -> None:
    """Small random numbers where LoRA's B is still zero."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name and not parameter.any():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.02)


def _check_memory(job: Job, tokens: int) -> None:
    """The model in fp32 and in the job's own format, three sets of gradients, and a row's activations."""
    description = describe(job.model, job.revision)
    if description.source is None:
        raise ModelError(
            f"{job.model} isn't on this machine: gradients can't be computed.",
            fix="`tunesmith train` downloads it; `tunesmith plan` works without.",
        )
    shapes = dryrun.build(description.config, job.adapter, torch.float32)
    trained, parameters = adapters.trainable_count(shapes)
    row = min(tokens, job.data.max_length) * 2
    config = description.config
    _, layers = estimate.attention_shape(config)
    width = 4 * (12 * int(config.get("hidden_size") or config.get("n_embd") or 1)
                 + 4 * int(config.get("intermediate_size") or 0))  # fmt: skip
    logits = 3 * 4 * row * int(config.get("vocab_size") or 0)
    needed = parameters * 8 + trained * 16 + row * layers * width + logits
    require_free(f"Checking {job.model} in fp32", needed, available_memory())
