"""lm-evaluation-harness over a tiny model of ours, against its own HFLM over the same model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

lm_eval = pytest.importorskip("lm_eval", reason="needs the extra harness: pip install 'tunesmith[harness]'")

# Libraries of the harness that warn about each other when they are imported.
pytestmark = [
    pytest.mark.filterwarnings(f"ignore::{name}")
    for name in ("DeprecationWarning", "FutureWarning", "UserWarning", "ResourceWarning")
]

import tunesmith  # noqa: E402
from tests.families import save_tiny  # noqa: E402
from tests.infer.made_run import made_run  # noqa: E402
from tunesmith.errors import DataError, UsageError  # noqa: E402
from tunesmith.evaluate.harness import HarnessModel  # noqa: E402
from tunesmith.infer.local import load  # noqa: E402
from tunesmith.rundir import read_jsonl  # noqa: E402

ROWS = 5
TASKS = {
    "choose": """task: choose
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
output_type: multiple_choice
test_split: test
doc_to_text: "问：{{question}}\\n答："
doc_to_choice: "{{choices}}"
doc_to_target: "{{label}}"
metric_list: [{metric: acc}, {metric: acc_norm}]
""",
    "write": """task: write
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
output_type: generate_until
test_split: test
doc_to_text: "{{question}}"
doc_to_target: "{{choices[label]}}"
generation_kwargs: {until: ["e"], max_gen_toks: 12, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
""",
    "read": """task: read
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
output_type: loglikelihood_rolling
test_split: test
doc_to_text: ""
doc_to_target: "{{question * 12}}"
metric_list: [{metric: word_perplexity}, {metric: byte_perplexity}, {metric: bits_per_byte}]
""",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tasks/ over a small JSON file, model/ and a run with an adapter over it."""
    root = tmp_path_factory.mktemp("harness")
    rows = [
        {
            "question": f"第{i}条：学生请假 {i} 天要找谁？ ",
            "choices": ["辅导员", f" 校长 {i}", "图书馆 the desk"],
            "label": i % 3,
        }
        for i in range(ROWS)
    ]
    (root / "tasks").mkdir()
    (root / "rows.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    for name, text in TASKS.items():
        (root / "tasks" / f"{name}.yaml").write_text(text.replace("FILE", str(root / "rows.jsonl")))
    save_tiny("llama", root / "model")
    made_run(root / "run", root / "model")
    return root


def figures(result: dict[str, Any]) -> dict[str, float]:
    return {
        f"{task} {name}": one["value"]
        for task, figures in result["tasks"].items()
        for name, one in figures["metrics"].items()
    }


def test_figures_and_every_answer_are_those_of_the_harness_s_own_model(place: Path) -> None:
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    ours = tunesmith.benchmark(
        str(place / "run"), list(TASKS), include=place / "tasks", dtype="fp32", output=place / "out.jsonl"
    )
    model = load(str(place / "run"), dtype="fp32")
    theirs = lm_eval.simple_evaluate(
        model=HFLM(pretrained=model.model, tokenizer=model.renderer.tokenizer, batch_size=4),
        tasks=list(TASKS),
        task_manager=TaskManager(include_path=str(place / "tasks"), include_defaults=False),
        bootstrap_iters=10,
    )
    assert theirs is not None
    mine = figures(ours.content)
    assert len(mine) == 6
    for name, value in mine.items():
        task, metric = name.split()
        assert value == pytest.approx(theirs["results"][task][f"{metric},none"], rel=1e-5), name
    lines = read_jsonl(place / "out.jsonl")
    for task in TASKS:
        told = [line["filtered_resps"] for line in lines if line["task"] == task]
        samples = sorted(theirs["samples"][task], key=lambda sample: sample["doc_id"])
        assert len(told) == len(samples) == ROWS
        for mine_, sample in zip(told, samples, strict=True):
            _same(mine_, json.loads(json.dumps(sample["filtered_resps"], default=str)))
    assert {line["filtered_resps"][0] for line in lines if line["task"] == "write"} != {""}


def _same(mine: Any, theirs: Any) -> None:
    if isinstance(mine, list):
        assert len(mine) == len(theirs)
        for one, other in zip(mine, theirs, strict=True):
            _same(one, other)
    elif isinstance(mine, float):
        assert mine == pytest.approx(theirs, rel=1e-5, abs=1e-4)
    elif isinstance(mine, str):
        assert mine == theirs.rstrip("\ufffd")  # a character that the limit cut in two is left out here
    else:
        assert mine == theirs


def test_an_adapter_changes_the_figures_and_stays_unmerged(place: Path) -> None:
    run = load(str(place / "run"), dtype="fp32")
    before = {name: value.clone() for name, value in run.model.named_parameters()}
    request = type("Request", (), {"args": ("学生请假", "找辅导员")})()
    (tuned,) = HarnessModel(run).loglikelihood([request])
    (base,) = HarnessModel(load(str(place / "model"), dtype="fp32")).loglikelihood([request])
    assert abs(tuned[0] - base[0]) > 0.1
    assert all(value.equal(before[name]) for name, value in run.model.named_parameters())


def test_texts_longer_than_the_model_reads_are_cut_from_the_left_or_read_in_windows(place: Path) -> None:
    from lm_eval.models.huggingface import HFLM

    model = load(str(place / "model"), dtype="fp32")
    ours = HarnessModel(model)
    theirs = HFLM(
        pretrained=model.model, tokenizer=model.renderer.tokenizer, batch_size=4, max_length=ours.max_length
    )
    long = "学生请假要找辅导员。" * ours.max_length
    pair = type("Request", (), {"args": (long, "图书馆")})()
    whole = type("Request", (), {"args": (long[: 3 * ours.max_length],)})()
    empty = type("Request", (), {"args": ("", "图书馆")})()
    for mine, other in zip(
        ours.loglikelihood([pair, empty]), theirs.loglikelihood([pair, empty]), strict=True
    ):
        assert mine[0] == pytest.approx(other[0], rel=1e-4)
        assert mine[1] == other[1]
    (mine_,), (other_,) = ours.loglikelihood_rolling([whole]), theirs.loglikelihood_rolling([whole])
    assert mine_ == pytest.approx(other_, rel=1e-4)


def test_the_chat_template_is_the_run_s_own(place: Path) -> None:
    model = HarnessModel(load(str(place / "model"), dtype="fp32"))
    turns = [{"role": "user", "content": "你好"}]
    text = model.apply_chat_template(turns)
    assert "你好" in text
    assert text == model.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert model.chat_template(True) == model.model.renderer.text
    assert model.chat_template(False) is None


def test_unknown_tasks_and_data_that_isn_t_there_say_what_to_do(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match=r"no task 'hellaswg'.*hellaswag"):
        tunesmith.benchmark(str(place / "model"), ["hellaswg"])
    broken = place / "broken"
    broken.mkdir()
    gone = TASKS["choose"].replace("FILE", "/no/such/rows.jsonl").replace("task: choose", "task: gone")
    (broken / "gone.yaml").write_text(gone)
    with pytest.raises(DataError, match="data of gone can't be had"):
        tunesmith.benchmark(str(place / "model"), ["gone"], include=broken)
    monkeypatch.chdir(place)
    with pytest.raises(DataError, match="hellaswag can't be had") as offline:
        tunesmith.benchmark(str(place / "model"), ["hellaswag"])
    assert "--include FOLDER" in str(offline.value)
    assert not (place / "eval").exists()
