"""The gradients of a job's own first rows, by each fast path, against the naive computation in fp32.

Naive: transformers' forward with torch's own attention, one row at a time, nothing shared; PEFT's own LoRA forward; all
logits; torch's cross-entropy; eager. Each fast path is switched on alone, then all together, as training runs.

    relative difference = |g - naive| / |naive|, over all numbers together, and for the worst single tensor

A tensor whose gradient is rounding noise (a bias of attention keys: truly zero) has no relative difference; a tensor's
norm counts as at least FLOOR of the whole gradient's. LoRA's B starts at zero, and A's gradient with it: both are filled
with small random numbers for the check, or a wrong gradient of A could not be seen. Dropout and NEFTune are off.

What the job really computes in (bf16, a quantised base) is compared too, and is called approximate whatever comes out.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tunesmith.data.batch import collate
from tunesmith.data.encode import Example
from tunesmith.data.pack import plan_eval
from tunesmith.device import available_memory
from tunesmith.errors import ModelError
from tunesmith.model import adapters, fused_lora
from tunesmith.model.attention import can_segment, can_share, segment_attention
from tunesmith.model.describe import describe
from tunesmith.model.load import require_free
from tunesmith.train import compiling, dryrun
from tunesmith.train.config import Job
from tunesmith.train.forward import label_logits, mixed_precision
from tunesmith.train.head import head_of
from tunesmith.train.listener import Silent
from tunesmith.train.loop import Training, microbatch_tokens
from tunesmith.train.losses import label_loss
from tunesmith.train.objectives import Objective, sft
from tunesmith.train.prepare import prepare

TOKENS = 1024
EXACT, COMPILED = 1e-5, 1e-4
# A single tensor sums less and rounds more than the whole gradient.
TENSOR_FACTOR = 10.0
FLOOR = 1e-3

Gradients = dict[str, Tensor]


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


def verify(job: Job, tokens: int = TOKENS, note: Callable[[str], None] = lambda _: None) -> Verdict:
    """Compare on the job's first rows, about `tokens` of them. Raises PlanError where memory can't do."""
    _check_memory(job, tokens)
    note("Loading the model in fp32 …")
    training = _prepared(_plain(job))
    model = training.model
    _fill(model)
    rows = _first_rows(training, tokens)
    labels = sum(sum(row.label_mask) for row in rows)
    note(f"The naive computation: {len(rows)} rows one by one …")
    with _peft_forward(model):
        naive = _gradients(model, [[row] for row in rows], _full_logits, training, labels, packing=False)
    lines = []
    for path in _paths(training, rows, job.train.compile is not False):
        if path.why_not:
            lines.append(Line(path.name, "not used", note=path.why_not))
            continue
        note(f"{path.name} …")
        try:
            with path.setting(model):
                found = _gradients(
                    model, path.groups, path.loss, training, labels,
                    packing=path.packing, segments=path.segments, sharing=path.sharing,
                )  # fmt: skip
        except _NotCompiledError as error:
            lines.append(Line(path.name, "not used", note=str(error)))
            continue
        lines.append(compare(path.name, found, naive, path.tolerance))
    note("As the job computes …")
    model_weights = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    lines.append(_as_the_job(job, training, model_weights, rows, labels, naive))
    return Verdict(len(rows), sum(len(row.input_ids) for row in rows), lines)


def compare(
    name: str, found: tuple[float, Gradients], naive: tuple[float, Gradients], tolerance: float
) -> Line:
    """How far gradients are from the naive ones; `wrong` beyond the tolerance, as a whole or in one tensor."""
    overall, worst, tensor = _difference(found[1], naive[1])
    loss = abs(found[0] - naive[0]) / max(abs(naive[0]), 1e-12)
    # NaN is never within a tolerance.
    right = overall <= tolerance and worst <= TENSOR_FACTOR * tolerance and loss <= tolerance
    return Line(name, "exact" if right else "wrong", overall, worst, tensor, loss, tolerance)


@dataclass
class _Path:
    """A way to compute the same gradients."""

    name: str
    groups: Sequence[Sequence[Example]]
    loss: Callable[[nn.Module, Any], Tensor]
    setting: Callable[[nn.Module], Any]
    packing: bool = False
    segments: bool = False
    sharing: bool = False
    tolerance: float = EXACT
    why_not: str = ""


def _paths(training: Training, rows: Sequence[Example], may_compile: bool) -> Iterator[_Path]:
    model, packing = training.model, training.packing
    can_attend, why = can_segment(model)
    can_have, why_shared = can_share(model)
    one_by_one = [[row] for row in rows]
    not_packed = "" if packing else "rows of this model or job aren't packed"
    plain_lora = any(isinstance(m, fused_lora.FusedLinear) for m in model.modules())
    known_head = head_of(model) is not None
    sharing = training.sharing
    yield _Path("packed rows", [rows], _full_logits, _peft_forward, packing=True, why_not=not_packed)
    yield _Path(
        "attention by segments", [rows], _full_logits, _peft_forward, packing=True, segments=True,
        why_not=not_packed or ("" if can_attend else why),
    )  # fmt: skip
    yield _Path(
        "shared beginnings", [rows], _full_logits, _peft_forward, packing=True, segments=True, sharing=True,
        why_not=not_packed or ("" if can_have else why_shared) or ("" if sharing else "switched off by the job"),
    )  # fmt: skip
    yield _Path(
        "LoRA as one function", one_by_one, _full_logits, _as_it_is,
        why_not="" if plain_lora else "this adapter isn't plain LoRA",
    )  # fmt: skip
    yield _Path(
        "head on labels, in chunks", one_by_one, _objective(sft()), _peft_forward,
        why_not="" if known_head else "the head of this family isn't known: its logits come from the model",
    )  # fmt: skip
    together = {"packing": packing, "segments": training.segments, "sharing": sharing}
    groups = _microbatches(training, rows, **together)
    yield _Path(f"all together, {len(groups)} microbatches", groups, _objective(sft()), _as_it_is, **together)
    yield _Path(
        "all together, compiled", groups, _objective(sft(fused=True)), _compiled, **together, tolerance=COMPILED,
        why_not="the job says train.compile=false" if not may_compile
        else f"there isn't {lack}" if (lack := compiling.missing()) else "",
    )  # fmt: skip


def _microbatches(
    training: Training, rows: Sequence[Example], *, packing: bool, segments: bool, sharing: bool
) -> list[list[Example]]:
    """At least two, so that adding up is checked as well."""
    del segments
    whole = sum(len(row.input_ids) for row in rows)
    laid = plan_eval(
        [len(row.input_ids) for row in rows],
        microbatch_tokens=min(microbatch_tokens(training), max(1, whole // 2)),
        packing=packing,
        shared=[row.input_ids for row in rows] if sharing else None,
    )
    groups = [[rows[i] for i in indexes] for indexes in laid]
    if len(groups) == 1 and len(rows) > 1:
        groups = [list(rows[:1]), list(rows[1:])]
    return groups


def _gradients(
    model: nn.Module,
    groups: Sequence[Sequence[Example]],
    loss: Callable[[nn.Module, Any], Tensor],
    training: Training,
    labels: int,
    *,
    packing: bool,
    segments: bool = False,
    sharing: bool = False,
) -> tuple[float, Gradients]:
    model.train()
    model.zero_grad(set_to_none=True)
    total = 0.0
    with segment_attention(model, segments), _without_dropout(model):
        for group in groups:
            batch = collate(group, packing=packing, pad_id=training.pad_id, sharing=sharing)
            batch = batch.to(training.device.torch_device)
            with mixed_precision(training.device, model):
                value = loss(model, batch)
            (value / labels).backward()
            total += float(value.detach())
    made = {n: p.grad.detach().float() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return total / labels, made


def _full_logits(model: nn.Module, batch: Any) -> Tensor:
    """All logits of transformers' own forward; torch's cross-entropy at the labels."""
    if batch.attention_mask is None:
        return label_loss(label_logits(model, batch), batch.targets)[0]
    logits = model(
        input_ids=batch.input_ids, position_ids=batch.position_ids, attention_mask=batch.attention_mask,
        use_cache=False,
    ).logits  # fmt: skip
    return F.cross_entropy(logits.flatten(0, 1).float()[batch.keep], batch.targets, reduction="sum")


def _objective(objective: Objective) -> Callable[[nn.Module, Any], Tensor]:
    return lambda model, batch: objective.loss(model, batch)[0]


def _difference(found: Gradients, naive: Gradients) -> tuple[float, float, str]:
    """(over all numbers, of the worst tensor, its name)."""
    if found.keys() != naive.keys():
        odd = sorted(found.keys() ^ naive.keys())
        return float("inf"), float("inf"), odd[0]
    size = sum(float(g.double().pow(2).sum()) for g in naive.values()) ** 0.5
    total, worst, name = 0.0, 0.0, ""
    for key, wanted in naive.items():
        apart = float((found[key].double() - wanted.double()).norm())
        total += apart**2
        relative = apart / max(float(wanted.double().norm()), FLOOR * size, 1e-30)
        if not relative <= worst:
            worst, name = relative, key
    return total**0.5 / max(size, 1e-30), worst, name


def _as_the_job(
    job: Job,
    exact: Training,
    weights: Gradients,
    rows: Sequence[Example],
    labels: int,
    naive: tuple[float, Gradients],
) -> Line:
    """The gradient in the job's own number format and base, far or near: approximate in any case."""
    quantised = getattr(job, "quantization", None)
    optimizer = job.train.optimizer
    rounded = (
        []
        if optimizer not in ("adamw_8bit", "adafactor")
        else [f"optimizer {optimizer}: approximate updates"]
    )
    if quantised is not None:
        rounded.insert(0, f"base in {quantised.type}")
    probed = _prepared(_plain(job, dtype=job.train.dtype, quantised=True))
    dtype = probed.device.dtype_name
    if probed.device.dtype is torch.float32 and quantised is None:
        return Line(
            "as the job computes",
            "not used",
            note="; ".join(["float32: nothing is rounded further", *rounded]),
        )
    own = dict(probed.model.named_parameters())
    with torch.no_grad():
        for name, value in weights.items():
            own[name].copy_(value)
    together = {"packing": probed.packing, "segments": probed.segments, "sharing": probed.sharing}
    groups = _microbatches(exact, rows, **together)
    found = _gradients(probed.model, groups, _objective(sft()), probed, labels, **together)
    overall, worst, tensor = _difference(found[1], naive[1])
    loss = abs(found[0] - naive[0]) / max(abs(naive[0]), 1e-12)
    name = f"as the job computes: {dtype}"
    return Line(name, "approximate", overall, worst, tensor, loss, note="; ".join(rounded))


