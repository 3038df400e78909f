"""The ways to compute the same gradients: the naive one, each fast path alone, and all together. verify.py
compares.

Naive: transformers' forward with torch's own attention, one row at a time, nothing shared; PEFT's own LoRA
forward; all logits; torch's cross-entropy; eager.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from tunesmith.data.batch import Batch, collate
from tunesmith.data.encode import Example
from tunesmith.data.pack import plan_eval
from tunesmith.device import Device
from tunesmith.model import fused_lora, targets
from tunesmith.model.attention import can_segment, can_share, segment_attention
from tunesmith.model.families import packed_inputs
from tunesmith.train import compiling
from tunesmith.train.config import Job
from tunesmith.train.forward import mixed_precision
from tunesmith.train.head import why_full
from tunesmith.train.objectives import Objective, sft
from tunesmith.train.training import PACK_MULTIPLE, Training, microbatch_tokens

EXACT, COMPILED = 1e-5, 1e-4
# A tensor's norm counts as at least so much of the whole gradient's.
FLOOR = 1e-3

Gradients = dict[str, Tensor]
Found = tuple[float, Gradients]  # mean loss, and gradients by name
Loss = Callable[[nn.Module, Batch], Tensor]


@dataclass
class FastPath:
    """A way to compute the same gradients, or `why_not` where this job can't go it."""

    name: str
    groups: Sequence[Sequence[Example]]
    loss: Loss
    setting: Callable[[nn.Module], AbstractContextManager[None]]
    packing: bool = False
    segments: bool = False
    sharing: bool = False
    compiled: bool = False
    why_not: str = ""

    @property
    def tolerance(self) -> float:
        """The largest relative difference that counts as the same."""
        return COMPILED if self.compiled else EXACT


def naive(model: nn.Module, rows: Sequence[Example], training: Training, labels: int) -> Found:
    """Loss and gradients of the naive computation."""
    one_by_one = FastPath("naive", [[row] for row in rows], full_logits(training), peft_forward)
    return run(one_by_one, model, training, labels)


def fast_paths(
    training: Training, rows: Sequence[Example], job: Job, why_not_shared: str = ""
) -> Iterator[FastPath]:
    """Each fast path of a training that was prepared without compilation and recomputation."""
    model, packing, sharing = training.model, training.packing, training.sharing
    logits, objective = full_logits(training), objective_loss(training.objective)
    can_attend, why = can_segment(model)
    can_have, why_shared = can_share(model)
    one_by_one = [[row] for row in rows]
    not_packed = "" if packing else "rows of this model or job aren't packed"
    plain_lora = any(isinstance(m, fused_lora.FusedLinear) for m in model.modules())
    yield FastPath("packed rows", [rows], logits, peft_forward, packing=True, why_not=not_packed)
    yield FastPath(
        "attention by segments", [rows], logits, peft_forward, packing=True, segments=True,
        why_not=not_packed or ("" if can_attend else why),
    )  # fmt: skip
    off = why_not_shared or ("" if can_have else why_shared) or ("" if sharing else "switched off by the job")
    yield FastPath(
        "shared beginnings", [rows], logits, peft_forward, packing=True, segments=True, sharing=True,
        why_not=not_packed or off,
    )  # fmt: skip
    yield FastPath(
        "LoRA as one function", one_by_one, logits, as_it_is,
        why_not="" if plain_lora else "this adapter isn't plain LoRA",
    )  # fmt: skip
    yield FastPath(
        "head on labels, in chunks", one_by_one, objective, peft_forward, why_not=why_full(model) or ""
    )
    recomputed, every = job.train.recomputing, job.train.checkpoint_activations
    yield FastPath(
        "activations recomputed", one_by_one, logits, partial(_recomputed, job=job),
        why_not="" if recomputed else f"the job says train.checkpoint_activations={str(every).lower()}",
    )  # fmt: skip
    groups = microbatches(training, rows)
    together = FastPath(
        f"all together, {len(groups)} microbatches", groups, objective, partial(_recomputed, job=job),
        packing=packing, segments=training.segments, sharing=sharing,
    )  # fmt: skip
    yield together
    lack = None if job.train.compile is False else compiling.missing()
    yield replace(
        together,
        name="all together, compiled",
        loss=objective_loss(sft(job.train.label_smoothing, fused=True)),
        setting=partial(compiled, job=job),
        compiled=True,
        why_not="the job says train.compile=false" if job.train.compile is False
        else f"there isn't {lack}" if lack else "",
    )  # fmt: skip


