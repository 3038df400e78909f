"""Turns between processes, with drivers that only count: who goes when, what becomes of one that fails."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from bench import race as race_module
from bench.race import Contender, race
from bench.workloads import Laid, workloads
from tunesmith.data.encode import Example
from tunesmith.records import Origin

DRIVER = """
import sys
sys.path.insert(0, {root!r})
from bench.pace import Pace, read_spec
pace, spec = Pace(), read_spec()
print("libraries print whatever they like")
for step in range(100):
    pace.wait()
    with open({log!r}, "a") as file:
        file.write(spec["options"]["letter"])
    if spec["options"].get("fails") == step:
        raise SystemExit("out of luck")
    pace.loss = float(step)
"""


@pytest.fixture
def counting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose bench/drive_count.py is the driver; returns the file in which turns are written."""
    log = tmp_path / "turns"
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "__init__.py").write_text("", encoding="utf-8")
    source = race_module.ROOT / "bench" / "pace.py"
    (tmp_path / "bench" / "pace.py").write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "bench" / "drive_count.py").write_text(
        DRIVER.format(root=str(tmp_path), log=str(log)), encoding="utf-8"
    )
    monkeypatch.setattr(race_module, "ROOT", tmp_path)
    monkeypatch.setattr(race_module, "model_folder", lambda: tmp_path)
    return log


def laid(folder: Path, steps: int) -> dict[bool, Laid]:
    example = Example([1, 2], [False, True], Origin("rows", 1, 0), 0)
    files = Laid(folder / "rows.jsonl", folder / "rows.json", [[example]] * steps)
    return {False: files, True: files}


def test_contenders_take_turns(counting: Path, tmp_path: Path) -> None:
    contenders = [Contender(name, "count", {"letter": name}, sys.executable) for name in "ab"]
    lanes = race(workloads()["tang"], contenders, laid(tmp_path, 4), tmp_path, warmup=1, steps=3)
    assert counting.read_text(encoding="utf-8") == "abababab"
    assert [lane.losses for lane in lanes] == [[0.0, 1.0, 2.0, 3.0]] * 2
    assert all(lane.peak_bytes > 1_000_000 and len(lane.seconds) == 4 for lane in lanes)


def test_one_that_fails_is_out_with_its_reason(counting: Path, tmp_path: Path) -> None:
    contenders = [
        Contender("a", "count", {"letter": "a"}, sys.executable),
        Contender("b", "count", {"letter": "b", "fails": 1}, sys.executable),
    ]
    lanes = race(workloads()["tang"], contenders, laid(tmp_path, 4), tmp_path, warmup=1, steps=2)
    assert counting.read_text(encoding="utf-8") == "ababa"
    assert lanes[0].failed is None
    assert lanes[1].failed == "exit code 1: out of luck"
    assert lanes[1].losses == [0.0]


def test_more_steps_than_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="has 2 steps, 3 are asked for"):
        race(workloads()["tang"], [], laid(tmp_path, 2), tmp_path, warmup=1, steps=2)