def _plain(job: Job, dtype: str = "fp32", quantised: bool = False) -> Job:
    """The job without noise and compilation, in a number format."""
    train = job.train.model_copy(
        update={"dtype": dtype, "neftune": 0.0, "compile": False, "label_smoothing": 0.0}
    )
    adapter = job.adapter.model_copy(update={"dropout": 0.0})
    update: dict[str, Any] = {"train": train, "adapter": adapter}
    if not quantised and "quantization" in Job.model_fields:
        update["quantization"] = None
    return job.model_copy(update=update)


def _prepared(job: Job) -> Training:
    return prepare(job, Path(tempfile.gettempdir()) / "tunesmith-verify-unused", Silent()).training


def _first_rows(training: Training, tokens: int) -> list[Example]:
    """Rows of the first step while they fit into `tokens`; two at least, where there are two."""
    order = [i for step in training.plans[0] for batch in step.microbatches for i in batch]
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


@contextmanager
def _peft_forward(model: nn.Module) -> Iterator[None]:
    fused = any(isinstance(module, fused_lora.FusedLinear) for module in model.modules())
    fused_lora.unfuse(model)
    try:
        yield
    finally:
        if fused:
            fused_lora.fuse(model)


@contextmanager
def _as_it_is(_model: nn.Module) -> Iterator[None]:
    yield


