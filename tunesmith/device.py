"""The machine: device, number format, threads, memory, rank."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass

import psutil
import torch

from tunesmith.errors import SettingsError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Device:
    """Where tensors live and how they are held. `name` is fit for a report."""

    torch_device: torch.device
    dtype: torch.dtype
    name: str

    @property
    def kind(self) -> str:
        """cpu, cuda or mps."""
        return self.torch_device.type


def pick(dtype: str = "auto") -> Device:
    """The best device of this machine: NVIDIA GPU, Apple GPU, else CPU.

    `dtype` auto is bf16 where the machine multiplies it natively, else fp32.

    Raises SettingsError for a format that the device can't train in.
    """
    kind = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if dtype == "fp16" and kind == "cpu":
        raise SettingsError(
            "train.dtype fp16 needs a GPU; this machine computes on its CPU.",
            fix="Use dtype=auto, bf16 or fp32.",
        )
    wanted = DTYPES[dtype] if dtype != "auto" else torch.bfloat16 if native_bf16(kind) else torch.float32
    return Device(torch.device(kind, 0) if kind == "cuda" else torch.device(kind), wanted, _name(kind))


def native_bf16(kind: str = "cpu") -> bool:
    """Whether the machine multiplies bf16 in hardware (emulated bf16 is slower than fp32)."""
    if kind == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if kind == "mps":
        return False  # untested on Apple hardware: fp32 is the safe choice
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()) and platform.machine() in (
        "x86_64",
        "AMD64",
        "aarch64",
        "arm64",
    )


def available_memory(kind: str = "cpu") -> int:
    """Free bytes: of the GPU, or of the machine within its container's limit."""
    if kind == "cuda":
        return int(torch.cuda.mem_get_info()[0])
    free = int(psutil.virtual_memory().available)
    limit = _container_limit()
    return free if limit is None else min(free, max(0, limit - psutil.Process().memory_info().rss))


def peak_memory(kind: str = "cpu") -> int:
    """Largest number of bytes held so far: by torch on a GPU, by the process on a CPU."""
    if kind == "cuda":
        return int(torch.cuda.max_memory_allocated())
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024


def rank() -> int:
    """This process's number under torchrun, 0 alone."""
    return int(os.environ.get("RANK", "0"))


def _name(kind: str) -> str:
    if kind == "cuda":
        return str(torch.cuda.get_device_name(0))
    cores = (
        len(psutil.Process().cpu_affinity()) if hasattr(psutil.Process, "cpu_affinity") else os.cpu_count()
    )
    return (
        f"Apple GPU ({platform.machine()})" if kind == "mps" else f"CPU, {cores} cores ({platform.machine()})"
    )


def _container_limit() -> int | None:
    try:
        with open("/sys/fs/cgroup/memory.max", encoding="ascii") as file:  # noqa: PTH123 - a kernel file
            text = file.read().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None
