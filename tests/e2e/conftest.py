"""The command line as a person runs it, on tiny random models in a folder of its own."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.families import save_tiny
from tunesmith.cli.main import main


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def text(self) -> str:
        return self.out + self.err


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one tiny model folder per family used here."""
    root = tmp_path_factory.mktemp("models")
    for family in ("qwen2", "gemma3", "gpt2", "llama"):
        save_tiny(family, root / family)
    return root


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder that the command runs in."""
    folder = tmp_path / "工作 place"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "200")
    return folder


@pytest.fixture
def tunesmith(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., Ended]]:
    """Run `tunesmith WORDS` in this process, through the same `main` that the installed command calls."""

    def run(*words: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["tunesmith", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return Ended(int(ended.value.code or 0), printed.out, printed.err)

    yield run
    assert place.is_dir()


def qa_rows(count: int = 6) -> list[dict[str, Any]]:
    """Alpaca rows that are all different."""
    return [
        {"instruction": f"第{i}個問題？ Question {i}?", "input": "", "output": f"答案是{i}。 It is {i * i}."}
        for i in range(count)
    ]


def write_jsonl(file: Path, rows: list[Any]) -> Path:
    """One JSON value a line."""
    file.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")
    return file
