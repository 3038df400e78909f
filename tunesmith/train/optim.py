"""Optimizer and learning-rate schedule, by name, from torch, bitsandbytes and transformers."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from transformers import PreTrainedModel, get_scheduler

from tunesmith.errors import MissingExtraError, ModelError, SettingsError
from tunesmith.model import quantize
from tunesmith.train.config import TrainSettings
from tunesmith.words import counted

CHECKED = 1000  # steps of a schedule at either end

BETAS, EPSILON = (0.9, 0.999), 1e-8
MOMENTUM = {"sgd": 0.9, "muon": 0.95}
# What learnt 8-bit averages leave of AdamW's step: measured in tests/train/test_optim.py.
NEAR_ADAMW = "a step differs from AdamW's by a few percent"


@dataclass(frozen=True)
class Tensors:
    """The trained tensors by what optimizers tell apart; each is in one of these."""

    matrices: list[nn.Parameter]  # of hidden layers
    head: list[nn.Parameter]  # the output head, where it isn't tied
    rest: list[nn.Parameter]  # embeddings, biases, norms: never decayed


def build_optimizer(model: nn.Module, settings: TrainSettings) -> torch.optim.Optimizer:
    """The optimizer of that name over what is trainable, from torch or bitsandbytes.

    Weight decay is for matrices only, not for biases, norms and embeddings. Raises MissingExtraError.
    """
    tensors = sort_tensors(model)
    name, rate = settings.optimizer, settings.learning_rate
    decayed, decay = [*tensors.matrices, *tensors.head], settings.weight_decay
    if name == "adamw":
        return _adamw(decayed, tensors.rest, settings)
    if name == "sgd":
        momentum = MOMENTUM[name] if settings.momentum is None else settings.momentum
        return torch.optim.SGD(_groups(decayed, tensors.rest, decay), lr=rate, momentum=momentum)
    if name == "adafactor":
        # Steps are relative to a tensor's size, but for sizes below the second epsilon. LoRA's B begins at
        # zero and would hardly ever move by torch's 1e-3; with 1 the learning rate is that of the others.
        groups = _groups(decayed, tensors.rest, decay)
        return torch.optim.Adafactor(groups, lr=rate, eps=(None, 1.0))
    parts: list[torch.optim.Optimizer] = []
    if name == "muon":
        decayed = tensors.head
        if tensors.matrices:
            # Scaled so that steps are as large as AdamW's at the same rate (arXiv 2502.16982).
            muon = torch.optim.Muon(
                tensors.matrices,
                lr=rate,
                weight_decay=decay,
                momentum=MOMENTUM[name] if settings.momentum is None else settings.momentum,
                adjust_lr_fn="match_rms_adamw",
            )
            parts.append(muon)
    else:
        check_installed(settings)
        import bitsandbytes

        eight = bitsandbytes.optim.AdamW8bit(
            decayed, lr=rate, betas=_betas(settings), eps=_epsilon(settings), weight_decay=decay
        )
        parts, decayed = [eight] if decayed else [], []
    if decayed or tensors.rest:
        parts.append(_adamw(decayed, tensors.rest, settings))
    return parts[0] if len(parts) == 1 else Together(parts)


def sort_tensors(model: nn.Module) -> Tensors:
    """What is trainable, by kind. Tied weights count as embeddings."""
    embeddings = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    head = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    heads = {id(p) for p in head.parameters()} if head is not None else set()
    trained = [p for p in model.parameters() if p.requires_grad]
    rest = [p for p in trained if p.ndim < 2 or id(p) in embeddings]
    apart = {id(p) for p in rest}
    return Tensors(
        matrices=[p for p in trained if id(p) not in heads | apart],
        head=[p for p in trained if id(p) in heads - apart],
        rest=rest,
    )


def check_installed(settings: TrainSettings) -> None:
    """Raise MissingExtraError for an optimizer whose package isn't there, before anything is loaded."""
    if settings.optimizer == "adamw_8bit" and not quantize.installed():
        raise MissingExtraError("train.optimizer adamw_8bit", "bitsandbytes", "quant")


def check_tensors(model: nn.Module, settings: TrainSettings) -> None:
    """Raise ModelError for trained tensors that the optimizer can't take."""
    odd = [p for p in sort_tensors(model).matrices if p.ndim != 2] if settings.optimizer == "muon" else []
    if odd:
        raise ModelError(
            f"train.optimizer muon takes matrices, but {len(odd)} trained tensors have more dimensions.",
            details=sorted({str(list(p.shape)) for p in odd}),
            fix="Use train.optimizer=adamw.",
        )


def notes(model: nn.Module, settings: TrainSettings) -> list[str]:
    """What a person should know of the optimizer before training starts."""
    tensors = sort_tensors(model)
    if settings.optimizer == "adamw_8bit":
        return [f"Approximate: adamw_8bit keeps AdamW's averages in 8 bits; {NEAR_ADAMW}."]
    others = len(tensors.head) + len(tensors.rest)
    if settings.optimizer == "muon" and others:
        return [
            f"Muon trains {len(tensors.matrices)} matrices; {others} other tensors (embeddings, output head, "
            "norms, biases) are trained by AdamW."
        ]
    return []


