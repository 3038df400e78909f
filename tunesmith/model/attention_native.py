"""The attention of a pack in C++ (attention_cpu.cpp), for processors with products in bf16.

The library is built on first use by the machine's own compiler, which training with compiled layers needs
anyway, and kept in tunesmith's cache by everything that it depends on. Only compiled training in bf16 uses it
(`using`): the path that a run takes must not depend on what an earlier run left in the cache.
"""

from __future__ import annotations

import ctypes
import hashlib
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from tunesmith.errors import ModelError
from tunesmith.model.attention_kernels import scratch
from tunesmith.model.segments import tree
from tunesmith.model.source import home

SOURCE = Path(__file__).with_name("attention_cpu.cpp")
FLAGS = (
    "-O3", "-march=native", "-ffast-math", "-fno-finite-math-only", "-std=c++20", "-fopenmp",
    "-fPIC", "-shared", "-DCPU_CAPABILITY=AVX512", "-DCPU_CAPABILITY_AVX512",
)  # fmt: skip
LARGEST_HEAD = 256
# Fewer tasks than this many times the threads would leave some idle at the end.
TASKS_PER_THREAD = 4

_library: ctypes.CDLL | None = None


def supported() -> bool:
    """Whether this machine may build and run it: Linux on x86-64 with AVX-512 and products in bf16."""
    flags = _processor()
    known = sys.platform == "linux" and platform.machine() == "x86_64"
    return known and "avx512bw" in flags and ("amx_bf16" in flags or "avx512_bf16" in flags)


def build(compiler: str) -> ctypes.CDLL:
    """The library, compiled (5 s) unless the cache has it. Raises ModelError with the compiler's words."""
    target = home() / "kernels" / f"attention-{_key(compiler)}.so"
    if not target.is_file():
        _compile(compiler, target)
    try:
        library = ctypes.CDLL(str(target))
    except OSError as error:
        raise ModelError(f"The attention kernel can't be loaded: {error}", fix=f"Delete {target}.") from error
    if not library.attention_supported():
        raise ModelError(
            "torch has no products in bf16 for this processor.", fix="Train without compilation."
        )
    return library


@contextmanager
def using(library: ctypes.CDLL | None) -> Iterator[None]:
    """Attention by the library inside, where it can; None changes nothing."""
    global _library
    before, _library = _library, library or _library
    try:
        yield
    finally:
        _library = before


def fits(q: Tensor) -> bool:
    """Whether the library is in use and computes attention of such queries [T, H, D]."""
    size = q.shape[2]
    return _library is not None and q.dtype is torch.bfloat16 and size % 16 == 0 and size <= LARGEST_HEAD


def forward(q: Tensor, k: Tensor, v: Tensor, segments: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """q [T, H, D], k and v [T, K, D], segments [S, 3] -> out [T, H, D], lse [T, H] in fp32."""
    assert _library is not None
    q, k, v = map(_rows, (q, k, v))
    _, heads, size = q.shape
    kv_heads = k.shape[1]
    ends, roots = _layout(tuple(map(tuple, segments.tolist())))
    strides = _strides(q, k, v)  # named: a pointer doesn't keep what it points at
    out = q.new_empty(q.shape)
    lse = q.new_empty(q.shape[:2], dtype=torch.float32)
    _library.attention_forward(
        *_pointers(q, k, v, strides, ends, roots), *_sizes(len(roots), heads, kv_heads, size),
        ctypes.c_float(scale),
        *_sizes(torch.get_num_threads(), _heads_of_a_task(len(roots), heads, kv_heads)), *_pointers(out, lse),
    )  # fmt: skip
    return out, lse


def backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, segments: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, in their shapes; dout and out [T, H, D], lse [T, H]."""
    assert _library is not None
    dout, q, k, v = map(_rows, (dout, q, k, v))
    tokens, heads, size = q.shape
    kv_heads = k.shape[1]
    ends, roots = _layout(tuple(map(tuple, segments.tolist())))
    strides, out, lse = _strides(q, k, v, dout), out.contiguous(), lse.contiguous()
    dq, dk, dv = q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)
    parts: tuple[Tensor | None, Tensor | None] = (None, None)
    if kv_heads < heads and _heads_of_a_task(len(roots), heads, kv_heads) == 1:
        parts = (scratch("dk32", q.shape, lse), scratch("dv32", q.shape, lse))
    _library.attention_backward(
        *_pointers(dout, q, k, v, strides, out, lse, ends, roots),
        *_sizes(len(roots), tokens, heads, kv_heads, size), ctypes.c_float(scale),
        *_sizes(torch.get_num_threads()), *_pointers(dq, dk, dv, *parts),
    )  # fmt: skip
    return dq, dk, dv


def _heads_of_a_task(roots: int, heads: int, kv_heads: int) -> int:
    """All heads of a key head, which then is packed once; one by one where that leaves too few tasks."""
    return 1 if roots * kv_heads < TASKS_PER_THREAD * torch.get_num_threads() else heads // kv_heads


@lru_cache(maxsize=16)
def _layout(content: tuple[tuple[int, ...], ...]) -> tuple[Tensor, Tensor]:
    """Of each token the end of what sees it, [T] int32; of each root begin and end, the largest first."""
    segments = tree(content)
    lengths = torch.tensor([segment.length for segment in segments])
    ends = torch.tensor([segment.end for segment in segments], dtype=torch.int32).repeat_interleave(lengths)
    roots = [(segment.start, segment.end) for segment in segments if segment.parent < 0]
    return ends, torch.tensor(sorted(roots, key=lambda root: root[0] - root[1]))


def _rows(x: Tensor) -> Tensor:
    return x if x.stride(2) == 1 else x.contiguous()


def _strides(*tensors: Tensor) -> Tensor:
    return torch.tensor([stride for x in tensors for stride in x.stride()[:2]])


def _pointers(*tensors: Tensor | None) -> list[ctypes.c_void_p]:
    return [ctypes.c_void_p(None if x is None else x.data_ptr()) for x in tensors]


def _sizes(*numbers: int) -> list[ctypes.c_int64]:
    return [ctypes.c_int64(number) for number in numbers]


def _key(compiler: str) -> str:
    """Of everything that the library depends on: a cache may be shared by machines."""
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False).stdout
    parts = (
        SOURCE.read_text("utf-8"),
        " ".join(FLAGS),
        torch.__version__,
        version,
        " ".join(sorted(_processor())),
    )
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


@lru_cache(maxsize=1)
def _processor() -> frozenset[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line for line in lines if line.startswith("flags")), "").split()[2:])


def _compile(compiler: str, target: Path) -> None:
    folder = Path(torch.__file__).parent
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="building-", dir=target.parent) as place:
        made = Path(place) / target.name
        libraries = (f"-L{folder / 'lib'}", "-ltorch_cpu", "-lc10", f"-Wl,-rpath,{folder / 'lib'}")
        # No OpenMP library of its own: torch's, which is in the process already, has the threads.
        command = [compiler, *FLAGS, f"-I{folder / 'include'}", str(SOURCE), "-o", str(made), *libraries]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            errors = [
                line for line in done.stderr.splitlines() if "error" in line
            ] or done.stderr.splitlines()
            raise ModelError(
                "The attention kernel can't be compiled.",
                details=errors[:3],
                fix="Update the compiler (Debian, Ubuntu: apt install g++).",
            )
        made.replace(target)
