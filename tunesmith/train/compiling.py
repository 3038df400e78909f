"""torch.compile for the decoder layers: one compiled block that all share, or plain torch where it can't be.

    train.compile: true     always; a failure is told in one line, and the run goes on without
                   false    never
                   auto     where a compiler is there and the run is long enough to earn the warm-up

Only training steps run compiled: validation and answers are too short to earn compilations of their own. The
choice of `auto` depends on the job and the machine's kind alone (and on whether a sandbox withholds part of
it), so that a repeat takes the same path.

The compiler makes code for lengths of any kind, but the first ones that it sees decide how sums are cut, and
so the last bits. A training that goes on in another process therefore compiles on the same rows
(`Compiled.seen`), and compiled code is looked up in torch's cache by those lengths too (`shaped_by`).
"""

from __future__ import annotations

import sysconfig
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
import torch._functorch.config
from torch import Tensor, nn

from tunesmith.data.batch import Batch
from tunesmith.device import Device
from tunesmith.model import native
from tunesmith.model.kernels import Kernels, build

WARM_UP = 20.0
"""Seconds of compilation at most on a two-core machine; a run must win more than twice that."""
# Share of a step that compilation saves: 16 to 25 % were measured, and with the kernels in C++ 31 % in
# vectors, 46 % in tiles (135M parameters, bf16, a CPU). Operations per second that training reaches without
# it; cuda, mps are guesses.
_GAIN, _KERNELS_GAIN = 0.15, {native.VECTORS: 0.3, native.TILES: 0.4}
_RATES = {"cpu": 250e9, "cuda": 50e12, "mps": 2e12}


def missing() -> str | None:
    """What compilation lacks on this machine and how to get it; None where nothing is missing."""
    import torch._inductor.cpp_builder  # takes a second, which short runs don't have to spend

    lacking = []
    try:
        torch._inductor.cpp_builder.get_cpp_compiler()
    except torch._inductor.exc.InvalidCxxCompiler:
        lacking.append("a C++ compiler (Debian, Ubuntu: apt install g++)")
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").is_file():
        lacking.append("Python's headers (Debian, Ubuntu: apt install python3-dev)")
    return " and ".join(lacking) or None


def worthwhile(parameters: int, tokens: int, device: Device) -> bool:
    """Whether training on so many tokens in all saves more than twice the warm-up."""
    seconds = 4.0 * parameters * tokens / _RATES[device.kind]
    return seconds * _gain(device) > 2 * WARM_UP


@dataclass
class Compiled:
    """Decoder layers that run compiled inside `on`, and plainly elsewhere."""

    layers: Sequence[nn.Module] = ()
    kernels: Kernels = field(default_factory=Kernels)  # in C++, where there are such
    seen: list[list[int]] = field(default_factory=list)  # rows of the passes at which more was compiled
    _calls: list[object] = field(default_factory=list, init=False)
    _keeping: AbstractContextManager[Any] = field(default_factory=nullcontext, init=False)

    @property
    def active(self) -> bool:
        """Whether there is anything compiled."""
        return bool(self._calls)

    @contextmanager
    def on(self, rows: Sequence[int] = ()) -> Iterator[None]:
        """Compiled inside; what is recomputed in a backward pass must be inside too.

        `rows` of the pass are kept in `seen` where it makes the compiler work.
        """
        before = _graphs() if self.active else 0
        for layer, call in zip(self.layers, self._calls, strict=False):
            layer._compiled_call_impl = call  # type: ignore[assignment]
        try:
            with self.kernels.using(), self._keeping:
                yield
        finally:
            for layer in self.layers:
                layer._compiled_call_impl = None
        if rows and self.active and _graphs() != before and [*rows] not in self.seen:
            self.seen.append([*rows])

    def build(self, trial: Callable[[], None]) -> float:
        """Compile, with a trial pass so that a failure shows here; returns its seconds."""
        start = time.monotonic()
        if all(p.device.type == "cpu" for layer in self.layers for p in layer.parameters()):
            self._keeping = _recomputing()  # on other devices not measured
        for layer in self.layers:
            layer.compile(dynamic=True)
            call: Any = layer._compiled_call_impl
            # Not under frozen layers: those would all take gradients for nothing.
            first = not self._calls and any(p.requires_grad for p in layer.parameters())
            self._calls.append(_wanting_gradient(call) if first else call)
        try:
            with self.on():
                trial()
        except BaseException:
            torch._dynamo.reset()
            raise
        return time.monotonic() - start


