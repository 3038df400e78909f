"""Row formats: one conversation written in each of them parses back equal, and every bad row says why."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.rows import BAD, GOOD, USER, Q, messages_of, read, reason, rows_of, turn
from tunesmith.data.formats import RowError, not_used, parse, recognise
from tunesmith.errors import DataError
from tunesmith.records import Labelled, Origin, Preference, Text

quick = settings(max_examples=60, deadline=None)
WORDS = st.text(st.sampled_from(list("ab 詩，。\n😀\"'<|>")), min_size=1, max_size=8).filter(str.strip)
# (system or "", [(user, assistant), …]): what every format of conversations can say.
TALK = st.tuples(st.just("") | WORDS, st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=3))


def expected(system: str, pairs: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    turns = [("system", system)] if system else []
    for user, assistant in pairs:
        turns += [("user", user), ("assistant", assistant)]
    return turns


def as_alpaca(system: str, pairs: Sequence[tuple[str, str]]) -> dict[str, Any]:
    *history, (user, assistant) = pairs
    instruction, _, rest = user.partition("\n")
    whole = not instruction or not rest  # joined by one newline only if both are there
    return {
        "instruction": user if whole else instruction,
        "input": "" if whole else rest,
        "output": assistant,
        "system": system,
        "history": [list(pair) for pair in history],
    }


def as_turns(column: str, role: str, content: str, names: dict[str, str]) -> Callable[..., dict[str, Any]]:
    def write(system: str, pairs: Sequence[tuple[str, str]]) -> dict[str, Any]:
        return {column: [{role: names[who], content: text} for who, text in expected(system, pairs)]}

    return write


def as_lists(system: str, pairs: Sequence[tuple[str, str]]) -> dict[str, Any]:
    turns = [{"role": who, "content": text} for who, text in expected(system, pairs)]
    return {"prompt": turns[:-1], "completion": turns[-1:]}


def names(system: str, user: str, assistant: str) -> dict[str, str]:
    return {"system": system, "user": user, "assistant": assistant}


PLAIN = names("system", "user", "assistant")
WRITERS: dict[str, tuple[str, Callable[..., dict[str, Any]]]] = {
    "alpaca": ("alpaca", as_alpaca),
    "sharegpt": ("sharegpt", as_turns("conversations", "from", "value", names("system", "human", "gpt"))),
    "sharegpt, other names": (
        "sharegpt",
        as_turns("conversations", "from", "value", names("System", "User", "model")),
    ),
    "messages": ("messages", as_turns("messages", "role", "content", PLAIN)),
    "handbook": ("messages", as_turns("conversations", "role", "content", PLAIN)),
    "messages, other names": (
        "messages",
        as_turns("messages", "role", "content", names("developer", "human", "bot")),
    ),
    "prompt-completion, lists": ("prompt-completion", as_lists),
    "messages with a system column": (
        "messages",
        lambda system, pairs: {
            "messages": [{"role": who, "content": text} for who, text in expected("", pairs)],
            "system": system,
        },
    ),
    "a CSV cell": (
        "messages",
        lambda system, pairs: {
            "messages": json.dumps([{"role": w, "content": t} for w, t in expected(system, pairs)])
        },
    ),
}


@pytest.mark.parametrize("writer", WRITERS)
@quick
@given(talks=st.lists(TALK, min_size=1, max_size=4))
def test_conversations_parse_back_equal_from_every_format(writer: str, talks: list[Any]) -> None:
    name, write = WRITERS[writer]
    found, records = read(*(write(*talk) for talk in talks))
    assert found == name
    assert [messages_of(record) for record in records] == [expected(*talk) for talk in talks]


@quick
@given(pairs=st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=4))
def test_prompt_and_completion_as_text(pairs: list[tuple[str, str]]) -> None:
    found, records = read(*({"prompt": p, "completion": c} for p, c in pairs))
    assert found == "prompt-completion"
    assert [messages_of(record) for record in records] == [expected("", [pair]) for pair in pairs]


@pytest.mark.parametrize(
    ("instruction", "input_", "prompt"),
    [("a", "b", "a\nb"), ("a", "", "a"), ("", "b", "b"), ("a", None, "a"), (" a ", "b\n", " a \nb\n")],
)
def test_one_newline_joins_instruction_and_input(instruction: str, input_: str | None, prompt: str) -> None:
    _, (record,) = read({"instruction": instruction, "input": input_, "output": "c"})
    assert messages_of(record) == [("user", prompt), ("assistant", "c")]


def test_input_beside_a_list_of_turns_is_not_lost() -> None:
    row = {"instruction": [{"role": "user", "content": "q"}], "input": "THE INPUT", "output": "a"}
    assert "'input' holds text beside a list of turns" in reason(row, row | {"input": ""})


def test_the_reason_is_told() -> None:
    good = {"instruction": "a", "output": "b"}
    assert recognise(rows_of([good] * 3)).reason == "alpaca, because every row has instruction and output"
    assert (
        recognise(rows_of([*[good] * 3, {"x": 1}])).reason
        == "alpaca, because 3 of 4 readable rows have instruction and output"
    )
    turns = {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}
    assert (
        recognise(rows_of([turns] * 2)).reason
        == "sharegpt, because every row has conversations as turns with from and value"
    )
    assert recognise(rows_of(["a text"])).reason == "text, because it is a plain text file"
    assert recognise(rows_of([{"text": "a"}])).name == "text"


def test_text_rows() -> None:
    assert read({"text": "詩", "id": 7}) == ("text", [Text("詩", Origin("rows.json", 1, 0), "7")])
    assert read("詩\n。")[1] == [Text("詩\n。", Origin("rows.json", 1, 0))]
    assert "empty" in reason({"text": " "}, {"text": "a"})


# Preference and labelled rows


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "chosen": "good", "rejected": "bad"},
        {"instruction": "q", "input": "", "chosen": "good", "rejected": "bad"},
        {"prompt": [Q], "chosen": [turn("good")], "rejected": [turn("bad")]},
        {"prompt": "q", "chosen": [Q, turn("good")], "rejected": [Q, turn("bad")]},
        {"chosen": [Q, turn("good")], "rejected": [Q, turn("bad")]},
        {
            "conversations": [{"from": "human", "value": "q"}],
            "chosen": {"from": "gpt", "value": "good"},
            "rejected": {"from": "gpt", "value": "bad"},
        },
    ],
)
def test_preference_rows(row: dict[str, Any]) -> None:
    assert read(row) == ("preference", [Preference((USER,), (GOOD,), (BAD,), Origin("rows.json", 1, 0))])


@pytest.mark.parametrize(
    ("row", "word"),
    [
        ({"prompt": "q", "chosen": "x", "rejected": "x"}, "the same"),
        ({"prompt": "q", "chosen": "", "rejected": "x"}, "'chosen': the reply is empty"),
        ({"prompt": "q", "chosen": "x", "rejected": 5}, "'rejected' is a number"),
        ({"prompt": " ", "chosen": "x", "rejected": "y"}, "prompt is empty"),
        ({"prompt": "q", "chosen": [turn("x", "user")], "rejected": "y"}, "'chosen': two turns of the user"),
        ({"prompt": "q", "chosen": "x"}, "'rejected' is missing"),
    ],
)
def test_bad_preference_rows(row: dict[str, Any], word: str) -> None:
    assert word in reason(row, *[{"prompt": "q", "chosen": "good", "rejected": "bad"}] * 2)


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [Q, turn("good")], "label": True},
        {"messages": [Q, turn("good")], "kto_tag": True},
        {"prompt": "q", "completion": "good", "label": "true"},
        {"instruction": "q", "output": "good", "kto_tag": True},
    ],
)
def test_labelled_rows(row: dict[str, Any]) -> None:
    name, (record,) = read(row)
    assert name == "labelled"
    assert isinstance(record, Labelled)
    assert record.label is True
    assert record.conversation.messages == (USER, GOOD)


def test_a_label_of_another_kind_is_just_a_column() -> None:
    row = {"instruction": "q", "output": "good", "label": "positive"}
    assert read(row)[0] == "alpaca"
    assert not_used(rows_of([row]), recognise(rows_of([row]))) == ["label"]
    labelled = {"instruction": "q", "output": "good", "kto_tag": False}
    assert "'kto_tag' is a number (7), not true or false" in reason(labelled | {"kto_tag": 7}, labelled)


# Bad rows beside good ones; files that no format fits

ALPACA = {"instruction": "a", "input": "", "output": "b"}


@pytest.mark.parametrize(
    ("row", "word"),
    [
        ({"instruction": "a", "input": ""}, "the column 'output' is missing (there are: instruction, input)"),
        ({"input": "a", "output": "b"}, "the column 'instruction' is missing"),
        (ALPACA | {"output": None}, "'output' is null"),
        (ALPACA | {"output": ""}, "'output' is empty"),
        (ALPACA | {"output": " \n"}, "'output' is empty"),
        (ALPACA | {"output": 42}, "output is a number (42), not text"),
        (ALPACA | {"output": True}, "output is true, not text"),
        (ALPACA | {"instruction": ["a"]}, "turn 1 of instruction is text"),
        (ALPACA | {"input": {"a": 1}}, "input is an object, not text"),
        (ALPACA | {"instruction": " "}, "the prompt is empty (instruction and input)"),
        (ALPACA | {"system": 5}, "system is a number (5)"),
        (ALPACA | {"history": [["a"]]}, "pair 1 of 'history' isn't [user, assistant]"),
        (ALPACA | {"history": [["a", "b"], ["c", ""]]}, "the reply is empty (turn 4)"),
        (ALPACA | {"history": [["a", 5]]}, "the reply in pair 1 of 'history' is a number (5)"),
        (ALPACA | {"history": "none"}, "history is text, not a list"),
        ("just a text", "plain text"),
        ({"messages": [Q, turn("a")]}, "the column 'instruction' is missing"),
    ],
)
def test_rows_that_do_not_fit_are_bad_rows(row: Any, word: str) -> None:
    assert word in reason(row, ALPACA, ALPACA)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (
            {"question": "a", "answer": "b"},
            ("You have question and answer; rename them to", '{"prompt": "question", "response": "answer"}'),
        ),
        ({"问题": "a", "答案": "b"}, ("rename them to instruction and output",)),
        ({"Instruction": "a", "Output": "b"}, ("You have Instruction and Output",)),
        ({"instruction": "a", "ouput": "b"}, ("rename it to output",)),
        ({"instruction": "a", "input": "b"}, ("'output' is missing", "column 'input'")),
        ({"promt": "a", "completion": "b"}, ("rename",)),
        ({"prompt": "a", "chosen": "b"}, ("'rejected'", "missing")),
        ({"dialogue": [{"speaker": "a", "text": "b"}]}, ("messages", "a list of objects with speaker, text")),
        ({"conversations": [{"speaker": "a", "text": "b"}]}, ("role and content",)),
        ({"content": "a"}, ("rename it to text",)),
        ({"x": 1, "y": None}, ("column 'x' in every row: a number (1)", "known: alpaca")),
    ],
)  # fmt: skip
def test_where_no_format_fits_the_columns_and_a_way_out_are_shown(row: Any, words: tuple[str, ...]) -> None:
    with pytest.raises(DataError) as caught:
        recognise(rows_of([row] * 3))
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_rows_of_two_formats_are_not_guessed() -> None:
    rows = [ALPACA] * 2 + [{"messages": [Q, turn("a")]}] * 2
    with pytest.raises(DataError, match=r"2 alpaca, 2 messages"):
        recognise(rows_of(rows))
    with pytest.raises(DataError) as caught:
        recognise(rows_of([ALPACA, *[{"instruction": "a"}] * 3]))
    assert "only 1 of 4 rows fit alpaca" in str(caught.value)


def test_columns_that_are_not_read_are_named() -> None:
    rows = rows_of([ALPACA | {"id": 1, "source": "book", "empty": ""}, ALPACA | {"score": 0}])
    assert not_used(rows, recognise(rows)) == ["source", "score"]
    rows = rows_of([{"messages": [Q, turn("a") | {"reasoning_content": "why", "train": True}]}])
    assert not_used(rows, recognise(rows)) == ["messages.reasoning_content"]


# Prompts without an answer


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "a", "input": "b"},
        {"instruction": "a\nb", "output": ""},
        {"prompt": "a\nb"},
        {"messages": [turn("a\nb", "user")]},
        {"conversations": [{"from": "human", "value": "a\nb"}, {"from": "gpt", "value": " "}]},
    ],
)
def test_prompts_may_lack_an_answer(row: dict[str, Any]) -> None:
    _, (record,) = read(row, answers=False)
    assert messages_of(record) == [("user", "a\nb")]


def test_prompts_must_not_be_empty() -> None:
    assert "prompt is empty" in reason({"instruction": " "}, {"instruction": "a"}, answers=False)
    assert "no turn of the user" in reason(
        {"messages": [turn("s", "system")]}, {"messages": [Q]}, answers=False
    )


@quick
@given(
    rows=st.lists(
        st.sampled_from([ALPACA, {"instruction": 1}, {}, {"instruction": "a"}, "text", {"messages": []}]),
        min_size=1,
        max_size=12,
    )
)
def test_no_row_vanishes(rows: list[Any]) -> None:
    raw = rows_of(rows)
    if sum(row == ALPACA for row in rows) * 2 <= len(rows):
        return
    format = recognise(raw)
    parsed = bad = 0
    for row in raw:
        try:
            parse(row, format)
            parsed += 1
        except RowError:
            bad += 1
    assert (parsed, parsed + bad) == (sum(row == ALPACA for row in rows), len(rows))
