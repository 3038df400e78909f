"""Where an export may go: what is there already stays, unless it's an export and nothing more."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import tunesmith as ts
from tests.infer.made_run import made_run
from tunesmith.disk import new_folder
from tunesmith.errors import RunError
from tunesmith.export.config import Request
from tunesmith.export.place import CARD, KIND, VERIFICATION, check_apart
from tunesmith.export.wanted import check_asked
from tunesmith.rundir import RunDir


@pytest.fixture
def tuned(tmp_path: Path) -> RunDir:
    return made_run(tmp_path / "run")


def _export(folder: Path, **record: object) -> Path:
    """A folder that looks like an export of one file."""
    folder.mkdir()
    content = {"kind": KIND, "files": ["model.safetensors", CARD], **record}
    (folder / VERIFICATION).write_text(json.dumps(content), encoding="utf-8")
    for name in ("model.safetensors", CARD):
        (folder / name).write_text("x", encoding="utf-8")
    return folder


def _asked(run: RunDir, output: Path, *, force: bool = True) -> bool:
    return check_asked(Request(str(run.path), "adapter", output, force=force)).replace


def test_an_export_is_replaced_when_that_is_asked_for(tuned: RunDir) -> None:
    first = ts.export(tuned, "adapter")
    with pytest.raises(RunError, match="is there already") as refused:
        ts.export(tuned, "adapter")
    assert "--force" in refused.value.fix
    again = ts.export(tuned, "adapter", force=True)
    assert [file.name for file in again.path.parent.iterdir()] == ["adapter"]
    (first.path / "mine.txt").write_text("x")
    with pytest.raises(RunError, match=r"holds what no export wrote: mine\.txt"):
        ts.export(tuned, "adapter", force=True)
    assert (first.path / "mine.txt").exists()


def test_what_isn_t_an_export_is_never_replaced(tuned: RunDir, tmp_path: Path) -> None:
    other = _export(tmp_path / "other", kind="another tool's")
    plain = tmp_path / "plain"
    plain.mkdir()
    (plain / "thesis.txt").write_text("x")
    for folder in (other, plain):
        with pytest.raises(RunError, match="isn't an export"):
            _asked(tuned, folder)


@pytest.mark.parametrize("name", ["sub/", ".git/", ".hidden", "notes.txt", "link"])
def test_what_was_added_to_an_export_is_named(tuned: RunDir, tmp_path: Path, name: str) -> None:
    folder = _export(tmp_path / "out")
    assert _asked(tuned, folder)
    if name.endswith("/"):
        (folder / name).mkdir()
    elif name == "link":
        (folder / name).symlink_to(tmp_path)
    else:
        (folder / name).write_text("x")
    with pytest.raises(RunError, match=f"no export wrote: {name.rstrip('/')}"):
        _asked(tuned, folder)


def test_files_that_appear_meanwhile_stay(tuned: RunDir, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    assert not _asked(tuned, out, force=False)

    def watch(what: str, done: int, _: int) -> None:
        if what == "writing adapter" and done == 1:
            (out / "thesis.txt").write_text("mine")

    with pytest.raises(RunError, match="is there already"):
        ts.export(tuned, "adapter", output=out, watch=watch)
    assert [file.name for file in out.iterdir()] == ["thesis.txt"]
    (out / "thesis.txt").unlink()
    assert ts.export(tuned, "adapter", output=out).path == out
    with pytest.raises(RunError, match="holds what no export wrote"):
        ts.export(tuned, "adapter", output=out, force=True, watch=watch)
    assert (out / "thesis.txt").read_text() == "mine"
    assert not list(tmp_path.glob(".*"))


def test_an_empty_folder_is_filled_and_one_with_files_is_not(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    with new_folder(target) as new:
        (new / "a").write_text("a")
    assert (target / "a").exists()
    with pytest.raises(RunError, match="is there already"), new_folder(target) as new:
        (new / "b").write_text("b")
    assert [file.name for file in target.iterdir()] == ["a"]


def test_an_export_never_takes_the_place_of_what_it_is_made_of(tuned: RunDir, tmp_path: Path) -> None:
    base = tmp_path / "base"
    with pytest.raises(RunError, match="would take the place"):
        ts.export(tuned, "merged", output=base / "out")
    for output in (base, base / "out", tmp_path):
        with pytest.raises(RunError, match="would take the place"):
            check_apart(output, [base])
    check_apart(tmp_path / "base-2", [base])


@pytest.mark.parametrize("inside", ["", "adapter", "adapter/out", "checkpoints/out", "new", "export"])
def test_a_run_keeps_its_own_folders(tuned: RunDir, inside: str) -> None:
    with pytest.raises(RunError, match="run") as refused:
        _asked(tuned, tuned.path / inside)
    assert "export/NAME" in refused.value.fix
    assert not _asked(tuned, tuned.path / "export" / "mine" / "own")


def test_the_current_folder_and_links_are_refused(
    tuned: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "a" / "b"
    here.mkdir(parents=True)
    monkeypatch.chdir(here)
    for output in (".", "..", "x/..", str(here.parent)):
        with pytest.raises(RunError, match="the folder that you are in"):
            _asked(tuned, Path(output))
    Path("link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunError, match="is a symbolic link"):
        _asked(tuned, Path("link"))
