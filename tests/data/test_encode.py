"""Length policy and counts: nothing is cut or dropped without a number and a name."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.families import tiny_tokenizer
from tunesmith.data.config import DataSettings
from tunesmith.data.encode import EncodedData, encode
from tunesmith.data.labels import Encoded, Reply
from tunesmith.data.lengths import fit
from tunesmith.data.mask import NOTE_TAIL
from tunesmith.data.template import Renderer
from tunesmith.errors import DataError, TemplateError
from tunesmith.records import Conversation, Message, Origin, Preference, Text

RENDERERS = {
    family: Renderer(tiny_tokenizer(family)) for family in ("llama", "qwen2", "qwen3", "mistral", "gpt2")
}
LLAMA = RENDERERS["llama"]


def row(line: int, *turns: str) -> Conversation:
    roles = ("user", "assistant")
    messages = tuple(Message(roles[i % 2], turn) for i, turn in enumerate(turns))  # type: ignore[arg-type]
    return Conversation(messages, Origin("a.jsonl", line, line - 1))


def options(**values: Any) -> DataSettings:
    return DataSettings.model_validate({"train": "a.jsonl", **values})


def text_of(data: EncodedData, index: int, renderer: Renderer = LLAMA) -> str:
    return renderer.decode(data.examples[index].input_ids)


SHORT, LONG = row(1, "a?", "A."), row(2, "question " * 30, "reply, the end.")


def test_counts_of_a_clean_set() -> None:
    rows = [SHORT, row(2, "你好", "您好！", "b", "B"), row(3, "x", "y", "thanks")]
    data = encode(rows, LLAMA, options())
    report = data.report
    assert (report["rows"], report["kept"], report["dropped"], report["examples"]) == (3, 3, 0, 3)
    assert report["tokens"] == sum(len(e.input_ids) for e in data.examples)
    assert report["label_tokens"] == sum(sum(e.label_mask) for e in data.examples)
    assert report["named"] == []
    assert report["notes"] == {NOTE_TAIL: 1}
    assert [e.row for e in data.examples] == [0, 1, 2]
    assert data.examples[1].origin == rows[1].origin
    json.dumps(report)


def test_too_long_is_an_error_that_lists_the_rows_and_what_would_fit() -> None:
    rows = [SHORT, LONG, row(3, "other " * 40, "b"), SHORT]
    with pytest.raises(DataError) as caught:
        encode(rows, LLAMA, options(max_length=32))
    error = caught.value
    assert [detail.split(":")[:2] for detail in error.details] == [["a.jsonl", "2"], ["a.jsonl", "3"]]
    longest = max(int(detail.split()[-2]) for detail in error.details)
    assert f"data.max_length={longest}" in error.fix
    assert encode(rows, LLAMA, options(max_length=longest)).report["kept"] == 4
    with pytest.raises(DataError):
        encode(rows, LLAMA, options(max_length=longest - 1))


def test_drop_counts_and_names() -> None:
    report = encode([SHORT, LONG], LLAMA, options(max_length=32, too_long="drop")).report
    assert (report["kept"], report["dropped"]) == (1, 1)
    [entry] = report["named"]
    assert entry["origin"] == "a.jsonl:2"
    assert entry["what"] == "dropped"
    assert entry["tokens"] > 32
    assert entry["reason"] == "longer than 32 tokens"


def test_truncate_left_keeps_bos_header_and_the_whole_last_reply() -> None:
    data = encode([LONG], LLAMA, options(max_length=40, too_long="truncate_left"))
    [example] = data.examples
    assert len(example.input_ids) == 40
    shown = text_of(data, 0)
    assert shown.startswith("<|begin_of_text|>")
    assert shown.endswith("<|start_header_id|>assistant<|end_header_id|>\n\nreply, the end.<|eot_id|>")
    trained = [i for i, label in zip(example.input_ids, example.label_mask, strict=True) if label]
    assert LLAMA.decode(trained) == "reply, the end.<|eot_id|>"
    assert data.report["cut"] == 1
    assert data.report["labels_cut"] == data.report["end_tokens_cut"] == 0
    assert data.report["named"][0]["kept_tokens"] == 40


def test_truncate_left_takes_labels_from_a_reply_cut_in_two() -> None:
    rows = [row(1, "a", "first reply " * 10, "b", "second.")]
    whole = encode(rows, LLAMA, options())
    limit = len(whole.examples[0].input_ids) - 40
    data = encode(rows, LLAMA, options(max_length=limit, too_long="truncate_left"))
    [example] = data.examples
    trained = [i for i, label in zip(example.input_ids, example.label_mask, strict=True) if label]
    assert LLAMA.decode(trained) == "second.<|eot_id|>"
    assert data.report["labels_cut"] == whole.report["label_tokens"] - data.report["label_tokens"] > 0


@pytest.mark.parametrize("family", ["qwen2", "llama"])
def test_truncate_left_trains_no_reply_whose_header_is_cut(family: str) -> None:
    """What asks for a reply is in front of it, or the reply isn't trained, and its labels are counted."""
    renderer = RENDERERS[family]
    rows = [row(1, "Capital of France?", "The capital is Paris.", "And of Spain?", "Madrid.")]
    whole = encode(rows, renderer, options())
    labels, longest = whole.report["label_tokens"], len(whole.examples[0].input_ids)
    [encoded] = renderer.encode(rows[0], "all_replies")
    first, last = encoded.replies
    asked = renderer.decode(encoded.input_ids[last.header : last.start])
    assert renderer.decode(encoded.input_ids[first.header : first.start]) == asked
    seen = set()
    for limit in range(last.stop - last.header + encoded.bos, longest):
        data = encode(rows, renderer, options(max_length=limit, too_long="truncate_left"))
        [example] = data.examples
        trained = [i for i, label in zip(example.input_ids, example.label_mask, strict=True) if label]
        lost = labels - len(trained)
        assert data.report["labels_cut"] == lost
        assert data.report["end_tokens_cut"] == (lost > 0)
        seen.add(lost)
        kept = renderer.decode(example.input_ids)
        assert lost == 0 or lost == first.stop - first.start
        assert lost > 0 or f"{asked}The capital is Paris." in kept
    assert seen == {0, first.stop - first.start}


