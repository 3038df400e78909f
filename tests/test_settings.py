"""Settings: every key is known, every mistake of a file is told at once, each field arrives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tunesmith.errors import SettingsError
from tunesmith.settings import build, known_keys, merge, parse_overrides, read_yaml
from tunesmith.train.config import Job, job_from, load_job

MINIMAL = {"data": {"train": "rows.jsonl"}}

# One value that differs from the default for every setting of a job, with what else it needs to be legal.
OTHER_VALUES: dict[str, Any] = {
    "model": "some/model",
    "revision": "main",
    "output": "runs/x",
    "data.train": "other.jsonl",
    "data.valid": 0.1,
    "data.info": "dataset_info.json",
    "data.bad_rows": "drop",
    "data.max_length": 77,
    "data.too_long": "split",
    "data.train_on": "last_reply",
    "data.template": "chatml",
    "data.packing": False,
    "data.share_prefixes": False,
    "adapter.type": "dora",
    "adapter.rank": 3,
    "adapter.alpha": 5,
    "adapter.dropout": 0.25,
    "adapter.targets": ["q_proj"],
    "adapter.rslora": True,
    "adapter.init": "pissa",
    "adapter.last_layers": 2,
    "adapter.continue_from": "runs/old",
    "quantization.type": "int8",
    "quantization.double_quant": False,
    "quantization.compute_dtype": "fp32",
    "train.objective": "sft",
    "train.epochs": 7,
    "train.max_steps": 9,
    "train.learning_rate": 0.5,
    "train.schedule": "linear",
    "train.schedule_options": {"num_cycles": 2},
    "train.warmup": 3,
    "train.tokens_per_step": 99,
    "train.batch_size": 3,
    "train.accumulate": 4,
    "train.microbatch_tokens": 55,
    "train.optimizer": "muon",
    "train.weight_decay": 0.3,
    "train.betas": [0.8, 0.9],
    "train.epsilon": 1e-5,
    "train.momentum": 0.7,
    "train.clip": 0.7,
    "train.label_smoothing": 0.2,
    "train.neftune": 5.0,
    "train.compile": True,
    "train.dtype": "fp32",
    "train.checkpoint_activations": True,
    "train.eval_every": 3,
    "train.save_every": 4,
    "train.save_minutes": 2.5,
    "train.keep": 5,
    "train.evaluate.every": 11,
    "train.evaluate.metrics": ["rouge_l"],
    "train.evaluate.prompts": "questions.jsonl",
    "train.evaluate.limit": 12,
    "train.evaluate.max_new_tokens": 13,
    "train.evaluate.batch_size": 14,
    "train.best": "f1_char",
    "train.early_stopping": 6,
    "train.sample_every": 7,
    "train.sample_prompts": 8,
    "train.seed": 9,
    "train.track": ["tensorboard"],
}
COMPANIONS = {
    "adapter.last_layers": {"adapter": {"type": "freeze"}, "train": {"learning_rate": 1e-5}},
    "quantization.double_quant": {"quantization": {"type": "nf4"}},
    "quantization.compute_dtype": {"quantization": {"type": "nf4"}},
    "train.momentum": {"train": {"optimizer": "sgd"}},
    "train.accumulate": {"train": {"batch_size": 2}},
    **{
        f"train.evaluate.{name}": {"data": {"valid": 0.1}}
        for name in ("every", "metrics", "limit", "max_new_tokens", "batch_size")
    },
    "train.best": {"data": {"valid": 0.1}, "train": {"evaluate": {"metrics": "f1_char"}}},
    "train.early_stopping": {"data": {"valid": 0.1}},
    "train.sample_every": {"data": {"valid": 0.1}},
}
ONE_CHOICE = {"train.objective"}  # settings that have a single value so far


def nested(name: str, value: Any) -> dict[str, Any]:
    for key in reversed(name.split(".")):
        value = {key: value}
    return value  # type: ignore[no-any-return]


def at(job: Job, name: str) -> Any:
    value: Any = job
    for key in name.split("."):
        value = getattr(value, key, None)  # quantization is None by default
    return value


def leaves() -> list[str]:
    keys = known_keys(Job)
    return [
        k
        for k in keys
        if not any(other.startswith(f"{k}.") for other in keys) or k in ("data.train", "data.valid")
    ]


def test_the_table_names_every_setting() -> None:
    wanted = {k for k in leaves() if not k.startswith(("data.train.", "data.valid."))}
    assert wanted == OTHER_VALUES.keys()


@pytest.mark.parametrize("name", sorted(OTHER_VALUES))
def test_each_setting_arrives(name: str) -> None:
    default = build(Job, MINIMAL)
    job = build(Job, merge(merge(MINIMAL, COMPANIONS.get(name, {})), nested(name, OTHER_VALUES[name])))
    if name not in ONE_CHOICE:
        assert at(job, name) != at(default, name)


@pytest.mark.parametrize(
    ("wrong", "nearest"),
    [
        ({"modle": "x"}, "model"),
        ({"train": {"learning_rat": 1}}, "learning_rate"),
        ({"train": {"epoch": 1}}, "epochs"),
        ({"epochs": 3}, "train.epochs"),
        ({"adapter": {"r": 8, "lora_rank": 8}}, "rank"),
        ({"data": {"train": "a", "maxlength": 10}}, "max_length"),
    ],
)
def test_unknown_settings_name_the_nearest(wrong: dict[str, Any], nearest: str) -> None:
    with pytest.raises(SettingsError) as caught:
        build(Job, merge(MINIMAL, wrong))
    assert nearest in str(caught.value)
    assert caught.value.exit_code == 2


def test_all_problems_are_told_at_once() -> None:
    wrong = {
        "data": {"train": "a", "too_long": "maybe", "max_length": 1},
        "adapter": {"rank": 0, "dropout": 1.0},
        "train": {"epochs": -1, "batch_size": 2, "nonsense": 1},
    }
    with pytest.raises(SettingsError) as caught:
        build(Job, wrong)
    text = str(caught.value)
    for name in ("too_long", "max_length", "rank", "dropout", "epochs", "nonsense"):
        assert name in text


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ({"train": {"tokens_per_step": 5, "batch_size": 5}}, "not both"),
        ({"train": {"accumulate": 5}}, "batch_size"),
        ({"adapter": {"type": "freeze"}}, "last_layers"),
        ({"adapter": {"type": "lora", "last_layers": 2}}, "freeze"),
        ({"adapter": {"type": "full", "init": "pissa"}}, "pissa"),
        ({"data": {"train": "a", "valid": 1.5}}, "between 0 and 1"),
        ({"train": {"early_stopping": 2, "sample_every": 5}}, "early_stopping and train.sample_every"),
        ({"data": {"valid": 0.1}, "train": {"early_stopping": 2, "eval_every": 0}}, "eval_every"),
        ({"train": {"evaluate": {}}}, "train.evaluate would do nothing.*train.evaluate.prompts"),
        ({"train": {"evaluate": {"metrics": []}}}, "train.evaluate.metrics"),
        ({"train": {"best": "valid_loss"}}, "train.best would do nothing"),
        (
            {"data": {"valid": 0.1}, "train": {"best": "f1_char"}},
            "best f1_char is measured by train.evaluate",
        ),
        (
            {"train": {"best": "x", "early_stopping": 2, "evaluate": {"prompts": "a.jsonl", "every": 0}}},
            "evaluate.every above 0",
        ),
        ({"train": {"schedule": "constant", "warmup": 2}}, "constant_with_warmup"),
        ({"adapter": {"init": "pissa_niter_x"}}, "pissa_niter_N"),
        ({"train": {"epochs": float("inf")}}, "finite"),
        ({"train": {"betas": [0.9, 1.5]}}, "betas.*less than 1"),
        ({"train": {"seed": 2**64}}, "seed"),
        ({"train": {"optimizer": "sgd", "betas": [0.9, 0.99]}}, "betas doesn't belong to optimizer sgd"),
        ({"train": {"optimizer": "adafactor", "epsilon": 1e-6}}, "epsilon doesn't belong"),
        ({"train": {"momentum": 0.5}}, "momentum doesn't belong to optimizer adamw"),
        ({"train": {"checkpoint_activations": 0}}, "every N-th"),
        ({"train": {"checkpoint_activations": "sometimes"}}, "auto"),
        ({"quantization": "nf5"}, "quantization.type"),
        ({"quantization": {"type": "int8", "double_quant": True}}, "double_quant goes with nf4"),
        ({"quantization": "nf4", "adapter": "full", "train": {"learning_rate": 1e-5}}, "lora or dora"),
        ({"quantization": "nf4", "adapter": {"init": "pissa"}}, "pissa changes the base"),
    ],
)
def test_settings_that_contradict_each_other(content: dict[str, Any], part: str) -> None:
    with pytest.raises(SettingsError, match=part):
        build(Job, merge(MINIMAL, content))


def test_prompts_to_evaluate_on_stand_beside_the_job(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(
        "data: {train: a.jsonl}\ntrain: {evaluate: {prompts: q.jsonl, metrics: [f1_char, mine.py:polite]}}\n"
    )
    evaluate = load_job(tmp_path / "job.yaml").train.evaluate
    assert evaluate is not None
    assert evaluate.prompts == str(tmp_path / "q.jsonl")
    assert evaluate.metrics == ("f1_char", f"{tmp_path}/mine.py:polite")
    typed = load_job(tmp_path / "job.yaml", ["train.evaluate.prompts=here.jsonl"]).train.evaluate
    assert typed is not None
    assert typed.prompts == "here.jsonl"


def test_yaml_numbers_and_duplicates(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("a: 1e-4\nb: 2.5E3\nc: 10\n", encoding="utf-8")
    assert read_yaml(file) == {"a": 1e-4, "b": 2500.0, "c": 10}
    file.write_text("a: 1\nb: 2\na: 3\n", encoding="utf-8")
    with pytest.raises(SettingsError, match=r"job.yaml:3: 'a' is set twice"):
        read_yaml(file)


def test_broken_yaml_names_the_line(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("data:\n  train: [a, b\nmodel: x\n", encoding="utf-8")
    with pytest.raises(SettingsError, match=r"job.yaml:\d"):
        read_yaml(file)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("data：{train: my.jsonl}\n", 1),
        ("model: x\ndata: {train： my.jsonl}\n", 2),
        ("# 数据：一行\ndata:\n  train: a：b.jsonl\n  max_length：512\n", 4),
        ("data:\n  train：my.jsonl\n  valid: x.jsonl\n", 2),
        ("model：x", 1),
    ],
)
def test_a_full_width_colon_is_named(tmp_path: Path, text: str, line: int) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(SettingsError, match="'：' is a full-width colon") as caught:
        read_yaml(file)
    assert "': '" in caught.value.fix
    assert f"job.yaml:{line}:" in caught.value.what


def test_full_width_colons_in_values_are_text(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("# 注：\nmodel: 模型：甲\n", encoding="utf-8")
    assert read_yaml(file) == {"model": "模型：甲"}
    with pytest.raises(SettingsError, match="full-width colon"):
        parse_overrides(["data={train： x}"])


@pytest.mark.parametrize("text", ["data:\n\ttrain: x\n", "data:\n  train: x\n\tvalid: y\n"])
def test_a_tab_is_named(tmp_path: Path, text: str) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(SettingsError, match=r"job.yaml:\d: a tab") as caught:
        read_yaml(file)
    assert "spaces" in caught.value.fix


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"data": "my.jsonl"}, "data is a group of settings: write data: {train: my.jsonl}"),
        ({"adapter": 8}, "adapter is a group of settings: write adapter: {type: lora}"),
        ({"train": "my.jsonl"}, "train is a group of settings: write train: {objective: sft}"),
    ],
)
def test_a_group_given_as_one_value_is_told_how_it_is_written(content: dict[str, Any], told: str) -> None:
    with pytest.raises(SettingsError) as caught:
        build(Job, {**MINIMAL, **content})
    assert caught.value.details == (told,)


def test_a_missing_job_names_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("", encoding="utf-8")
    with pytest.raises(SettingsError, match="Did you mean"):
        read_yaml(tmp_path / "jop.yaml")


def test_words_of_the_command_line() -> None:
    words = [
        "train.epochs=3",
        "train.learning_rate=1e-4",
        "adapter.targets=[q_proj, v_proj]",
        "data.valid=null",
    ]
    assert parse_overrides(words) == {
        "train": {"epochs": 3, "learning_rate": 1e-4},
        "adapter": {"targets": ["q_proj", "v_proj"]},
        "data": {"valid": None},
    }
    for wrong in ("epochs", "=3", "a=[1", "a.b=1 a=2"):
        with pytest.raises(SettingsError):
            parse_overrides(wrong.split(" "))


def test_paths_are_relative_to_the_job_file_but_not_those_typed(tmp_path: Path) -> None:
    folder = tmp_path / "project"
    folder.mkdir()
    file = folder / "job.yaml"
    file.write_text("data: {train: rows.jsonl, valid: v.jsonl, template: own.jinja}\n", encoding="utf-8")
    job = load_job(file)
    assert [f.path for f in job.data.train] == [str(folder / "rows.jsonl")]
    assert job.data.template == str(folder / "own.jinja")
    typed = load_job(file, ["data.train=here.jsonl"])
    assert [f.path for f in typed.data.train] == ["here.jsonl"]
    assert isinstance(typed.data.valid, tuple)
    assert typed.data.valid[0].path == str(folder / "v.jsonl")
    typed = load_job(file, ["data.train=~/here.jsonl"])
    assert typed.data.train[0].path == str(Path.home() / "here.jsonl")


def test_one_word_about_the_adapter_keeps_what_the_job_says_about_it(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("data: {train: rows.jsonl}\nadapter: dora\n", encoding="utf-8")
    job = load_job(file, ["adapter.rank=3"])
    assert (job.adapter.type, job.adapter.rank) == ("dora", 3)
    file.write_text("data: {train: rows.jsonl}\nadapter: {rank: 3, targets: [q_proj]}\n", encoding="utf-8")
    job = load_job(file, ["adapter=dora"])
    assert (job.adapter.type, job.adapter.rank, job.adapter.targets) == ("dora", 3, ("q_proj",))
    assert job_from(job, ["adapter=lora"]).adapter.rank == 3


def test_the_short_form_of_quantization_can_be_laid_over() -> None:
    job = job_from({**MINIMAL, "quantization": "nf4"}, ["quantization.compute_dtype=fp32"])
    assert job.quantization is not None
    assert (job.quantization.type, job.quantization.compute_dtype) == ("nf4", "fp32")
    assert job_from(job.model_dump(mode="json")) == job
    assert job_from(job, ["quantization=null"]).quantization is None


def test_settings_are_frozen() -> None:
    job = build(Job, MINIMAL)
    with pytest.raises(ValueError, match="frozen"):
        job.model = "other"  # type: ignore[misc]


@pytest.mark.parametrize("wrong", ["0.7", True, [0.7]])
def test_text_and_booleans_are_not_numbers(wrong: Any) -> None:
    with pytest.raises(SettingsError, match="learning_rate"):
        build(Job, {**MINIMAL, "train": {"learning_rate": wrong}})


def test_a_wrong_setting_is_told_with_its_place(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"

    def told(text: str, *words: str) -> str:
        file.write_text(f"data: {{train: a.jsonl}}\n{text}", encoding="utf-8")
        with pytest.raises(SettingsError) as caught:
            load_job(file, words)
        return str(caught.value)

    words = told("", "train.epochs=many")
    assert words.startswith("A setting is wrong on the command line.")
    assert "job.yaml" not in words
    assert told("train: {epochs: many}").startswith(f"A setting is wrong in {file}.")
    assert told("train: {epochs: many}", "adapter.rank=8").startswith(f"A setting is wrong in {file}.")
    assert told("", "trian.epochs=3").startswith("A setting is wrong on the command line.")
    assert told("", "data.train=3").startswith("A setting is wrong on the command line.")
    both = told("train: {epochs: many}", "train.learning_rte=1")
    assert both.startswith("2 settings are wrong.")
    assert f"(it is 'many'), in {file}" in both
    assert "did you mean 'train.learning_rate'?), on the command line" in both
    # Each alone is right: the contradiction may be due to either place.
    mixed = told("train: {batch_size: 2}", "train.tokens_per_step=512")
    assert mixed.startswith(f"A setting is wrong in {file} and on the command line.")


@pytest.mark.parametrize(
    "unused",
    [{"rank": 4}, {"alpha": 8}, {"dropout": 0.5}, {"targets": ["nonsense"]}, {"rslora": True}],
    ids=str,
)
@pytest.mark.parametrize("kind", [{"type": "full"}, {"type": "freeze", "last_layers": 2}], ids=str)
def test_settings_of_lora_are_refused_where_whole_weights_are_tuned(
    unused: dict[str, Any], kind: dict[str, Any]
) -> None:
    content = merge(MINIMAL, {"adapter": kind, "train": {"learning_rate": 1e-5}})
    whole = build(Job, content)
    assert build(Job, whole.model_dump()) == whole  # its own defaults, written out
    with pytest.raises(SettingsError, match=rf"adapter\.{next(iter(unused))} would do nothing"):
        build(Job, merge(content, {"adapter": unused}))
