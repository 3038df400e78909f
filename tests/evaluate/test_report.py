"""report.html: complete, offline, and safe whatever a model has answered."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.evaluate.made_run import Scripted, couplets, made_run
from tunesmith.data import labels, mask, template
from tunesmith.disk import write_json
from tunesmith.errors import RunError
from tunesmith.evaluate.chinese import in_chinese
from tunesmith.evaluate.compare import compare
from tunesmith.evaluate.drawing import score_svg
from tunesmith.evaluate.history import Point
from tunesmith.evaluate.metrics import METRICS
from tunesmith.evaluate.pages import data_block, part
from tunesmith.evaluate.report import write_report
from tunesmith.evaluate.report.page import SHOWN_TEXT
from tunesmith.evaluate.report.write import report_text
from tunesmith.evaluate.results import read_results
from tunesmith.redact import short_paths, without_secrets
from tunesmith.rundir import RunDir, open_run

pytestmark = pytest.mark.usefixtures("few_questions")

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>{{ 7 * 7 }}&lt;b&gt;"

# U+2028 ends a line of JavaScript; a lone surrogate can stand in JSON and in no file.
HARD = EVIL + "<!-- <script> \u2028\u2029\udc00 \"'\\ ]]> &amp;"
DATA: dict[str, str | None] = {"type": "application/json"}

THREE = [METRICS[name] for name in ("f1_char", "exact_match", "verse_form")]


class Page(HTMLParser):
    """Tags with their attributes, and the text of the page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def compared(run: RunDir, before: str, after: str, n: int = 15) -> None:
    sides = Scripted("base", lambda _: before), Scripted("tuned", lambda _: after)
    result = compare(
        *sides,
        couplets(n),
        THREE,
        output=run.eval / "test.jsonl",
    )
    write_json(run.eval / "test.json", {**result.to_json(), "data": "test.json"})


@pytest.mark.parametrize(
    "content",
    [
        {"kind": "comparison"},
        {"kind": "evaluation", "n": 1, "model": "m"},
        {"kind": "evaluation", "n": 1, "model": "m", "metrics": [1]},
        {"kind": "comparison", "n": 1, "metrics": {}, "a": {}, "b": {"model": "m"}},
        {"kind": "evaluation", "n": 1, "model": "m", "metrics": {"f1_char": {"value": "x"}}},
    ],
)
def test_a_result_of_a_wrong_shape_is_a_damaged_one(tmp_path: Path, content: dict[str, object]) -> None:
    run = made_run(tmp_path / "tang-1")
    compared(run, "一", "二")
    write_json(run.eval / "wrong.json", content)
    assert [result["kind"] for result in read_results(run)] == ["comparison", "damaged"]
    text = write_report(run).read_text(encoding="utf-8")
    assert "wrong.json" in text
    assert "what tunesmith writes" in html.unescape(text)


def test_commands_are_quoted_for_the_shell(tmp_path: Path) -> None:
    text = write_report(made_run(tmp_path / "my run")).read_text(encoding="utf-8")
    assert f"tunesmith chat '{tmp_path}/my run'" in html.unescape(text)


def test_our_own_sentences_are_in_both_languages(tmp_path: Path) -> None:
    run = made_run(tmp_path / "tang-1")
    text = write_report(run).read_text(encoding="utf-8")
    told = {
        "超过 1024 个 token",
        "分词器没有 eos",
        "因为每一行都有 instruction and output",
        "分钟",
        "模型自带",
    }
    assert {part for part in told if part not in text} == set()
    assert "output is missing" in text  # not ours to translate


def test_every_note_of_the_data_stage_has_its_chinese() -> None:
    notes = [v for m in (labels, mask, template) for k, v in vars(m).items() if k.startswith("NOTE_")]
    assert len(set(notes)) >= 9
    assert [note for note in notes if in_chinese(note) == note] == []
    known = ["cannot tell with n = 2; at least 6 are needed", "cannot tell with n = 40; about 160 are needed"]
    assert [in_chinese(text) for text in known] == [
        "n = 2 看不出差别；至少需 6 条",
        "n = 40 看不出差别；约需 160 条",
    ]


