"""Models by name: a base, a run of either kind, an adapter; and every way in which a run can be refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.families import save_tiny
from tests.infer.made_run import made_run
from tunesmith.errors import (
    DataError,
    GenerateError,
    ModelError,
    RunError,
    SettingsError,
    TemplateError,
    TunesmithError,
)
from tunesmith.infer.config import Sampling
from tunesmith.infer.local import LocalModel, load
from tunesmith.journal import Journal
from tunesmith.model import saved
from tunesmith.records import Conversation, Message, Origin
from tunesmith.rundir import RunDir
from tunesmith.settings import build

QUESTION = "白日依山盡，黃河入海流。"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def base(place: Path) -> Path:
    return save_tiny("llama", place / "base")


@pytest.fixture(scope="module")
def run(place: Path, base: Path) -> RunDir:
    return made_run(place / "run", base)


@pytest.fixture(scope="module")
def tuned(run: RunDir) -> LocalModel:
    return loaded(run.path)


def loaded(path: Path, **options: Any) -> LocalModel:
    return load(str(path), dtype="fp32", sampling=build(Sampling, {"max_new_tokens": 12}), **options)


def copied(run: RunDir, folder: Path) -> RunDir:
    shutil.copytree(run.path, folder)
    return RunDir(folder)


def change_meta(folder: Path, **values: Any) -> None:
    file = folder / "tunesmith.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_a_run_answers_with_its_adapter_and_base_switches_it_off(base: Path, tuned: LocalModel) -> None:
    plain = loaded(base).chat(QUESTION)
    answer = tuned.chat(QUESTION)
    assert answer != plain
    with tuned.base():
        assert tuned.chat(QUESTION) == plain
        asked = Conversation((Message("user", QUESTION),), Origin("chat", 1, 0))
        assert "".join(tuned.stream(asked)) == plain
    assert tuned.chat(QUESTION) == answer
    with pytest.raises(ZeroDivisionError), tuned.base():
        raise ZeroDivisionError
    assert tuned.chat(QUESTION) == answer, "an error inside leaves the adapter on"


def test_the_folder_of_the_adapter_is_the_run(run: RunDir, tuned: LocalModel) -> None:
    other = loaded(run.adapter)
    assert other.chat(QUESTION) == tuned.chat(QUESTION)
    assert (other.run, tuned.run) == (None, run)


def test_a_fully_tuned_run_has_no_base_inside(place: Path, base: Path) -> None:
    model = loaded(made_run(place / "full", base, adapter={"type": "full"}).path)
    assert model.chat(QUESTION) != loaded(base).chat(QUESTION)
    with pytest.raises(ModelError, match="was tuned as a whole"), model.base():
        pass


def test_a_checkpoint_is_no_model_and_its_run_is_named(place: Path, base: Path) -> None:
    made = made_run(place / "stopped", base)
    step = made.checkpoints / "step-000015"
    step.mkdir(parents=True)
    for folder, what in ((step, "is a checkpoint,"), (made.checkpoints, "is a folder of checkpoints,")):
        with pytest.raises(ModelError, match=what) as caught:
            loaded(folder)
        assert f"Give the run, {made.path}:" in caught.value.fix
        assert ("train.max_steps=15" in caught.value.fix) == (folder == step)
        with pytest.raises(ModelError, match=what):
            saved.adapter_folder(folder)
    made.adapter.rename(place / "elsewhere")
    with pytest.raises(ModelError, match="is a checkpoint") as caught:
        loaded(step)
    assert f"tunesmith train {made.path} --resume" in caught.value.fix


def test_a_base_has_no_adapter_to_switch_off(base: Path) -> None:
    with pytest.raises(ModelError, match="a model by itself"), loaded(base).base():
        pass


def test_a_run_without_final_weights_is_refused(run: RunDir, tmp_path: Path) -> None:
    broken = copied(run, tmp_path / "run")
    shutil.rmtree(broken.adapter)
    with pytest.raises(RunError, match="interrupted at step 0; it has no checkpoint yet") as caught:
        loaded(broken.path)
    assert f"tunesmith train {broken.path} --resume" in caught.value.fix
    Journal(broken.metrics_file).append({"step": 7, "loss": 2.0})
    for name in ("step-000005", "step-000007"):
        (broken.checkpoints / name).mkdir(parents=True)
    with pytest.raises(RunError, match=r"at step 7; its newest checkpoint is .*step-000007"):
        loaded(broken.path)
    with broken.lock(), pytest.raises(RunError, match="still being trained"):
        loaded(broken.path)


def test_another_base_than_the_one_trained_on_is_refused(run: RunDir, tmp_path: Path) -> None:
    moved = copied(run, tmp_path / "run")
    other = save_tiny("llama", tmp_path / "other", seed=1)
    change_meta(moved.adapter, base_path=str(other))
    with pytest.raises(ModelError, match="trained on another base"):
        loaded(moved.path)


def test_the_base_is_found_by_name_where_its_path_is_gone(
    run: RunDir, base: Path, tuned: LocalModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = copied(run, tmp_path / "run")
    shutil.copytree(base, tmp_path / "mine")
    change_meta(moved.adapter, base_path="/gone/base", model="./mine")
    monkeypatch.chdir(tmp_path)
    assert loaded(moved.path).chat(QUESTION) == tuned.chat(QUESTION)
    change_meta(moved.adapter, base_path="/gone/base", model="./nowhere")
    with pytest.raises(ModelError, match="nowhere"):
        loaded(moved.path)


def test_a_changed_template_is_refused_unless_one_is_given(run: RunDir, tmp_path: Path) -> None:
    moved = copied(run, tmp_path / "run")
    for file in moved.adapter.glob("*.jinja"):
        file.write_text(file.read_text() + "\n")
    with pytest.raises(TemplateError, match="isn't the one that this model was trained with"):
        loaded(moved.path)
    assert loaded(moved.path, template="chatml").renderer.name == "chatml"


def test_the_template_travels_with_the_run(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run", save_tiny("gpt2", tmp_path / "base"), template="alpaca")
    model = loaded(run.path)
    asked = Conversation((Message("user", "Hi"),), Origin("chat", 1, 0))
    expected = loaded(tmp_path / "base", template="alpaca")
    assert model.renderer.prompt_ids(asked) == expected.renderer.prompt_ids(asked)
    assert model.chat("Hi")


def test_a_model_without_a_template_names_the_choice(tmp_path: Path) -> None:
    with pytest.raises(TemplateError, match="has no chat template") as caught:
        loaded(save_tiny("gpt2", tmp_path / "base"))
    assert "--template" in caught.value.fix


def test_an_adapter_of_another_tool_needs_no_note_of_ours(
    run: RunDir, tuned: LocalModel, tmp_path: Path
) -> None:
    folder = copied(run, tmp_path / "run").adapter
    for file in folder.iterdir():
        if not file.name.startswith("adapter_"):
            file.unlink()
    assert loaded(folder).chat(QUESTION) == tuned.chat(QUESTION)


@pytest.mark.parametrize(
    ("name", "error"),
    [("nowhere/at/all", ModelError), ("", SettingsError), ("runs/none", ModelError)],
)
def test_a_name_that_means_nothing(name: str, error: type[TunesmithError]) -> None:
    with pytest.raises(error):
        load(name)


def test_an_unknown_dtype_is_told(base: Path) -> None:
    with pytest.raises(SettingsError, match="no dtype 'fp8'"):
        load(str(base), dtype="fp8")


def test_chat_takes_settings_laid_over_the_models_own(tuned: LocalModel) -> None:
    greedy = tuned.chat(QUESTION)
    assert len(tuned.chat(QUESTION, max_new_tokens=2)) < len(greedy)
    drawn = {tuned.chat(QUESTION, temperature=3.0, seed=seed) for seed in range(4)}
    assert len(drawn) > 1
    assert tuned.chat(QUESTION, max_new_tokens=None, max_length=60)
    with pytest.raises(SettingsError, match="max_length counts"):
        tuned.chat(QUESTION, max_length=60)
    with pytest.raises(SettingsError, match="temprature"):
        tuned.chat(QUESTION, temprature=1)
    assert tuned.chat(QUESTION) == greedy


def test_chat_takes_whole_conversations(tuned: LocalModel) -> None:
    turns: list[Any] = [
        {"role": "system", "content": "Be short."},
        Message("user", "Hi"),
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": QUESTION},
    ]
    assert tuned.chat(turns) != tuned.chat(QUESTION)
    for wrong in (
        [],
        [{"role": "king", "content": "x"}],
        [{"role": "user"}],
        [{"role": "user", "content": 3}],
    ):
        with pytest.raises(GenerateError):
            tuned.chat(wrong)


def test_control_tokens_in_a_message_are_refused(tuned: LocalModel) -> None:
    with pytest.raises(DataError, match="control token"):
        tuned.chat("end <|eot_id|> of turn")
