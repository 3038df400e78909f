"""The machine: device, number format, cores, memory, rank.

The CPU paths are tested. What an NVIDIA or Apple GPU answers was written from torch's documentation and is
marked "untested here".
"""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path

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

    @property
    def dtype_name(self) -> str:
        """bfloat16, float32 or float16."""
        return str(self.dtype).removeprefix("torch.")


def pick(dtype: str = "auto") -> Device:
    """The best device of this machine: NVIDIA GPU, Apple GPU, else CPU.

    `dtype` auto is bf16 where the machine multiplies it natively, else fp32.

    Raises SettingsError for a format that is unknown or that the device can't train in.
    """
    if dtype != "auto" and dtype not in DTYPES:
        raise SettingsError(f"There is no dtype {dtype!r}.", fix=f"Use auto, {', '.join(DTYPES)}.")
    kind = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if dtype == "fp16" and kind == "cpu":
        raise SettingsError(
            "train.dtype fp16 needs a GPU; this machine computes on its CPU.",
            fix="Use dtype=auto, bf16 or fp32.",
        )
    wanted = DTYPES[dtype] if dtype != "auto" else torch.bfloat16 if native_bf16(kind) else torch.float32
    # Under torchrun each process has its own GPU. Untested here: this machine has none.
    place = (
        torch.device(kind, int(os.environ.get("LOCAL_RANK", "0"))) if kind == "cuda" else torch.device(kind)
    )
    return Device(place, wanted, _name(place))


def native_bf16(kind: str = "cpu") -> bool:
    """Whether the machine multiplies bf16 in hardware (emulated bf16 is slower than fp32)."""
    if kind == "cuda":  # untested here
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if kind == "mps":  # untested on Apple hardware: fp32 is the safe choice
        return False
    # oneDNN calls bf16 supported on any AVX-512 machine, where it emulates it: ask for the instructions.
    found = torch.cpu.get_capabilities()
    if any(found.get(name) for name in ("avx512_bf16", "amx_bf16", "avx10_2")):
        return True
    if platform.machine() in ("aarch64", "arm64") and sys.platform == "linux":  # untested here
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return False


def cores() -> int:
    """CPU cores that this process may run on."""
    # macOS has no affinity; psutil and os leave the function out there.
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def available_memory(kind: str = "cpu") -> int:
    """Free bytes: of the GPU, or of the machine within its container's limit."""
    if kind == "cuda":  # untested here
        return int(torch.cuda.mem_get_info()[0])
    free = int(psutil.virtual_memory().available)
    if (limit := container_memory()) is not None:
        free = min(free, limit)
    if kind == "mps":  # untested here; an Apple GPU shares the machine's memory, up to a limit of its own
        free = min(free, torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory())
    return max(0, free)


def peak_memory(kind: str = "cpu") -> int:
    """Largest number of bytes held so far: by torch on an NVIDIA GPU, by the process elsewhere."""
    if kind == "cuda":  # untested here
        return int(torch.cuda.max_memory_allocated())
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def forget_peak_memory(kind: str = "cpu") -> bool:
    """Let `peak_memory` count from what is held now; False where the system has no way to.

    Linux: proc(5), clear_refs 5 resets the peak resident size, which getrusage reports as well.
    """
    if kind == "cuda":  # untested here
        torch.cuda.reset_peak_memory_stats()
        return True
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def rank() -> int:
    """This process's number under torchrun, 0 alone."""
    return int(os.environ.get("RANK", "0"))


def container_memory(
    proc: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")
) -> int | None:
    """Bytes that this process's control groups still allow, None without a limit (or outside Linux).

    Each group's limit holds for all below it, so every level from the process up to `root` is asked.
    Source: https://docs.kernel.org/admin-guide/cgroup-v2.html and cgroup-v1/memory.html.
    """
    try:
        lines = proc.read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    left = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        v1 = "memory" in controllers.split(",")
        if not v1 and controllers:
            continue
        top = root / "memory" if v1 else root
        names = (
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            if v1
            else ("memory.max", "memory.current", "inactive_file")
        )
        group = top / path.strip("/")
        # A container may see the host's path, which doesn't exist inside; its own limit is then at the top.
        for place in (group, *group.parents):
            if (free := _left_in(place, *names)) is not None:
                left.append(free)
            if place == top:
                break
    return min(left, default=None)


def _left_in(group: Path, limit_file: str, used_file: str, cache_key: str) -> int | None:
    try:
        limit = int((group / limit_file).read_text(encoding="ascii"))
        used = int((group / used_file).read_text(encoding="ascii"))
        stat = dict(line.split() for line in (group / "memory.stat").read_text(encoding="ascii").splitlines())
    except (OSError, ValueError):  # no such group, or "max": no limit
        return None
    if limit >= 1 << 60:  # version 1 writes "no limit" as a huge number
        return None
    # File pages that nobody is using count as used, but the kernel gives them away first.
    return max(0, limit - used + int(stat.get(cache_key, 0)))


def _name(device: torch.device) -> str:
    if device.type == "cuda":  # untested here
        return str(torch.cuda.get_device_name(device))
    if device.type == "mps":  # untested here
        return f"Apple GPU ({platform.machine()})"
    count = cores()
    return f"CPU, {count} core{'s' if count > 1 else ''} ({platform.machine()})"
