"""Libraries in C++ for this machine's own processor: built on first use, kept by everything they depend on.

Nothing binary is shipped: the source is compiled by the machine's compiler into tunesmith's cache.
"""

from __future__ import annotations

import ctypes
import hashlib
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import torch

from tunesmith.errors import ModelError
from tunesmith.places import home

# Sums in any order, as -ffast-math has them; but that one also links what turns off subnormal numbers for the
# whole process as soon as the library is loaded.
FLAGS = (
    "-O3", "-march=native", "-fno-math-errno", "-fno-signed-zeros", "-fno-trapping-math",
    "-fassociative-math", "-freciprocal-math", "-std=c++20", "-fopenmp",
    "-fPIC", "-shared", "-DCPU_CAPABILITY=AVX512", "-DCPU_CAPABILITY_AVX512",
)  # fmt: skip


TILES, VECTORS = "tiles (AMX)", "vectors (AVX-512)"


def supported() -> bool:
    """Whether this machine may build and run them: Linux on x86-64 with AVX-512 and products in bf16."""
    has = _processor()
    known = sys.platform == "linux" and platform.machine() == "x86_64"
    return known and {"avx512bw", "avx512_bf16"} <= has


def products() -> str | None:
    """What the kernels multiply bf16 with here, in words; None where there are none."""
    if not supported():
        return None
    return TILES if "amx_bf16" in _processor() and _tiles_permitted() else VECTORS


def flags() -> tuple[str, ...]:
    """What the compiler is called with: code for vectors where the system withholds the tiles."""
    withheld = "amx_bf16" in _processor() and products() == VECTORS
    return ("-U__AMX_BF16__", *FLAGS) if withheld else FLAGS


def compiler() -> str | None:
    """The C++ compiler of this machine, None where there is none."""
    return next((path for name in ("g++", "c++", "clang++") if (path := shutil.which(name))), None)


def sources(name: str) -> list[Path]:
    """The file of a library, and the headers that it may include."""
    folder = Path(__file__).parent
    return [folder / f"{name}_cpu.cpp", *sorted(folder.glob("*_cpu.h"))]


def build(name: str, sources: Sequence[Path], compiler: str) -> ctypes.CDLL:
    """The library of the first source, the others being its headers; compiled unless the cache has it.

    Raises ModelError with the compiler's words.
    """
    target = _target(name, sources, compiler)
    if not target.is_file():
        _compile(name, sources[0], compiler, target)
    try:
        return ctypes.CDLL(str(target))
    except OSError as error:
        raise ModelError(f"The {name} kernel can't be loaded: {error}", fix=f"Delete {target}.") from error


def is_built(name: str, sources: Sequence[Path], compiler: str) -> bool:
    """Whether the cache has the library."""
    return _target(name, sources, compiler).is_file()


def pointers(*tensors: torch.Tensor | None) -> list[ctypes.c_void_p]:
    """Where the numbers of each lie; whoever calls keeps the tensors."""
    return [ctypes.c_void_p(None if x is None else x.data_ptr()) for x in tensors]


def sizes(*numbers: int) -> list[ctypes.c_int64]:
    """Whole numbers as the libraries take them."""
    return [ctypes.c_int64(number) for number in numbers]


def _target(name: str, sources: Sequence[Path], compiler: str) -> Path:
    return home() / "kernels" / f"{name}-{_key(sources, compiler)}.so"


def _key(sources: Sequence[Path], compiler: str) -> str:
    """Of everything that the library depends on: a cache may be shared by machines."""
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False).stdout
    parts = (
        *(source.read_text("utf-8") for source in sources),
        " ".join(flags()),
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


@lru_cache(maxsize=1)
def _tiles_permitted() -> bool:
    """Asks the system for tiles, which this process may use from then on; some sandboxes refuse them."""
    refused: int = ctypes.CDLL(None).syscall(158, 0x1023, 18)  # arch_prctl, ARCH_REQ_XCOMP_PERM, tile data
    return refused == 0


def _compile(name: str, source: Path, compiler: str, target: Path) -> None:
    folder = Path(torch.__file__).parent
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="building-", dir=target.parent) as place:
        made = Path(place) / target.name
        libraries = (f"-L{folder / 'lib'}", "-ltorch_cpu", "-lc10", f"-Wl,-rpath,{folder / 'lib'}")
        # No OpenMP library of its own: torch's, which is in the process already, has the threads.
        command = [compiler, *flags(), f"-I{folder / 'include'}", str(source), "-o", str(made), *libraries]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            errors = [
                line for line in done.stderr.splitlines() if "error" in line
            ] or done.stderr.splitlines()
            raise ModelError(
                f"The {name} kernel can't be compiled.",
                details=errors[:3],
                fix="Update the compiler (Debian, Ubuntu: apt install g++).",
            )
        made.replace(target)
