"""The machine's own answers, on the machine that runs the tests; container limits from files as in Linux."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch

from tunesmith import device
from tunesmith.errors import SettingsError

cpu_only = pytest.mark.skipif(
    torch.cuda.is_available() or torch.backends.mps.is_available(), reason="this machine has a GPU"
)


@cpu_only
def test_auto_is_bf16_exactly_where_the_processor_multiplies_it():
    picked = device.pick()
    assert picked.kind == "cpu"
    assert picked.torch_device == torch.device("cpu")
    assert picked.dtype == (torch.bfloat16 if device.native_bf16() else torch.float32)
    assert picked.name.startswith("CPU, ")


@cpu_only
@pytest.mark.parametrize(("word", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_a_given_dtype_is_taken(word, dtype):
    assert device.pick(word).dtype == dtype


@cpu_only
def test_fp16_is_refused_on_a_cpu():
    with pytest.raises(SettingsError, match="fp16 needs a GPU"):
        device.pick("fp16")


def test_an_unknown_dtype_names_the_known_ones():
    with pytest.raises(SettingsError, match="fp32, bf16, fp16"):
        device.pick("float16")


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="the kernel's list is Linux's")
def test_native_bf16_follows_the_kernels_list_of_instructions():
    flags = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    assert device.native_bf16() == bool(flags & {"avx512_bf16", "amx_bf16", "avx10_2", "bf16"})


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity")
def test_cores_are_those_the_process_may_use():
    one = min(os.sched_getaffinity(0))
    code = (
        f"import os; os.sched_setaffinity(0, {{{one}}}); from tunesmith import device; print(device.cores())"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "1"


def test_cores_without_affinity_as_on_macos(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert device.cores() == os.cpu_count()


def test_memory_figures_are_those_of_this_machine():
    total = psutil.virtual_memory().total
    assert 0 < device.available_memory() <= total
    before = device.peak_memory()
    assert before >= psutil.Process().memory_info().rss // 2
    block = torch.ones(80_000_000)  # 320 MB, touched
    assert device.peak_memory() >= min(before, psutil.Process().memory_info().rss)
    assert device.peak_memory() > 320_000_000
    del block


def test_rank_is_torchruns(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    assert device.rank() == 0
    monkeypatch.setenv("RANK", "3")
    assert device.rank() == 3


def test_container_limit_of_cgroup_version_2(tmp_path):
    group(
        tmp_path / "job", {"memory.max": "1000", "memory.current": "700", "memory.stat": "inactive_file 100"}
    )
    assert device.container_memory(cgroup(tmp_path, "0::/job"), tmp_path) == 400


def test_the_tightest_group_above_the_process_decides(tmp_path):
    group(tmp_path / "a", {"memory.max": "500", "memory.current": "450", "memory.stat": "inactive_file 0"})
    group(tmp_path / "a/b", {"memory.max": "900", "memory.current": "100", "memory.stat": "inactive_file 0"})
    assert device.container_memory(cgroup(tmp_path, "0::/a/b"), tmp_path) == 50


def test_container_limit_of_cgroup_version_1_seen_from_inside(tmp_path):
    # Docker shows the host's path, and mounts the container's own group at the top.
    files = {
        "memory.limit_in_bytes": "1000",
        "memory.usage_in_bytes": "100",
        "memory.stat": "total_inactive_file 1",
    }
    group(tmp_path / "memory", files)
    proc = cgroup(tmp_path, "4:memory:/docker/abc", "2:cpu:/docker/abc", "0::/")
    assert device.container_memory(proc, tmp_path) == 901


@pytest.mark.parametrize("limit", ["max", str((1 << 63) - 4096)])
def test_no_container_limit(tmp_path, limit):
    group(tmp_path, {"memory.max": limit, "memory.current": "1", "memory.stat": "inactive_file 0"})
    assert device.container_memory(cgroup(tmp_path, "0::/"), tmp_path) is None
    assert device.container_memory(tmp_path / "missing", tmp_path) is None


def group(folder: Path, files: dict[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text + "\n", encoding="ascii")


def cgroup(folder: Path, *lines: str) -> Path:
    file = folder / "proc-self-cgroup"
    file.write_text("\n".join(lines) + "\n", encoding="ascii")
    return file