@cache
def _recomputing() -> AbstractContextManager[Any]:
    """Code compiled inside computes what is cheap again on the way back, as a norm's output from its input.

    torch keeps what a product reads there. Peak of a run with the 135M model in bf16 on a CPU: LoRA 2.0 ->
    1.85 GiB, full 4.35 -> 3.9; no time that could be measured. One object: torch never forgets a patch.
    """
    options = ("ban_recompute_materialized_backward", "ban_recompute_used_far_apart")
    known = torch._functorch.config
    if not all(hasattr(known, option) for option in options):  # they aren't promised
        return nullcontext()
    patched: AbstractContextManager[Any] = known.patch(dict.fromkeys(options, False))
    return patched


def _wanting_gradient(call: Any) -> Callable[..., Any]:
    """The first layer as all others are: under a frozen embedding its input wants no gradient, and code of
    its own would be compiled for that, which costs more than the gradient. (It is, in a family that hands the
    input over by keyword.)
    """

    def forward(*args: Any, **kwargs: Any) -> Any:
        if args and torch.is_grad_enabled() and isinstance(x := args[0], Tensor) and not x.requires_grad:
            args = (x.detach().requires_grad_(), *args[1:])
        return call(*args, **kwargs)

    return forward


@contextmanager
def shaped_by(batch: Batch) -> Iterator[None]:
    """What is compiled inside is kept and found by the lengths of this pass, and by the number of threads.

    torch's cache would else give code that another training's lengths had shaped.
    """
    shapes = [tuple(t.shape) for t in (batch.input_ids, batch.segments, batch.cu_seqlens, batch.keep)]
    before = torch.compiler.config.cache_key_tag
    torch.compiler.config.cache_key_tag = f"tunesmith {shapes} {torch.get_num_threads()}"
    try:
        yield
    finally:
        torch.compiler.config.cache_key_tag = before


def _graphs() -> int:
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def start(
    wanted: bool | Literal["auto"],
    layers: Callable[[], Iterable[nn.Module]],
    trial: Callable[[], None],
    note: Callable[[str], None],
    *,
    earns: bool,
    device: Device | None = None,
) -> Compiled:
    """The layers compiled, where they are wanted, can be, and (auto) `earns` says that it pays.

    `trial` is a forward and backward pass that leaves nothing behind; `note` takes the one line to be said.
    `device` is where, and in what number format.
    """
    if wanted is False or (wanted == "auto" and not earns):
        return Compiled()
    gain = _gain(device)
    cost = f"Training runs without compilation, about {gain / (1 - gain):.0%} slower"
    if lack := missing():
        note(f"{cost}: there isn't {lack}.")
        return Compiled()
    try:
        compiled = Compiled(list(layers()), kernels(device, note))
        seconds = compiled.build(trial)
    except Exception as error:  # whatever a model's code makes the compiler stumble over
        reason = (str(error).strip().splitlines() or [""])[0]
        note(f"{cost}: compiling failed with {type(error).__name__}: {reason[:120]}")
        return Compiled()
    note(f"Layers compiled in {seconds:.0f} s.")
    return compiled


def _has_kernels(device: Device | None) -> bool:
    return device is not None and device.kind == "cpu" and device.dtype is torch.bfloat16


def products(device: Device | None) -> str | None:
    """What the kernels in C++ of compiled training multiply with there (native.TILES); None without them."""
    return native.products() if _has_kernels(device) else None


def _gain(device: Device | None) -> float:
    by = products(device)
    return _KERNELS_GAIN[by] if by else _GAIN


def kernels(device: Device | None, note: Callable[[str], None]) -> Kernels:
    """What is there in C++ for this device and its number format; `note` is told of what can't be built."""
    if not _has_kernels(device):
        return Kernels()
    return build(torch._inductor.cpp_builder.get_cpp_compiler(), note)
