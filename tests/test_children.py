"""Children run tunesmith's own modules, whatever lies in the folder that a person is in."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tunesmith.children import python_child


def test_a_child_imports_nothing_from_the_current_folder(tmp_path: Path) -> None:
    for name in ("json.py", "tunesmith.py", "dataclasses.py"):
        (tmp_path / name).write_text("open('touched', 'w')\nraise SystemExit(9)\n", encoding="utf-8")
    command = python_child("tunesmith.export.config")
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env={}, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert not (tmp_path / "touched").exists()


def test_every_child_is_started_so() -> None:
    package = Path(__file__).parents[1] / "tunesmith"
    starts = [file.name for file in package.rglob("*.py") if "sys.executable, " in file.read_text("utf-8")]
    assert starts == ["children.py"]
