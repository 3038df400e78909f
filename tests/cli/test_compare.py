"""`tunesmith compare` as a person runs it."""

# ruff: noqa: F401, F811 - fixtures are imported by their names

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.cells import cell_len

from tests.cli.test_eval import FEW, Run, tunesmith
from tests.evaluate.conftest import place
from tests.evaluate.made_run import Scripted, couplets
from tunesmith.cli import compare as verb
from tunesmith.cli import console
from tunesmith.cli.compare import show_rows
from tunesmith.evaluate.compare import Comparison, compare
from tunesmith.evaluate.metrics import METRICS
from tunesmith.records import Conversation
from tunesmith.rundir import read_jsonl

pytestmark = pytest.mark.usefixtures("few_questions")


def test_a_run_alone_is_compared_with_its_base(tunesmith: Run, place: Path) -> None:
    code, out, err = tunesmith("compare", "runs/lora", "--data", "valid.jsonl", "--show", "2", *FEW)
    assert code == 0
    title = next(line for line in out.splitlines() if "n = 8" in line)
    assert title.endswith("B = runs/lora")
    loss = next(line for line in out.splitlines() if line.startswith("loss"))
    assert loss.endswith("better")
    assert "問題0？" in out
    assert "答案是0，好。" in out
    assert "Report:      runs/lora/report.html" in err
    assert "valid.jsonl" in (place / "runs/lora/report.html").read_text(encoding="utf-8")
    assert len(read_jsonl(place / "runs/lora/eval/valid.jsonl")) == 8


def test_json_of_two_models(tunesmith: Run, tmp_path: Path) -> None:
    output = str(tmp_path / "both.jsonl")
    words = ("compare", "qwen2", "runs/lora", "--data", "valid.jsonl", "--output", output, "--json", *FEW)
    code, out, _ = tunesmith(*words)
    result = json.loads(out)
    assert code == 0
    assert (result["a"]["model"], result["b"]["model"], result["n"]) == ("qwen2", "runs/lora", 8)
    assert set(result["metrics"]["f1_char"]) >= {"a", "b", "difference", "wins", "losses", "ties", "verdict"}
    assert result["loss"]["difference"]["high"] < 0
    assert [
        set(line) >= {"id", "prompt", "prediction", "references", "a", "b"}
        for line in read_jsonl(Path(output))
    ]
    assert (tmp_path / "both.json").is_file()


def test_a_run_against_itself_is_a_tie(tunesmith: Run, tmp_path: Path) -> None:
    output = str(tmp_path / "same.jsonl")
    words = ("compare", "runs/lora", "runs/lora", "--data", "valid.jsonl", "--output", output, "--json", *FEW)
    result = json.loads(tunesmith(*words)[1])
    assert result["loss"]["difference"] is None  # no row differs: there is no width to be had
    assert result["metrics"]["f1_char"]["ties"] == 8
    assert result["loss"]["verdict"] == "cannot tell with n = 8"


def test_rows_side_by_side_stay_in_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sides = Scripted("底模", lambda _: "The lines"), Scripted("微調", lambda c: c.references[0])
    show_rows(
        compare(
            *sides,
            couplets(3),
            [METRICS["f1_char"]],
            output=tmp_path / "c.jsonl",
        ),
        3,
    )
    lines = [line for line in capsys.readouterr().out.splitlines() if "石室" in line]
    assert len(lines) == 3
    assert len({cell_len(line[: line.index("坐來")]) for line in lines}) == 1


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Callable[[], list[str]]]:
    """A terminal of so many columns, and the lines on it."""

    def opened(width: int) -> Callable[[], list[str]]:
        page = io.StringIO()
        made = type(console.out)(
            file=page, width=width, force_terminal=True, color_system=None, markup=False, soft_wrap=True
        )
        for module in (console, verb):
            monkeypatch.setattr(module, "out", made)
        return lambda: [line.rstrip() for line in page.getvalue().splitlines()]

    return opened


def several(count: int, tmp_path: Path) -> Comparison:
    """So many models with Chinese names and answers, each right on more rows than the one before."""

    def right_on(rows: int) -> Callable[[Conversation], str]:
        return lambda row: row.references[0] if row.origin.row < rows else "不知道。"

    a, b, *more = (Scripted(f"微調模型{i}", right_on(4 * i)) for i in range(count))
    metrics = [METRICS[name] for name in ("f1_char", "exact_match", "verse_form")]
    return compare(a, b, couplets(20), metrics, more=more, output=tmp_path / "c.jsonl")