def test_the_whole_story_is_there(tmp_path: Path) -> None:
    run = made_run(tmp_path / "tang-1")
    compared(run, "The two lines are", "坐來山水遠，今日見塵埃。")
    text = write_report(run).read_text(encoding="utf-8")
    words = re.sub(r"\s+", " ", " ".join(Page(text).words))
    before_and_after = ("3.840 →", "2.712", "verse_form", "n = 15", "better", "更好", "验证损失")
    answers = ("The two lines are", "坐來山水遠", "今日無人見，空山有鳥來。")
    data = ("1,197", "longer than 1024 tokens", "tang_train.json:40", "output is missing")
    settings = ("smollm2-135m", "train.learning_rate", "torch", "2.13.0", "1.77 GiB", "3 min", "4,884,480")
    use = ("PeftModel.from_pretrained", "tunesmith chat")
    for told in (*before_and_after, *answers, *data, *settings, *use):
        assert told in words, told
    assert text.count("<polyline") >= 6  # three lines and the rate, wide and narrow
    assert "NaN" not in text.replace(part("report", "rows.js"), "")


def test_nothing_is_fetched_and_only_our_script_may_run(tmp_path: Path) -> None:
    run = made_run(tmp_path / "tang-1")
    text = write_report(run).read_text(encoding="utf-8")
    page = Page(text)
    for tag, attributes in page.tags:
        assert tag not in ("link", "img", "iframe", "object", "embed", "base", "form"), tag
        assert not {"src", "href", "srcset", "style", "background"} & set(attributes), (tag, attributes)
        assert not [name for name in attributes if name.startswith("on")], attributes
    assert "@import" not in text
    assert "url(" not in text
    scripts = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)  # blocks of data have a type
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    assert len(scripts) == 1
    policy = next(a["content"] for t, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert "default-src 'none'" in policy
    assert f"script-src 'sha256-{digest}'" in policy


def test_what_a_model_writes_is_text(tmp_path: Path) -> None:
    run = made_run(tmp_path / "tang-1", job={"device": EVIL, "versions": {EVIL: EVIL}})
    compared(run, EVIL, EVIL)
    with run.samples_file.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"step": 40, "prompt": EVIL, "answer": EVIL, "reference": EVIL}) + "\n")
    run.data_report_file.write_text(
        json.dumps(
            {
                "train": {
                    "rows": 1,
                    "named": [{"origin": EVIL, "what": EVIL, "reason": EVIL}],
                    "notes": {EVIL: 1},
                }
            }
        )
    )
    text = write_report(run).read_text(encoding="utf-8")
    page = Page(text)
    assert [attributes for tag, attributes in page.tags if tag == "script"] == [DATA, {}]
    assert "img" not in [tag for tag, _ in page.tags]
    assert "".join(page.words).count(EVIL) >= 10  # shown as it is, to the letter
    assert html.escape(EVIL, quote=False) in text.replace("&#34;", '"').replace("&#39;", "'")


def test_rows_in_the_page_are_data_that_ends_no_element(tmp_path: Path) -> None:
    run = made_run(tmp_path / "tang-1")
    compared(run, HARD, "ok")
    text = write_report(run).read_text(encoding="utf-8")
    block = re.findall(r'<script type="application/json">(.*?)</script>', text, re.DOTALL)[0]
    assert not set("<>&\u2028\u2029") & set(block)
    rows = json.loads(block)["rows"]
    assert len(rows) == 15
    assert rows[0]["answers"] == [[HARD, 0], ["ok", 0]]
    assert [attributes for tag, attributes in Page(text).tags if tag == "script"] == [DATA, {}]
    with pytest.raises(ValueError, match="JSON compliant"):
        data_block(float("nan"))


def test_long_answers_say_how_much_is_missing(tmp_path: Path) -> None:
    run = made_run(tmp_path / "r")
    compared(run, "長" * (SHOWN_TEXT + 1500), "ok")
    text = write_report(run).read_text(encoding="utf-8")
    assert "1,500 more characters" in text
    assert "長" * SHOWN_TEXT in text
    assert "長" * (SHOWN_TEXT + 1) not in text