def run(path: FastPath, model: nn.Module, training: Training, labels: int) -> Found:
    """Mean loss and gradients over all groups of a path, dropout off."""
    model.train()
    model.zero_grad(set_to_none=True)
    total = 0.0
    with path.setting(model), segment_attention(model, path.segments), _without_dropout(model):
        for group in path.groups:
            batch = collate(
                group, packing=path.packing, pad_id=training.pad_id, sharing=path.sharing,
                multiple=PACK_MULTIPLE if path.segments else 1,
            ).to(training.device.torch_device)  # fmt: skip
            with mixed_precision(training.device, model):
                value = path.loss(model, batch)
            (value / labels).backward()  # type: ignore[no-untyped-call]
            total += float(value.detach())
    made = {n: p.grad.detach().float() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return total / labels, made


def microbatches(training: Training, rows: Sequence[Example]) -> list[list[Example]]:
    """As training lays rows out; two of them at least, so that adding up is checked as well."""
    whole = sum(len(row.input_ids) for row in rows)
    laid = plan_eval(
        [len(row.input_ids) for row in rows],
        microbatch_tokens=min(microbatch_tokens(training), max(1, whole // 2)),
        packing=training.packing,
        shared=[row.input_ids for row in rows] if training.sharing else None,
    )
    groups = [[rows[i] for i in indexes] for indexes in laid]
    if len(groups) == 1 and len(rows) > 1:
        groups = [list(rows[:1]), list(rows[1:])]
    return groups


def difference(found: Gradients, wanted: Gradients) -> tuple[float, float, str]:
    """(over all numbers, of the worst tensor, its name); infinite where other tensors have gradients."""
    if found.keys() != wanted.keys():
        return math.inf, math.inf, min(found.keys() ^ wanted.keys())
    size = math.sqrt(sum(float(g.double().pow(2).sum()) for g in wanted.values()))
    total, worst, name = 0.0, 0.0, ""
    for key, right in wanted.items():
        apart = float((found[key].double() - right.double()).norm())
        total += apart**2
        relative = apart / max(float(right.double().norm()), FLOOR * size, 1e-30)
        if not relative <= worst:
            worst, name = relative, key
    return math.sqrt(total) / max(size, 1e-30), worst, name


def full_logits(training: Training) -> Loss:
    """Summed loss from all logits of transformers' own forward, by torch's cross-entropy."""
    smoothing = training.settings.label_smoothing

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        logits = model(**packed_inputs(model, batch)).logits
        kept = logits.flatten(0, 1).float()[batch.keep]
        return F.cross_entropy(kept, batch.targets, reduction="sum", label_smoothing=smoothing)

    return loss


def objective_loss(objective: Objective) -> Loss:
    """The loss as training computes it."""
    return lambda model, batch: objective.loss(model, batch)[0]


@contextmanager
def peft_forward(model: nn.Module) -> Iterator[None]:
    """PEFT's own LoRA forward inside."""
    fused = any(isinstance(module, fused_lora.FusedLinear) for module in model.modules())
    fused_lora.unfuse(model)
    try:
        yield
    finally:
        if fused:
            fused_lora.fuse(model)


@contextmanager
def as_it_is(_model: nn.Module) -> Iterator[None]:
    """The model as training prepared it."""
    yield


@contextmanager
def _recomputed(model: nn.Module, job: Job) -> Iterator[None]:
    """Activations recomputed inside where the job asks for it."""
    if not job.train.recomputing:
        yield
        return
    layers: Any = model
    layers.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    try:
        yield
    finally:
        layers.activation_checkpointing_disable()


@contextmanager
def compiled(model: nn.Module, job: Job, device: Device | None = None) -> Iterator[None]:
    """Layers compiled inside; on `device`, where that is given, with the kernels that a job there has."""
    attention, linear, head = compiling.kernels(device, lambda _: None)
    layers = compiling.Compiled(
        list(targets.decoder_layers(model)), attention=attention, linear=linear, head=head
    )
    layers.build(lambda: None)
    with _recomputed(model, job), layers.on():
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
