"""What a person sees of rows and counts before training."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType

from tests.families import tiny_tokenizer
from tunesmith.data.check import load
from tunesmith.data.config import DataFile, DataSettings
from tunesmith.data.encode import encode
from tunesmith.data.report import build_report, named_rows, report_table
from tunesmith.data.show import show, trace
from tunesmith.data.template import Renderer
from tunesmith.records import Conversation, Message, Origin

QWEN2 = Renderer(tiny_tokenizer("qwen2"))
LLAMA = Renderer(tiny_tokenizer("llama"))


def row(line: int, question: str, answer: str) -> Conversation:
    return Conversation(
        (Message("user", question), Message("assistant", answer)), Origin("a.jsonl", line, line)
    )


def options(**values: Any) -> DataSettings:
    return DataSettings.model_validate({"train": "a.jsonl", **values})


def printed(renderable: RenderableType, *, colour: bool = False) -> str:
    file = io.StringIO()
    Console(file=file, width=200, force_terminal=colour, color_system="standard" if colour else None).print(
        renderable
    )
    return file.getvalue()


def test_plain_text_brackets_what_is_trained() -> None:
    rows = trace([row(1, "前溪獨立後溪行", "鷺識朱衣自不驚。")], QWEN2, options())
    legend, counts, tokens = show(rows, QWEN2.tokenizer, plain=True)
    assert legend.plain == "[[trained on]]  context, read but not trained on  {{cut by data.too_long}}"
    assert counts.plain.startswith("a.jsonl:1 (row 2): ")
    assert tokens.plain == (
        "<|im_start|>system⏎\nBe helpful.<|im_end|>⏎\n<|im_start|>user⏎\n前溪獨立後溪行<|im_end|>⏎\n"
        "<|im_start|>assistant⏎\n[[鷺識朱衣自不驚。<|im_end|>]]⏎\n"
    )


def test_counts_agree_with_the_mask() -> None:
    [encoded] = QWEN2.encode(row(1, "a", "答。"), "all_replies")
    _, counts, _ = show([encoded], QWEN2.tokenizer, plain=True)
    assert (
        counts.plain
        == f"a.jsonl:1 (row 2): {len(encoded.input_ids)} tokens, {sum(encoded.label_mask)} trained on"
    )


def test_cut_tokens_are_shown_where_they_stood() -> None:
    rows = trace([row(1, "很長的問題" * 9, "答。")], LLAMA, options(max_length=40, too_long="truncate_left"))
    _, counts, tokens = show(rows, LLAMA.tokenizer, plain=True)
    assert tokens.plain.startswith("<|begin_of_text|>{{<|start_header_id|>user")
    assert tokens.plain.endswith("<|start_header_id|>assistant<|end_header_id|>⏎\n⏎\n[[答。<|eot_id|>]]")
    assert "\ufffd" not in tokens.plain
    assert "cut" in counts.plain


def test_a_row_that_would_stop_the_training_is_not_called_cut() -> None:
    rows = trace([row(1, "很長的問題" * 9, "答。")], LLAMA, options(max_length=40, too_long="error"))
    _, counts, tokens = show(rows, LLAMA.tokenizer, plain=True)
    assert "longer than 40 tokens: training would stop (data.too_long=error)" in counts.plain
    assert " cut" not in counts.plain
    assert "[[答。<|eot_id|>]]" in tokens.plain


def test_no_character_is_torn_wherever_the_cut_falls() -> None:
    """Byte fragments of a character go together, even where its bytes are of two classes."""
    question, answer = "鑫龘麤🙂", "驫鱻。"
    text = LLAMA.render(row(1, question, answer), 2, prompt=False, thinking=False).replace("\n", "⏎\n")
    for policy in ("truncate_right", "truncate_left", "split"):
        for limit in range(8, 70):
            rows = trace([row(1, question, answer)], LLAMA, options(max_length=limit, too_long=policy))
            for line in show(rows, LLAMA.tokenizer, plain=True)[2::2]:
                assert line.plain.translate(str.maketrans("", "", "[]{}")) == text


def test_colours_and_special_tokens() -> None:
    rows = trace([row(1, "a", "[bold]b[/bold]")], QWEN2, options())
    _, _, tokens = show(rows, QWEN2.tokenizer)
    styles = {tokens.plain[s.start : s.end]: str(s.style) for s in tokens.spans}
    assert styles["<|im_end|>"] == "green bold"
    assert styles["<|im_start|>"] == "dim bold"
    assert "[bold]b[/bold]" in tokens.plain  # text of the row is never markup
    assert "\x1b[32m" in printed(tokens, colour=True)


def test_refused_rows_say_why() -> None:
    rows = trace([row(1, "<|im_end|>", "b")], QWEN2, options())
    _, counts, tokens = show(rows, QWEN2.tokenizer, plain=True)
    assert "control token" in counts.plain
    assert tokens.plain == ""


def write_rows(path: Path, rows: list[tuple[str, str]]) -> Path:
    lines = [json.dumps({"instruction": q, "input": "", "output": a}, ensure_ascii=False) for q, a in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_report_and_table(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "a.jsonl", [("你好", "您好！"), ("你好", "您好！"), ("long " * 80, "x")])
    dataset = load([DataFile(path=str(file))])
    data = encode(dataset.records, QWEN2, options(max_length=64, too_long="drop"))
    report = build_report(dataset, dataset, data, data, QWEN2)
    assert json.loads(json.dumps(report, ensure_ascii=False)) == report
    train = report["train"]
    assert {"files", "rows", "kept", "dropped", "cut", "split", "examples", "tokens"} <= train.keys()
    assert {"label_tokens", "bad_rows", "duplicates", "notes"} <= train.keys()
    assert (train["rows"], train["kept"], train["dropped"], train["duplicates"]) == (3, 2, 1, 1)
    assert report["template"]["stop_tokens"] == ["<|im_end|>"]
    text = printed(report_table(report))
    assert "dropped: longer than 64 tokens" in text
    assert f"{train['label_tokens']} ({train['label_tokens'] / train['tokens']:.0%})" in text
    assert "<|im_end|>" in text


def test_rows_are_named_before_the_training(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "a.jsonl", [("你好", "您好！"), *[("long " * 80, "x")] * 9])
    file.write_text(file.read_text("utf-8") + "{broken\n", encoding="utf-8")
    dataset = load([DataFile(path=str(file))], bad_rows="drop")
    data = encode(dataset.records, QWEN2, options(max_length=64, too_long="truncate_left"))
    lines = named_rows(build_report(dataset, None, data, None, QWEN2), most=3)
    assert lines[0].startswith(f"{file}:11: left out: ")
    assert lines[1].startswith(f"{file}:2: cut: ")
    assert "64 of " in lines[1]
    assert lines[3:] == ["… and 7 more: data-report.json in the run's folder names all."]


def test_report_without_validation_rows(tmp_path: Path) -> None:
    dataset = load([DataFile(path=str(write_rows(tmp_path / "a.jsonl", [("a", "b")])))])
    data = encode(dataset.records, QWEN2, options())
    report = build_report(dataset, None, data, None, QWEN2)
    assert report["valid"] is None
    assert "valid" not in printed(report_table(report)).splitlines()[1]


def test_a_long_row_is_shown_in_part_and_says_so() -> None:
    long = row(1, "Where is it?", "The library opens at eight. " * 40)
    [encoded] = QWEN2.encode(long, "all_replies")
    _, counts, tokens = show([encoded], QWEN2.tokenizer, plain=True, most=60)
    left_out = len(encoded.input_ids) - 60
    trained = sum(encoded.label_mask[30 : len(encoded.input_ids) - 30])
    assert f"{len(encoded.input_ids)} tokens" in counts.plain
    assert (
        f"… {left_out:,} tokens left out, {trained:,} of them trained on; --all shows them …" in tokens.plain
    )
    assert tokens.plain.startswith("<|im_start|>system")
    assert tokens.plain.rstrip("⏎\n").endswith("<|im_end|>]]")
    [_, _, whole] = show([encoded], QWEN2.tokenizer, plain=True)
    assert "left out" not in whole.plain
    assert whole.plain.count("The library") == 40
