"""docs/runs.md: a run's result is loaded by plain peft and transformers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from tests.infer.made_run import made_run
from tunesmith.infer.local import load

PAGE = Path(__file__).parents[2] / "docs" / "runs.md"

# Of peft, about the tiny model.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")


def test_the_recipe_of_the_page_gives_the_run_s_own_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = made_run(tmp_path / "runs" / "my-1")
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    code = code.replace('"BASE"', repr(str(tmp_path / "runs" / "base"))).replace(
        "=100", "=8, do_sample=False"
    )
    exec(compile(code, str(PAGE), "exec"), scope := {})  # type: ignore[var-annotated]
    told = capsys.readouterr().out
    model = load(str(run.path), dtype="fp32")
    ours = model.chat("How do I ask for leave?", max_new_tokens=8).strip()
    assert len(ours) > 1
    assert told.strip().startswith(ours)  # which leaves out the half of a character at the end
    assert scope["model"].dtype is torch.float32