@pytest.mark.parametrize(
    ("models", "width", "line"),
    [
        (3, 80, r"exact_match +0\.000 +0\.200 +0\.400"),  # intervals below
        (4, 80, r"exact_match +0\.000 +0\.200 +0\.400 +0\.600"),
        (4, 120, r"exact_match( +0\.\d{3} \[0\.\d{3}, 0\.\d{3}\]){4}"),
        (7, 80, r"exact_match +A +0\.000 \[0\.000, 0\.161\]"),  # a row each
        (2, 80, r"exact_match +0\.000 \[0\.000, 0\.161\] +0\.200 \["),
        (2, 160, r"exact_match +0\.000 +0\.200 +\+0\.200 \[.*\] +4/0/16 +cannot tell"),  # one table
    ],
)
def test_tables_fit_the_terminal(
    tmp_path: Path, terminal: Callable[[int], Callable[[], list[str]]], models: int, width: int, line: str
) -> None:
    lines = terminal(width)
    content = {**several(models, tmp_path).to_json(), "data": "test.json"}
    verb.tell(content)
    shown = lines()
    assert [row for row in shown if cell_len(row) > width] == []
    assert any(re.match(line, row) for row in shown), "\n".join(shown)
    one = r"(?:[+−]\d\.\d{3}|0\.000)"
    start = rf"^.{{10,}}(?:− A|\d\.\d{{3}}) +{one} \[{one}, {one}\]"
    differences = [row for row in shown if re.search(start, row)]
    assert len(differences) == 3 * (models - 1), "no interval is folded"
    if width < 160:
        names = [row.strip() for row in shown if "微調模型" in row]
        assert names == [f"{'ABCDEFG'[i]} = 微調模型{i}" for i in range(models)]


@pytest.mark.parametrize("width", [80, 160])
def test_answers_of_four_can_be_read(
    tmp_path: Path, terminal: Callable[[int], Callable[[], list[str]]], width: int
) -> None:
    lines = terminal(width)
    show_rows(several(4, tmp_path), 2)
    shown = lines()
    assert max(map(cell_len, shown)) <= width
    if width == 80:
        starts = [row.partition(" ")[0] for row in shown[:6]]
        assert starts == ["prompt", "A:", "B:", "C:", "D:", "reference"]
        assert len({cell_len(row[: row.index("不知道。")]) for row in shown if "不知道。" in row}) == 1
    else:
        assert shown[0].split() == [
            "prompt",
            *["A:", "微調模型0", "B:", "微調模型1", "C:", "微調模型2", "D:", "微調模型3"],
            "reference",
        ]


def test_json_and_tables_of_three(tunesmith: Run, tmp_path: Path) -> None:
    output = str(tmp_path / "three.jsonl")
    words = ("compare", "qwen2", "runs/lora", "qwen2", "--data", "valid.jsonl", "--output", output, *FEW)
    code, out, err = tunesmith(*words, "--show", "1")
    assert code == 0
    assert "valid.jsonl, n = 8" in out
    assert [line for line in out.splitlines() if line.startswith("loss")][-1].endswith("better")
    assert "C − A" in out
    assert f"Figures:     {tmp_path / 'three.json'}" in err
    result = json.loads(tunesmith(*words, "--json")[1])
    assert [side["model"] for side in result["sides"]] == ["qwen2", "runs/lora", "qwen2"]
    assert result["comparisons"][1]["metrics"]["f1_char"]["ties"] == 8


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (("temperature=1", "--data", "valid.jsonl"), 2, "takes one run, or two models or more"),
        (("qwen2", "qwen2", "--with-base", "--data", "valid.jsonl"), 2, "None of these is a run"),
        (("runs/lora", "qwen2", "--with-base", "--data", "valid.jsonl"), 2, "is the base itself"),
        ((*["qwen2"] * 27, "--data", "valid.jsonl"), 2, "27 models are too many"),
        (("qwen2", "--data", "valid.jsonl"), 2, "no base to be compared with"),
        (("runs/lora", "nope", "--data", "valid.jsonl"), 1, "nope"),
        (("runs/lora", "--data", "valid.jsonl", "--limit", "0"), 2, "limit"),
    ],
)
def test_wrong_words(tunesmith: Run, words: tuple[str, ...], code: int, text: str) -> None:
    ended, out, err = tunesmith("compare", *words, "max_new_tokens=2")
    assert (ended, out) == (code, "")
    assert text in err
    assert "Traceback" not in err