class Together(torch.optim.Optimizer):
    """Several optimizers, each with tensors of its own, that look like one to a loop and to schedules."""

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        self.parts = tuple(parts)
        super().__init__([{**group} for part in parts for group in part.param_groups], {})
        self.share()

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step of each."""
        assert closure is None, "nothing here computes a loss twice"
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """Those of the parts, in order."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Each part reads its own: 8-bit states are kept as they are by none but their own optimizer."""
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.share()

    def share(self) -> None:
        """Take over the parts' groups: the rate that a schedule writes here is the one that a part reads."""
        self.param_groups = [group for part in self.parts for group in part.param_groups]


def states(optimizer: torch.optim.Optimizer) -> list[Any]:
    """What an optimizer keeps of earlier steps; of `Together` that of each part. Settings aren't in it."""
    return [part.state_dict()["state"] for part in _parts(optimizer)]


def put_states(optimizer: torch.optim.Optimizer, saved: Sequence[Any]) -> None:
    """Give an optimizer the states that one of the same kind had, over tensors of the same shapes."""
    for part, state in zip(_parts(optimizer), saved, strict=True):
        part.load_state_dict({"state": state, "param_groups": part.state_dict()["param_groups"]})
    if isinstance(optimizer, Together):
        optimizer.share()


def _parts(optimizer: torch.optim.Optimizer) -> Sequence[torch.optim.Optimizer]:
    return optimizer.parts if isinstance(optimizer, Together) else (optimizer,)


def _adamw(
    decayed: list[nn.Parameter], rest: list[nn.Parameter], settings: TrainSettings
) -> torch.optim.Optimizer:
    return torch.optim.AdamW(
        _groups(decayed, rest, settings.weight_decay),
        lr=settings.learning_rate,
        betas=_betas(settings),
        eps=_epsilon(settings),
        fused=True,
    )


def _groups(decayed: list[nn.Parameter], rest: list[nn.Parameter], decay: float) -> list[dict[str, Any]]:
    groups = [{"params": decayed, "weight_decay": decay}, {"params": rest, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def _betas(settings: TrainSettings) -> tuple[float, float]:
    return BETAS if settings.betas is None else settings.betas


def _epsilon(settings: TrainSettings) -> float:
    return EPSILON if settings.epsilon is None else settings.epsilon


def warmup_steps(warmup: float, steps: int) -> int:
    """A value below 1 is a share of all steps (rounded up), anything else a number of steps."""
    return math.ceil(warmup * steps) if warmup < 1 else int(warmup)


def build_schedule(optimizer: torch.optim.Optimizer, settings: TrainSettings, steps: int) -> LRScheduler:
    """The schedule of that name over `steps` steps. Raises SettingsError for options that it doesn't take."""
    warmup = warmup_steps(settings.warmup, steps)
    if warmup >= steps and settings.warmup >= 1:
        raise SettingsError(
            f"train.warmup is {counted(warmup, 'step')}, but the whole training has {steps}.",
            fix="Use a ratio such as 0.05, fewer warm-up steps, or train longer.",
        )
    try:
        schedule = get_scheduler(
            settings.schedule,
            optimizer,
            num_warmup_steps=warmup,
            # At its first and last point a schedule may be zero, and a step there would change nothing:
            # ours are the points 1 to N of 0 to N + 1.
            num_training_steps=steps + 1,
            scheduler_specific_kwargs=dict(settings.schedule_options) or None,
        )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
            schedule.step()
    except (TypeError, ValueError, ArithmeticError) as error:
        raise SettingsError(
            f"train.schedule {settings.schedule} can't be built: {error}.",
            fix="Check train.schedule_options against transformers' schedule of that name.",
        ) from None
    return cast(LRScheduler, schedule)


def seek(schedule: LRScheduler, step: int) -> None:
    """Put a schedule where so many steps would have brought it, to the same bits."""
    assert isinstance(schedule, LambdaLR), "all schedules by name are functions of the step"
    schedule.last_epoch = step + 1  # `build_schedule` took the point 0 away
    schedule._step_count = step + 2
    rates = [
        base * share(step + 1) for base, share in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)
    ]
    for group, rate in zip(schedule.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    schedule._last_lr = rates


def check_schedule(settings: TrainSettings, steps: int) -> None:
    """Raise SettingsError for what can't be built, or gives no rate on the way, before anything is written.

    Of a long training the first and the last thousand steps are looked at.
    """
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=settings.learning_rate)
    schedule = build_schedule(optimizer, settings, steps)
    rates = schedule.lr_lambdas if isinstance(schedule, LambdaLR) else []
    ends = {*range(1, min(steps + 1, CHECKED) + 1), *range(max(1, steps + 2 - CHECKED), steps + 2)}
    for step in sorted(ends):
        try:
            shares = [rate(step) for rate in rates]
            if not all(0 <= share < math.inf for share in shares):
                raise ValueError(f"it would be {shares[0]:g} times train.learning_rate")
        except (TypeError, ValueError, ArithmeticError) as error:
            raise SettingsError(
                f"train.schedule {settings.schedule} gives no rate for step {step} of {steps}: {error}.",
                fix="Check train.schedule_options against transformers' schedule of that name.",
            ) from None
