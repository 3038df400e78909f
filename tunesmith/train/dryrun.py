"""A training step of shapes alone: what a model's forward and backward pass would hold, byte by byte.

The model is built on torch's meta device and run on fake tensors: nothing is allocated and nothing is
computed, but every operation of the real step is seen, and so is each tensor's life. That counts what
formulas about layers have to guess: what autograd keeps, mixed precision's copies, recomputation, what a
backward pass needs beside it.

It counts tensors. An allocator holds more than that (train/estimate.py), and kernels have buffers of their
own.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from tunesmith.data.batch import Batch
from tunesmith.device import Device
from tunesmith.errors import ModelError
from tunesmith.model import adapters
from tunesmith.model.attention import segment_attention
from tunesmith.model.config import AdapterSettings
from tunesmith.train.forward import mixed_precision
from tunesmith.train.objectives import sft


@dataclass(frozen=True)
class Held:
    """Bytes beside weights, gradients of weights and optimizer states, at the moment when most is held.

    `kept`: of these, what waited for the backward pass when it began.
    """

    kept: int
    peak: int


def build(
    config: Mapping[str, Any], adapter: AdapterSettings, dtype: torch.dtype
) -> PreTrainedModel | PeftModel:
    """The model of a job without its numbers: exact shapes, names and formats. Raises ModelError."""
    kind = str(config.get("model_type"))
    try:
        with torch.device("meta"):
            parsed = AutoConfig.for_model(
                **{k: v for k, v in config.items() if k not in ("dtype", "torch_dtype")}
            )
            model = AutoModelForCausalLM.from_config(parsed, dtype=dtype)
    except Exception as error:
        raise ModelError(
            f"The configuration of this {kind} model can't be built: {str(error).splitlines()[0][:160]}.",
            fix="Check its config.json, or update transformers.",
        ) from error
    # The layers of an adapter to be continued have the shapes of a new one with the same settings.
    fresh = adapter.model_copy(update={"continue_from": None, "init": "default"})
    with torch.device("meta"):
        return adapters.prepare(cast(PreTrainedModel, model), fresh, seed=0, base_fingerprint="")


def held(
    config: Mapping[str, Any],
    adapter: AdapterSettings,
    tokens: int,
    labels: int,
    device: Device,
    *,
    checkpointing: bool | int = False,
    **how: Any,
) -> Held:
    """`run` on a model of this configuration; of many like layers few are run, the others hold as much."""
    layers, few = int(config.get("num_hidden_layers") or 0), (2, 4)
    alike = adapter.uses_peft and adapter.last_layers is None and not config.get("mlp_only_layers")
    named = isinstance(adapter.targets, tuple) and any(c.isdigit() for t in adapter.targets for c in t)
    if layers <= 2 * few[1] or not alike or named or checkpointing not in (False, True):
        model = build(config, adapter, device.dtype)
        return run(model, tokens, labels, device, checkpointing=checkpointing, **how)
    found = []
    for count in few:
        short = {**config, "num_hidden_layers": count}
        if isinstance(kinds := config.get("layer_types"), list | tuple):
            short["layer_types"] = list(kinds[:count])
        model = build(short, adapter, device.dtype)
        found.append(run(model, tokens, labels, device, checkpointing=checkpointing, **how))
    one, two = found
    more = (layers - few[1]) / (few[1] - few[0])
    return Held(
        round(two.kept + more * (two.kept - one.kept)), round(two.peak + more * (two.peak - one.peak))
    )


def run(
    model: nn.Module,
    tokens: int,
    labels: int,
    device: Device,
    *,
    rows: int = 1,
    packed: bool = True,
    segments: bool = True,
    checkpointing: bool | int = False,
    accumulating: bool = False,
) -> Held:
    """One forward and backward pass over so many tokens (in all rows) and labels, on a model from `build`.

    `checkpointing`: recompute all layers, or every N-th. `accumulating`: gradients of an earlier microbatch
    are there and are added to. Raises whatever the model's code raises where shapes depend on values
    (mixtures of experts).
    """
    layers = [m for m in model.modules() if hasattr(m, "gradient_checkpointing")]
    before = [m.gradient_checkpointing for m in layers]
    if checkpointing:
        options = {"use_reentrant": False}
        cast(Any, model).activation_checkpointing_enable(
            activation_checkpointing_kwargs=options, every_n_layers=int(checkpointing)
        )
    model.train()
    cpu = Device(torch.device("cpu"), device.dtype, "")
    objective, kept = sft(), 0
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), _Tracker() as tracker, _faked(model):
            weights = tracker.now
            for _ in range(1 + accumulating):
                start = tracker.peak = tracker.now
                with segment_attention(model, segments):
                    with mixed_precision(cpu, model):
                        loss, _count = objective.loss(model, _batch(tokens, labels, rows, packed))
                    kept = tracker.now - start
                    loss.backward()  # type: ignore[no-untyped-call]
                del loss
            gradients = tracker.now - weights
            return Held(kept, tracker.peak - weights - gradients)
    finally:
        for module, value in zip(layers, before, strict=True):
            module.gradient_checkpointing = value


def _batch(tokens: int, labels: int, rows: int, packed: bool) -> Batch:
    shape = (1, tokens) if packed else (rows, -(-tokens // rows))
    return Batch(
        input_ids=torch.zeros(shape, dtype=torch.int64),
        position_ids=torch.zeros(shape, dtype=torch.int64),
        attention_mask=None if packed else torch.ones(shape, dtype=torch.int64),
        cu_seqlens=torch.zeros(2, dtype=torch.int32),
        segments=torch.tensor([[0, tokens, -1]]),
        keep=torch.zeros(labels, dtype=torch.int64),
        targets=torch.zeros(labels, dtype=torch.int64),
        tokens=tokens,
        unique_tokens=tokens,
        label_tokens=labels,
        rows=rows,
    )


class _faked:
    """Parameters and buffers as fake tensors of the CPU: autocast and custom operations act as with real."""

    def __init__(self, model: nn.Module) -> None:
        self._places: list[tuple[dict[str, Any], str, Any]] = [
            (table, name, value)
            for module in model.modules()
            for table in cast(tuple[dict[str, Any], ...], (module._parameters, module._buffers))
            for name, value in table.items()
            if value is not None
        ]

    def __enter__(self) -> None:
        made: dict[int, Any] = {}  # tied weights stay one
        for table, name, value in self._places:
            if id(value) not in made:
                empty = torch.empty(value.shape, dtype=value.dtype, device="cpu")
                is_weight = isinstance(value, nn.Parameter)
                made[id(value)] = nn.Parameter(empty, value.requires_grad) if is_weight else empty
            table[name] = made[id(value)]

    def __exit__(self, *_: object) -> None:
        for table, name, value in self._places:
            table[name] = value


class _Tracker(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes of all storages that are alive, and the most there ever were."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._alive: set[int] = set()
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                storage = value.untyped_storage()
                key, size = storage._cdata, storage.nbytes()
                if key not in self._alive:
                    self._alive.add(key)
                    self.now += size
                    weakref.finalize(storage, self._gone, key, size)
        self.peak = max(self.peak, self.now)
        return result

    def _gone(self, key: int, size: int) -> None:
        self._alive.discard(key)
        self.now -= size