class _NotCompiledError(Exception):
    pass


@contextmanager
def _compiled(model: nn.Module) -> Iterator[None]:
    compiled = compiling.Compiled(list(adapters.decoder_layers(model)))
    try:
        compiled.build(lambda: None)
    except Exception as error:
        raise _NotCompiledError(f"compiling failed with {type(error).__name__}") from error
    with compiled.on():
        yield


@contextmanager
def _without_dropout(model: nn.Module) -> Iterator[None]:
    """Models of their own with dropout draw differently each time: it is off in all of them alike."""
    rates = [(m, m.p) for m in model.modules() if isinstance(m, nn.Dropout) and m.p > 0]
    for module, _ in rates:
        module.p = 0.0
    try:
        yield
    finally:
        for module, rate in rates:
            module.p = rate


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
    layers = int(config.get("num_hidden_layers") or config.get("n_layer") or 1)
    width = 4 * (12 * int(config.get("hidden_size") or config.get("n_embd") or 1)
                 + 4 * int(config.get("intermediate_size") or 0))  # fmt: skip
    logits = 3 * 4 * row * int(config.get("vocab_size") or 0)
    needed = parameters * 8 + trained * 16 + row * layers * width + logits
    require_free(f"Checking {job.model} in fp32", needed, available_memory())