def test_truncate_left_drops_a_row_whose_reply_alone_does_not_fit() -> None:
    rows = [SHORT, row(2, "a", "long reply " * 30)]
    report = encode(rows, LLAMA, options(max_length=32, too_long="truncate_left")).report
    assert (report["kept"], report["dropped"], report["cut"]) == (1, 1, 0)
    assert "last reply alone" in report["named"][0]["reason"]


def test_truncate_right_counts_the_lost_end_and_drops_what_has_no_label() -> None:
    rows = [row(1, "a", "long reply " * 30), LONG]
    data = encode(rows, LLAMA, options(max_length=32, too_long="truncate_right"))
    report = data.report
    assert (report["kept"], report["dropped"], report["cut"]) == (1, 1, 1)
    assert report["end_tokens_cut"] == 1
    assert report["labels_cut"] > 0
    assert {entry["origin"]: entry["what"] for entry in report["named"]} == {
        "a.jsonl:1": "cut",
        "a.jsonl:2": "dropped",
    }
    assert not text_of(data, 0).endswith("<|eot_id|>")


def test_a_part_of_which_nothing_is_left_is_named() -> None:
    lost = Conversation(
        (Message("user", "a"), Message("assistant", "b", train=False)), Origin("v.jsonl", 3, 2)
    )
    with pytest.raises(DataError) as caught:
        encode([lost], LLAMA, options(), part="data.valid")
    assert caught.value.what == "None of the rows of data.valid (1) is left to train on."
    [detail] = caught.value.details
    assert detail.startswith("1 row: no reply to train on")
    assert detail.endswith("(the first: v.jsonl:3)")
    with pytest.raises(DataError, match=r"1 of 1 rows of data\.valid can't be trained on"):
        encode([row(1, "<|eot_id|>", "b")], LLAMA, options(), part="data.valid")


def test_split_windows() -> None:
    data = encode([LONG], LLAMA, options(max_length=32, too_long="split"))
    entry = data.report["named"][0]
    assert entry["what"] == "split"
    assert entry["windows"] == len(data.examples) < entry["tokens"] / 32
    assert all(any(e.label_mask) and not e.label_mask[0] for e in data.examples)
    text = Text("白日依山盡，黃河入海流。" * 12, Origin("t.txt", 1, 0))
    data = encode([text], RENDERERS["gpt2"], options(max_length=32, too_long="split"))
    joined = [i for e in data.examples for i in e.input_ids]
    assert joined == RENDERERS["gpt2"].encode(text, "all_replies")[0].input_ids
    assert data.report["split"] == 1
    assert data.report["labels_cut"] == len(data.examples) - 1  # nothing stands before a window's first token