def test_secrets_and_home_folders_stay_at_home(tmp_path: Path) -> None:
    job = {
        "model": "/home/alice/models/qwen",
        "hub": {"token": "hunter2-hunter2", "endpoint": "https://bob:pa55@mirror.example/x"},
        "note": "uses hf_abcdefghijklmnopqrstuv",
        "train": {"tokens_per_step": 4096},
    }
    run = made_run(tmp_path / "r", job={"job": job})
    text = write_report(run).read_text(encoding="utf-8")
    for secret in ("hunter2", "pa55", "hf_abcdefgh", "alice", str(Path.home()) + "/"):
        assert secret not in text, secret
    assert "4096" in text  # a number of tokens is no secret
    assert "~/data/tang_train.json" in text


def test_redaction_rules() -> None:
    open_ones = {"hub_token": None, "pad_token_id": 3, "tokens": 5, "tokens_per_step": 4096}
    secret = {"api_key": "x", "deep": [{"PASSWORD": "y"}]}
    hidden = {"api_key": "(hidden)", "deep": [{"PASSWORD": "(hidden)"}]}
    assert without_secrets({**open_ones, **secret}) == {**open_ones, **hidden}
    home = str(Path.home())
    assert short_paths(f"{home}/a and {home}") == "~/a and ~"
    assert short_paths(f"{home}stead/a") == f"{home}stead/a"
    assert short_paths({"p": ["/Users/wei/x", "C:\\Users\\wei\\x"]}) == {"p": ["~/x", "~\\x"]}
    assert short_paths("cd /home/wei/x", foreign=False) == "cd /home/wei/x"


def test_a_run_with_little_in_it_has_a_report_too(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.job_file.write_text("job: {model: m}\n", encoding="utf-8")
    text = write_report(run).read_text(encoding="utf-8")
    assert "No steps yet." in text
    assert "No data report." in text


def test_a_damaged_result_is_named_and_hides_nothing(tmp_path: Path) -> None:
    run = made_run(tmp_path / "r")
    compared(run, "a", "b")
    (run.eval / "broken.json").write_text("{", encoding="utf-8")
    text = write_report(run).read_text(encoding="utf-8")
    assert "broken.json" in text
    assert "verse_form" in text


def test_a_report_that_cant_be_written_is_one_error(tmp_path: Path) -> None:
    run = made_run(tmp_path / "r")
    run.report_file.mkdir()
    (run.report_file / "x").touch()
    with pytest.raises(RunError, match=r"report\.html can't be written"):
        write_report(run)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # of peft
def test_the_python_it_shows_runs_as_it_stands(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = write_report(open_run(place / "runs/lora")).read_text(encoding="utf-8")
    code = html.unescape(re.findall(r'<pre id="python">(.*?)</pre>', text, re.DOTALL)[0])
    monkeypatch.chdir(place)
    exec(compile(code.replace("max_new_tokens=100", "max_new_tokens=5"), "report", "exec"), {})
    assert capsys.readouterr().out.strip()


def test_scores_of_answers_while_training_have_a_curve_and_stand_in_all_forms(tmp_path: Path) -> None:
    run = made_run(tmp_path / "tang-1")
    with run.metrics_file.open("a", encoding="utf-8") as file:
        for step, score in ((0, 0.1), (20, 0.25), (40, 0.4)):
            file.write(json.dumps({"step": step, "f1_char": score, "metrics": ["f1_char"], "n": 12}) + "\n")
    page = report_text(run, "html")
    assert "训练中的回答，n = 12" in page
    assert page.count("<title>step 20: 0.2500</title>") == 2  # wide and narrow
    assert "| f1_char | 0.100 → 0.400 (n = 12) |" in report_text(run)
    training = json.loads(report_text(run, "json"))["training"]
    assert (training["scores"], training["answers"]) == ({"f1_char": [[0, 0.1], [20, 0.25], [40, 0.4]]}, 12)


def test_a_score_that_never_moves_has_an_axis_that_can_be_read() -> None:
    drawn = score_svg("f1_char", [Point(0, 0.0), Point(6, 0.0)], 6, width=400, height=170)
    assert re.findall(r'text-anchor="end">([^<]+)<', drawn) == ["0", "0.5", "1"]
