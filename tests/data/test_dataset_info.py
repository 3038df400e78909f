"""dataset_info.json: read as LLaMA-Factory reads it, and nothing in it is ignored."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from tests.data.rows import messages_of
from tunesmith.data.check import load
from tunesmith.data.config import DataFile
from tunesmith.data.dataset_hub import files_of_split
from tunesmith.data.dataset_info import resolve
from tunesmith.errors import DataError, MissingExtraError, SettingsError
from tunesmith.records import Conversation, Labelled, Preference, Text

ROW = {"instruction": "i", "input": "n", "output": "o", "system": "s", "history": [["u", "a"]]}


def info(folder: Path, entry: Any, *rows: Any, name: str = "rows.json") -> Path:
    """dataset_info.json with the entry `mine` (of file rows.json unless it says otherwise), and the rows."""
    if isinstance(entry, dict) and not any(key.endswith(("url", "file_name")) for key in entry):
        entry = {"file_name": name} | entry
    (folder / "dataset_info.json").write_text(json.dumps({"mine": entry, "other": {}}), encoding="utf-8")
    (folder / name).write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    return folder / "dataset_info.json"


def records(folder: Path, entry: Any, *rows: Any) -> list[Any]:
    file = info(folder, entry, *rows)
    return load([DataFile(path="mine", weight=1.0)], str(file)).records


def turns(folder: Path, entry: Any, *rows: Any) -> list[tuple[str, str]]:
    (record,) = records(folder, entry, *rows)
    return messages_of(record)


def refused(folder: Path, entry: Any, error: type[Exception] = SettingsError) -> str:
    with pytest.raises(error) as caught:
        resolve(info(folder, entry, ROW), "mine")
    return str(caught.value)


def test_without_columns_the_defaults_hold_and_system_and_history_are_none(tmp_path: Path) -> None:
    assert turns(tmp_path, {}, ROW) == [("user", "i\nn"), ("assistant", "o")]
    summary = load([DataFile(path="mine", weight=1.0)], str(tmp_path)).files[0]
    assert summary.unused_columns == ["system", "history"]  # not read, but not unsaid either
    assert "dataset_info.json says so for 'mine'" in summary.reason


def test_a_column_left_out_of_columns_is_none_not_its_default(tmp_path: Path) -> None:
    columns = {"prompt": "instruction", "response": "output"}
    assert turns(tmp_path, {"columns": columns}, ROW) == [("user", "i"), ("assistant", "o")]


def test_the_entry_of_the_novel(tmp_path: Path) -> None:
    columns = {
        "prompt": "instruction",
        "query": "input",
        "response": "output",
        "system": "",
        "history": "history",
    }
    assert turns(tmp_path, {"formatting": "alpaca", "columns": columns}, ROW) == [
        ("user", "u"),
        ("assistant", "a"),
        ("user", "i\nn"),
        ("assistant", "o"),
    ]


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"columns": {"prompt": "instruction"}}, ("columns leaves out response", '"response": "output"')),
        ({"columns": {"response": "output", "prompt": ""}}, ("columns leaves out prompt",)),
        ({"formatting": "sharegpt", "columns": {"system": "s"}}, ("leaves out messages", "conversations")),
        ({"ranking": True}, ("leaves out chosen", "leaves out rejected")),
        ({"file_nam": "x"}, ("file_nam", "did you mean 'file_name'?")),
        ({"columns": {"promt": "x"}}, ("columns.promt", "did you mean 'prompt'?")),
        ({"tags": {"user_tg": "x"}}, ("tags.user_tg", "did you mean 'user_tag'?")),
        ({"tags": {"user_tag": "gpt"}}, ("'gpt' for two things",)),
        ({"formatting": "shargpt"}, ("did you mean 'sharegpt'?",)),
        ({"num_samples": 0}, ("at least 1",)),
        ({"num_samples": "5"}, ("whole number",)),
        ({"ranking": "yes"}, ("true or false",)),
        ({"file_name": 5}, ("file_name must be a text",)),
        ({"file_name": "rows.json", "folder": "x"}, ("folder belongs to data sets of a hub",)),
        ({"file_name": "rows.json", "split": "test"}, ("no split 'test'",)),
        ({"columns": {"prompt": "a", "response": "b", "images": "c"}}, ("images",)),
        ({"script_url": "load.py", "file_name": "rows.json"}, ("script",)),
        ({"cloud_file_name": "s3://x"}, ("cloud_file_name",)),
        ({"file_name": ""}, ("no source",)),
        (["rows.json"], ("isn't an object",)),
        ({"typo": 1, "columns": {"also": 2}}, ("'typo'", "columns.also")),
    ],
)  # fmt: skip
def test_wrong_entries_are_refused_with_every_problem(
    tmp_path: Path, entry: Any, words: tuple[str, ...]
) -> None:
    message = refused(tmp_path, entry)
    assert all(word in message for word in words), message


def test_names_and_files_that_are_not_there(tmp_path: Path) -> None:
    file = info(tmp_path, {}, ROW)
    with pytest.raises(SettingsError, match=r"did you mean 'mine'\?") as caught:
        resolve(file, "mien")
    assert "mine, other" in caught.value.fix
    with pytest.raises(DataError, match="no file"):
        resolve(tmp_path / "none.json", "mine")
    with pytest.raises(DataError, match=r"no file .*row\.json"):
        load([DataFile(path="mine", weight=1.0)], str(info(tmp_path, {"file_name": "row.json"}, ROW)))
    file.write_text('{"mine": {"file_name": "a"},}', encoding="utf-8")
    with pytest.raises(DataError, match="valid JSON"):
        resolve(file, "mine")
    file.write_text('{"mine": {}, "mine": {}}', encoding="utf-8")
    with pytest.raises(DataError) as doubled:
        resolve(file, "mine")
    assert "'mine' is there twice" in str(doubled.value)


def test_a_column_that_no_row_has_is_an_error_with_the_nearest(tmp_path: Path) -> None:
    columns = {"prompt": "instructon", "response": "output"}
    with pytest.raises(DataError, match="no column 'instructon'") as caught:
        records(tmp_path, {"columns": columns}, ROW)
    assert "did you mean 'instruction'?" in str(caught.value)
    assert records(tmp_path, {}, {"instruction": "i", "output": "o"})  # a default may be missing


def test_tags_and_their_defaults(tmp_path: Path) -> None:
    row = {"talk": [{"who": "师", "says": "a"}, {"who": "bot", "says": "b"}], "conversations": []}
    tags = {"role_tag": "who", "content_tag": "says", "user_tag": "师", "assistant_tag": "bot"}
    entry = {"formatting": "sharegpt", "columns": {"messages": "talk"}, "tags": tags}
    assert turns(tmp_path, entry, row) == [("user", "a"), ("assistant", "b")]

    said = [("system", "s"), ("human", "a"), ("gpt", "b")]
    human = {"conversations": [{"from": who, "value": text} for who, text in said]}
    assert turns(tmp_path, {"formatting": "sharegpt"}, human)[0] == ("system", "s")
    user = {"conversations": [{"from": "user", "value": "a"}, {"from": "gpt", "value": "b"}]}
    with pytest.raises(DataError) as caught:
        records(tmp_path, {"formatting": "sharegpt"}, user)
    assert "unknown role 'user'" in str(caught.value)


def test_openai(tmp_path: Path) -> None:
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    entry = {"formatting": "openai", "columns": {"messages": "messages"}}
    assert turns(tmp_path, entry, row) == [("user", "a"), ("assistant", "b")]
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    assert turns(tmp_path, entry | {"tags": tags}, row) == [("user", "a"), ("assistant", "b")]


def test_ranking_labels_and_raw_text(tmp_path: Path) -> None:
    columns = {"prompt": "q", "chosen": "good", "rejected": "bad"}
    (record,) = records(tmp_path, {"ranking": True, "columns": columns}, {"q": "a", "good": "b", "bad": "c"})
    assert isinstance(record, Preference)
    assert (record.chosen[0].content, record.rejected[0].content) == ("b", "c")
    columns = {"prompt": "q", "response": "a", "kto_tag": "ok"}
    (record,) = records(tmp_path, {"columns": columns}, {"q": "a", "a": "b", "ok": False})
    assert isinstance(record, Labelled)
    assert record.label is False
    (record,) = records(tmp_path, {"columns": {"prompt": "text"}}, {"text": "raw"})
    assert isinstance(record, Text)


def test_mask_history_trains_the_last_reply_only(tmp_path: Path) -> None:
    columns = {"prompt": "instruction", "response": "output", "history": "history"}
    (record,) = records(tmp_path, {"columns": columns, "mask_history": True}, ROW)
    assert isinstance(record, Conversation)
    assert [turn.train for turn in record.messages] == [None, False, None, None]
    (record,) = records(tmp_path, {"columns": columns}, ROW)
    assert [turn.train for turn in record.messages] == [None] * 4


def test_num_samples_draws_and_repeats_and_is_counted(tmp_path: Path) -> None:
    rows = [{"instruction": str(n), "output": "o"} for n in range(10)]
    file = str(info(tmp_path, {"num_samples": 4}, *rows))
    few = load([DataFile(path="mine", weight=1.0)], file)
    assert (len(few.records), few.files[0].taken, few.files[0].left_out, few.rows) == (4, 4, 6, 10)
    assert few.records == load([DataFile(path="mine", weight=1.0)], file).records
    assert few.records != load([DataFile(path="mine", weight=1.0)], file, seed=1).records
    many = load([DataFile(path="mine", weight=1.0)], str(info(tmp_path, {"num_samples": 13}, *rows)))
    assert (len(many.records), many.files[0].left_out, many.to_json()["repeated"]) == (13, 0, 3)


def test_a_file_that_is_not_the_one_meant(tmp_path: Path) -> None:
    file = info(tmp_path, {}, ROW)
    sha1 = hashlib.sha1((tmp_path / "rows.json").read_bytes()).hexdigest()
    assert len(records(tmp_path, {"file_sha1": sha1}, ROW)) == 1
    info(tmp_path, {"file_sha1": "0" * 40}, ROW)
    with pytest.raises(DataError, match=f"sha1 is {sha1}"):
        resolve(file, "mine")


def test_a_folder_of_files(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    for name in "ab":
        (tmp_path / "shards" / f"{name}.json").write_text(json.dumps([ROW]))
    found = resolve(info(tmp_path, {"file_name": "shards"}), "mine")
    assert found.paths == [f"{tmp_path}/shards/a.json", f"{tmp_path}/shards/b.json"]


# Hubs


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The snapshot folder of org/poems, as an earlier download leaves it in the cache."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub" / "datasets--org--poems"
    commit = "0123456789abcdef0123456789abcdef01234567"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    return snapshot


def put(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(json.dumps({"instruction": name, "output": "o"}) + "\n")


def chosen(root: Path, **how: str) -> list[str]:
    files = files_of_split(root, "org/poems", **({"subset": "", "split": "train", "folder": ""} | how))
    return [str(Path(file).relative_to(root)) for file in files]


def test_a_hub_data_set_in_the_cache_is_read_offline(tmp_path: Path, cached: Path) -> None:
    put(cached, "train.jsonl", "test.jsonl")
    entry = {"hf_hub_url": "org/poems", "ms_hub_url": "org/poems", "file_name": "rows.json"}
    assert turns(tmp_path, entry, ROW) == [("user", "train.jsonl"), ("assistant", "o")]


@pytest.mark.usefixtures("cached")
def test_a_hub_that_cannot_be_reached_is_one_error(tmp_path: Path) -> None:
    message = refused(tmp_path, {"hf_hub_url": "org/other"}, DataError)
    assert "org/other isn't on this machine" in message
    assert "HF_HUB_OFFLINE" in message
    assert "isn't the id" in refused(tmp_path, {"hf_hub_url": "a/b/c"}, DataError)


def test_modelscope_needs_its_package(tmp_path: Path) -> None:
    with pytest.raises(MissingExtraError, match="modelscope"):
        resolve(info(tmp_path, {"ms_hub_url": "org/poems"}), "mine")


def test_splits_subsets_and_folders_by_name(tmp_path: Path) -> None:
    put(
        tmp_path,
        "data/train-00000-of-00002.jsonl",
        "data/train-00001-of-00002.jsonl",
        "data/validation.jsonl",
    )
    put(tmp_path, "README.md", "script.py")
    assert chosen(tmp_path) == ["data/train-00000-of-00002.jsonl", "data/train-00001-of-00002.jsonl"]
    assert chosen(tmp_path, split="validation") == ["data/validation.jsonl"]
    assert chosen(tmp_path, folder="data", split="valid") == ["data/validation.jsonl"]
    with pytest.raises(DataError, match="no split 'test'") as caught:
        chosen(tmp_path, split="test")
    assert "train, validation" in caught.value.fix
    with pytest.raises(DataError, match="no file to read"):
        chosen(tmp_path, subset="tang")


def test_files_without_a_split_in_their_name_are_train(tmp_path: Path) -> None:
    put(tmp_path, "tang/poems.jsonl", "song/poems.jsonl")
    assert chosen(tmp_path) == ["song/poems.jsonl", "tang/poems.jsonl"]
    assert chosen(tmp_path, subset="tang") == ["tang/poems.jsonl"]
    put(tmp_path, "tang/poems.csv")
    with pytest.raises(DataError, match="several kinds"):
        chosen(tmp_path)


def test_the_read_me_says_which_files_are_which(tmp_path: Path) -> None:
    put(tmp_path, "a.jsonl", "b.jsonl", "c/1.jsonl")
    configs = """---
configs:
- config_name: tang
  data_files:
  - split: train
    path: [b.jsonl, "c/*.jsonl"]
  - split: test
    path: a.jsonl
- config_name: bad
  data_files: ../../secret.json
---
"""
    (tmp_path / "README.md").write_text(configs)
    assert chosen(tmp_path, subset="tang") == ["b.jsonl", "c/1.jsonl"]
    assert chosen(tmp_path, subset="tang", split="test") == ["a.jsonl"]
    with pytest.raises(DataError, match="several subsets"):
        chosen(tmp_path)
    with pytest.raises(DataError, match=r"did you mean 'tang'\?"):
        chosen(tmp_path, subset="tan")
    with pytest.raises(DataError, match="outside"):
        chosen(tmp_path, subset="bad")
