"""A tiny random model as maker and judge: what it writes is rubbish, and is counted as such."""

from __future__ import annotations

import importlib.util
import json
import signal
from pathlib import Path
from typing import Any

import pytest

import tunesmith
from tests.families import save_tiny
from tests.synth.school import write_handbook
from tests.warm import Warm
from tunesmith.api import making
from tunesmith.errors import GenerateError, SettingsError

OPTIONS: dict[str, Any] = {
    "size": 130,
    "per_chunk": 1,
    "tokens": 24,
    "judge_tokens": 24,
    "valid": 0,
    "test": 0,
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model that reads long enough for a prompt."""
    return save_tiny("qwen2", tmp_path_factory.mktemp("models") / "tiny", max_position_embeddings=4096)


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoding that isn't held to JSON, as without the extra `schema`."""
    monkeypatch.setattr(making, "_form", lambda *_: {})


@pytest.mark.usefixtures("free")
def test_rubbish_is_counted_and_ends_with_an_error(tmp_path: Path, tiny: Path) -> None:
    write_handbook(tmp_path, 2)
    told: list[str] = []
    for _ in range(2):  # the second call asks nothing and says the same
        with pytest.raises(GenerateError, match="No row came out") as error:
            tunesmith.make(
                tmp_path / "手册.txt", tmp_path / "rows.jsonl", model=str(tiny),
                judge=str(tiny), note=told.append, **OPTIONS,
            )  # fmt: skip
        assert "4 chunks -> 0 questions" in str(error.value)
        report = json.loads((tmp_path / "rows.report.json").read_text(encoding="utf-8"))
        # A model of chance writes on until it's cut off; should it end before, that is asked about once more.
        without, calls = report["account"]["without_rows"], report["calls"]
        again = without.get("qa: the reply was malformed twice", 0)
        cut = without.get("qa: cut off at 24 tokens: --tokens allows more", 0)
        assert (again + cut, len(without)) == (4, 1 if 0 in (again, cut) else 2)
        assert sum(one["calls"] for one in calls) == 4 + again
        assert report["maker"]["weights"]
    assert not (tmp_path / "rows.jsonl").exists()
    assert any("judges its own rows" in line for line in told)


@pytest.mark.slow  # hundreds of tokens, each with its mask
@pytest.mark.skipif(importlib.util.find_spec("llguidance") is None, reason="needs the extra schema")
def test_decoding_that_is_held_to_the_form_gives_rows(tmp_path: Path, tiny: Path) -> None:
    write_handbook(tmp_path, 1)
    try:
        result = tunesmith.make(
            tmp_path / "手册.txt", tmp_path / "rows.jsonl", model=str(tiny), no_judge=True,
            flagged="keep", **{**OPTIONS, "tokens": 700},
        )  # fmt: skip
        account = result.content["account"]
    except GenerateError:
        account = json.loads((tmp_path / "rows.report.json").read_text(encoding="utf-8"))["account"]
    assert account["without_rows"].get("qa: the reply was malformed twice", 0) == 0
    assert account["used"] == 2


@pytest.mark.usefixtures("free")
def test_chunks_are_counted_by_a_model_s_tokens(tmp_path: Path, tiny: Path) -> None:
    write_handbook(tmp_path, 4)
    sizes = {}
    for count_by in ("characters", str(tiny)):
        result = tunesmith.make(
            tmp_path / "手册.txt", tmp_path / "rows.jsonl", kinds=("continue",), size=150, count_by=count_by,
            force=True,
        )  # fmt: skip
        sizes[count_by] = result.content["account"]["chunks"]
    # The tiny tokenizer has a token for each byte or so: three of them for a Chinese character.
    assert sizes[str(tiny)] > sizes["characters"]


def test_settings_that_would_be_paid_for_in_vain_are_refused(tmp_path: Path) -> None:
    write_handbook(tmp_path, 1)
    for wrong in ({"num_return_sequences": 2, "do_sample": True}, {"max_new_tokens": 9}):
        with pytest.raises(SettingsError):
            tunesmith.make(tmp_path / "手册.txt", tmp_path / "r.jsonl", model="any", no_judge=True, **wrong)
    with pytest.raises(SettingsError, match="temprature"):
        tunesmith.make(tmp_path / "手册.txt", tmp_path / "r.jsonl", model="any", no_judge=True, temprature=1)
    assert [file.name for file in tmp_path.iterdir()] == ["手册.txt"]


@pytest.mark.slow  # three processes, each of which generates
def test_a_killed_local_model_goes_on_to_the_same_bytes(tmp_path: Path, tiny: Path, warm: Warm) -> None:
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
        write_handbook(tmp_path / name, 3)
    words = [
        *("make", "手册.txt", "--output", "rows.jsonl", "--model", tiny, "--no-judge", "--keep-flagged"),
        *("--size", "130", "--per-chunk", "1", "--tokens", "300", "--valid", "0", "--test", "0"),
    ]
    whole = warm.run(*words, folder=tmp_path / "whole", printed=tmp_path / "a")
    fail = {"TUNESMITH_FAIL_AT": "ledger.added:2"}
    died = warm.start(*words, folder=tmp_path / "killed", printed=tmp_path / "b", variables=fail).wait()
    assert died.code == -signal.SIGKILL, died.printed
    ended = warm.run(*words, folder=tmp_path / "killed", printed=tmp_path / "c")
    assert ended.code == whole.code
    for file in ("rows.jsonl", "rows.rejected.jsonl", "rows.sources.jsonl"):
        there = [tmp_path / name / file for name in ("whole", "killed")]
        assert there[0].exists() == there[1].exists()
        if there[0].exists():
            assert there[0].read_bytes() == there[1].read_bytes()
    assert (tmp_path / "whole/rows.rejected.jsonl").stat().st_size or whole.code == 0