def test_replies_of_one_row_are_fitted_each() -> None:
    rows = [row(1, "a", "A", "b " * 60, "B")]
    data = encode(rows, RENDERERS["qwen3"], options(max_length=50, too_long="drop"))
    assert (data.report["kept"], data.report["dropped"], data.report["examples"]) == (1, 0, 1)
    assert data.report["named"][0]["what"] == "dropped"


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_every_policy_keeps_its_promises(data: st.DataObject) -> None:
    """On random examples: limits hold, no label is invented, truncate_left keeps the last reply."""
    bos = data.draw(st.booleans())
    replies, cursor, mask = [], int(bos), [False] * int(bos)
    for _ in range(data.draw(st.integers(1, 3))):
        context, header, reply = (data.draw(st.integers(low, 9)) for low in (1, 0, 1))
        start = cursor + context + header
        replies.append(Reply(cursor + context, start, start + reply))
        mask += [False] * (context + header) + [True] * reply
        cursor = start + reply
    mask += [False] * data.draw(st.integers(0, 2))
    mask[0] = False
    encoded = Encoded(list(range(len(mask))), mask, Origin("h", 1, 0), tuple(replies), bos)
    limit = data.draw(st.integers(8, 40))
    policy = data.draw(st.sampled_from(["drop", "truncate_left", "truncate_right", "split"]))
    windows, reason = fit(encoded, limit, policy)
    last = replies[-1]
    assert windows or reason
    for window in windows:
        assert 0 < len(window.positions) <= limit
        assert window.positions == sorted(set(window.positions))
        assert any(window.label_mask)
        assert not window.label_mask[0]
        assert all(mask[p] for p, label in zip(window.positions, window.label_mask, strict=True) if label)
    if policy == "truncate_left":
        fits = bos + last.stop - last.header <= limit
        assert fits or not windows
        assert windows or not fits or last.stop - last.start == 1
        for window in windows:
            assert set(range(last.header, last.stop)) <= set(window.positions)
            assert not bos or window.positions[0] == 0
            kept = {p for p, label in zip(window.positions, window.label_mask, strict=True) if label}
            for reply in replies[:-1]:
                span = {p for p in range(reply.start, reply.stop) if mask[p]}
                assert kept & span in (set(), span)
    if len(mask) <= limit:
        assert [w.positions for w in windows] == [list(range(len(mask)))]


# Refusals


def test_all_bad_rows_are_listed_at_once_or_dropped_by_name() -> None:
    rows = [SHORT, row(2, "a <|eot_id|>", "b"), row(3, "a", "<|begin_of_text|>")]
    with pytest.raises(DataError) as caught:
        encode(rows, LLAMA, options())
    assert [detail.split(": ")[0] for detail in caught.value.details] == ["a.jsonl:2", "a.jsonl:3"]
    report = encode(rows, LLAMA, options(bad_rows="drop")).report
    assert (report["kept"], report["dropped"]) == (1, 2)
    assert "<|eot_id|>" in report["named"][0]["reason"]


def test_a_template_that_refuses_rows_is_a_template_error() -> None:
    rows = [
        row(1, "a", "b"),
        Conversation((Message("system", "s"), *SHORT.messages), Origin("a.jsonl", 2, 1)),
    ]
    with pytest.raises(TemplateError, match="1 of 2 rows") as caught:
        encode(rows, RENDERERS["mistral"], options())
    assert "a.jsonl:2" in caught.value.details[0]


def test_nothing_left_is_an_error() -> None:
    with pytest.raises(DataError, match="None of the rows") as caught:
        encode([LONG], LLAMA, options(max_length=32, too_long="drop"))
    assert "longer than 32" in caught.value.details[0]
    with pytest.raises(DataError, match="None") as caught:
        encode([SHORT], LLAMA, options(train_on="marked"))
    assert "train: true" in caught.value.fix
    with pytest.raises(DataError, match="None"):
        encode([row(1, "no reply")], LLAMA, options())
    with pytest.raises(DataError, match="no rows"):
        encode([], LLAMA, options())


def test_preference_rows_are_named() -> None:
    turn = (Message("assistant", "b"),)
    wrong = Preference((Message("user", "a"),), turn, turn, Origin("p.jsonl", 4, 3))
    with pytest.raises(DataError, match=r"1 of 2 rows are preference rows .*p\.jsonl:4"):
        encode([SHORT, wrong], LLAMA, options())


def test_a_base_model_needs_a_template_only_for_conversations() -> None:
    text = Text("明月", Origin("t.txt", 1, 0))
    assert encode([text], RENDERERS["gpt2"], options()).report["kept"] == 1
    with pytest.raises(TemplateError, match="base models have none"):
        encode([text, SHORT], RENDERERS["gpt2"], options(bad_rows="drop"))
