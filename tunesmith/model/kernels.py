"""The libraries in C++ that compiled training in bf16 on a CPU uses, all together."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from tunesmith.errors import ModelError
from tunesmith.model import attention_native, gated_native, head_native, linear_native, native

# By what is said of each where it can't be built.
KERNELS = {
    "Attention": attention_native, "LoRA": linear_native, "The feed-forward block": gated_native,
    "The head": head_native,
}  # fmt: skip


@dataclass(frozen=True)
class Kernels:
    """Those that this machine has, by their names in KERNELS."""

    libraries: Mapping[str, ctypes.CDLL] = field(default_factory=dict)

    @property
    def described(self) -> str | None:
        """Which they are and what they multiply with, for a run's record; None where there are none."""
        return f"{native.products()}: {', '.join(self.libraries)}" if self.libraries else None

    @contextmanager
    def using(self) -> Iterator[None]:
        """In use inside, each where it can."""
        with ExitStack() as stack:
            for name, library in self.libraries.items():
                stack.enter_context(KERNELS[name].using(library))
            yield


def build(compiler: str, note: Callable[[str], None]) -> Kernels:
    """All that this machine can run, compiled side by side; `note` is told of one that can't be built."""

    names = [name for name, kernel in KERNELS.items() if kernel.supported()]
    with ThreadPoolExecutor(len(KERNELS)) as pool:
        building = [pool.submit(KERNELS[name].build, compiler) for name in names]
    built: dict[str, ctypes.CDLL] = {}
    for name, made in zip(names, building, strict=True):
        try:
            built[name] = made.result()
        except (ModelError, OSError) as error:
            note(f"{name} runs without its kernel in C++, slower: {error}")
    return Kernels(built)
