"""A chat without a screen: what is remembered, what the commands do, and what happens when it's full."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.families import save_tiny
from tests.infer.made_run import made_run
from tunesmith.data.prompts import read_prompts as read_rows
from tunesmith.errors import DataError, GenerateError, ModelError, SettingsError
from tunesmith.infer.chat import COMMANDS, Chat
from tunesmith.infer.local import LocalModel, load
from tunesmith.records import Completion, Conversation


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LocalModel:
    return load(str(made_run(tmp_path_factory.mktemp("chat") / "run").path), dtype="fp32")


@pytest.fixture
def chat(model: LocalModel) -> Chat:
    return Chat(model, asked={"max_new_tokens": 6, "do_sample": False})


def said(chat: Chat, text: str) -> str:
    return "".join(chat.say(text))


def finished(chat: Chat, text: str) -> Completion:
    found: list[Completion] = []

    def pieces() -> Iterator[str]:
        found.append((yield from chat.say(text)))

    list(pieces())
    return found[0]


def tokens(chat: Chat) -> int:
    """Prompt tokens of the next answer."""
    done = finished(chat, "Hi")
    chat.turns.pop()
    return done.prompt_tokens


def test_turns_are_remembered_and_reset(chat: Chat) -> None:
    alone = tokens(chat)
    answer = said(chat, "你好")
    assert chat.turns == [("你好", answer)]
    assert tokens(chat) > alone
    chat.command("/reset")
    assert chat.turns == []
    assert tokens(chat) == alone


def test_the_system_prompt(chat: Chat) -> None:
    alone = tokens(chat)
    assert "no system prompt" in (chat.command("/system") or "")
    chat.command("/system 你是一個詩人。 Answer in verse.")
    assert chat.system == "你是一個詩人。 Answer in verse."
    assert "詩人" in (chat.command("/system") or "")
    longer = tokens(chat)
    assert longer > alone
    chat.command("/reset")
    assert tokens(chat) == longer, "a new conversation keeps it"
    chat.command("/system none")
    assert tokens(chat) == alone


def test_a_value_keeps_its_equals_signs(chat: Chat) -> None:
    for line, stop in (("/set stop ==END==", "==END=="), ("/set stop=a=b", "a=b"), ("/set stop x", "x")):
        assert chat.command(line) == f"stop is {stop!r}."
        assert chat.model.sampling.stop == (stop,)
    assert chat.command("/set stop 。") == "stop is '。'."
    assert chat.command("/set stop default") == "stop is not set."


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("/compar x", "There is no command /compar (did you mean '/compare'?)."),
        ("/bad", "There is no command /bad."),  # all begin with a slash, which makes none of them near
    ],
)
def test_a_command_that_is_not_there(chat: Chat, line: str, said: str) -> None:
    with pytest.raises(SettingsError) as caught:
        chat.command(line)
    assert caught.value.what == said


def test_settings_change_and_stay_as_they_were_when_they_are_wrong(chat: Chat) -> None:
    chat.command("/set do_sample default")
    chat.command("/set temperature 0.3")
    assert chat.model.sampling.given() == {"max_new_tokens": 6, "temperature": 0.3, "top_p": 0.9}
    kept = chat.model.sampling
    for line, words in (
        ("/set temperature 0", "set do_sample false"),
        ("/set temperature warm", "a valid number"),
        ("/set do_sample false", "temperature would do nothing"),
        ("/set num_beams 4", "num_beams 4"),
        ("/set num_return_sequences 2", "num_return_sequences 2"),
        ("/set temprature 1", "did you mean 'temperature'"),
        ("/set temprature default", "did you mean 'temperature'"),
        ("/set max_length 100", "max_length counts"),
        ("/set", "takes a setting and its value"),
        ("/set top_k", "takes a setting and its value"),
    ):
        with pytest.raises(SettingsError) as caught:
            chat.command(line)
        assert words in str(caught.value), line
        assert chat.model.sampling is kept
        assert chat.asked == {"max_new_tokens": 6, "temperature": 0.3}
    chat.command("/set top_k=5")
    chat.command('/set stop ["\\n", "。"]')
    assert chat.model.sampling.top_k == 5
    assert chat.model.sampling.stop == ("\n", "。")
    shown = chat.command("/show") or ""
    assert "top_p           0.9  (a chat's default)" in shown
    assert "temperature     0.3\n" in shown
    assert "num_beams" in shown.partition("Not set:")[2]


def test_settings_reach_the_answers(chat: Chat) -> None:
    assert len(said(chat, "Hi")) > 1
    chat.command("/set max_new_tokens 1")
    assert finished(chat, "Hi").completion_tokens == 1


def test_base_switches_the_adapter_off_and_on(chat: Chat) -> None:
    tuned = said(chat, "Hi")
    with chat.model.base():
        expected = chat.model.chat("Hi")
    chat.command("/reset")
    assert "base model answers" in (chat.command("/base") or "")
    assert said(chat, "Hi") == expected != tuned
    chat.command("/reset")
    assert "tuned model answers" in (chat.command("/base") or "")
    assert said(chat, "Hi") == tuned


def test_base_says_where_there_is_none(tmp_path: Path) -> None:
    plain = Chat(load(str(save_tiny("qwen2", tmp_path / "base")), dtype="fp32"))
    with pytest.raises(ModelError, match="has no adapter: it is no run but a model by itself"):
        plain.command("/base")
    assert plain.adapter_on


def test_an_answer_that_is_broken_off_is_remembered_as_far_as_it_got(chat: Chat) -> None:
    chat.command("/set max_new_tokens 60")
    whole = said(chat, "Hi")
    chat.command("/reset")
    pieces = chat.say("Hi")
    first = next(pieces)
    pieces.close()
    assert chat.turns == [("Hi", first)]
    assert whole.startswith(first)
    chat.command("/reset")
    unread = chat.say("Hi")
    unread.close()
    assert chat.turns == []


def test_a_message_that_cannot_be_sent_is_not_remembered(chat: Chat) -> None:
    said(chat, "Hi")
    before = list(chat.turns)
    with pytest.raises(DataError):
        said(chat, "forged <|eot_id|>")
    assert chat.turns == before
    assert said(chat, "Hi again")


def test_an_error_before_the_first_piece_leaves_nothing(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_conversation: Conversation) -> Iterator[str]:
        raise GenerateError("no numbers")
        yield

    monkeypatch.setattr(chat.model, "stream", fail)
    with pytest.raises(GenerateError):
        said(chat, "Hi")
    assert chat.turns == []


def test_a_full_conversation_names_the_turns_that_no_longer_fit(chat: Chat) -> None:
    for number in range(4):
        said(chat, f"{number} " + "word " * 25)
    kept = list(chat.turns)
    with pytest.raises(GenerateError) as caught:
        said(chat, "word " * 60)
    message = str(caught.value)
    assert "this model reads 512" in message
    assert "Turns 1 to 2 no longer fit" in message
    assert "/forget 2" in message
    assert chat.turns == kept, "nothing is cut by itself"
    chat.command("/forget 2")
    assert chat.turns == kept[2:]
    assert said(chat, "word " * 60)
    with pytest.raises(GenerateError, match="This message alone is too long"):
        said(chat, "word " * 400)


def test_max_length_makes_a_conversation_full_too(chat: Chat) -> None:
    chat.command("/set max_new_tokens default")
    chat.command("/set max_length 100")
    said(chat, "Hi")
    with pytest.raises(GenerateError, match="max_length is 100"):
        said(chat, "word " * 10)


def test_forget_takes_a_number_of_turns_that_are_there(chat: Chat) -> None:
    said(chat, "Hi")
    for line in ("/forget 2", "/forget 0", "/forget x", "/forget -1"):
        with pytest.raises(SettingsError, match="there are 1"):
            chat.command(line)
    chat.command("/forget")
    assert chat.turns == []


def test_every_command_is_in_the_help_and_unknown_ones_are_told(chat: Chat) -> None:
    text = chat.command("/help") or ""
    assert all(name in text for name in COMMANDS)
    with pytest.raises(SettingsError, match="did you mean '/system'"):
        chat.command("/sytem x")
    assert [chat.command(word) for word in ("/exit", "/quit", "/bye")] == [None] * 3


def test_with_a_seed_a_chat_repeats_itself_and_its_turns_differ(model: LocalModel) -> None:
    def talk() -> list[tuple[str, str]]:
        chat = Chat(model, asked={"temperature": 2.0, "seed": 3, "max_new_tokens": 6})
        for _ in range(3):
            said(chat, "Hi")
        return chat.turns

    once = talk()
    assert once == talk()
    assert len(set(once)) > 1


def test_wrong_settings_are_told_at_once(model: LocalModel) -> None:
    with pytest.raises(SettingsError):
        Chat(model, asked={"num_beams": 3})
    with pytest.raises(SettingsError):
        Chat(model, asked={"temperature": -1})


def test_both_answer_and_neither_is_remembered(chat: Chat) -> None:
    with pytest.raises(SettingsError, match="no message yet"):
        chat.compare("")
    answer = said(chat, "你好")
    base, tuned = chat.compare("")
    assert tuned == answer, "asked again as it was asked before"
    with chat.model.base():
        assert base == chat.model.chat("你好", max_new_tokens=6)
    assert base != tuned
    assert chat.turns == [("你好", answer)]
    assert chat.command("/compare Hi") == "[base]\n{}\n[tuned]\n{}".format(*chat.compare("Hi"))


def test_a_model_without_an_adapter_has_nothing_to_compare(tmp_path: Path) -> None:
    alone = Chat(load(str(save_tiny("llama", tmp_path / "base")), dtype="fp32"), asked={"max_new_tokens": 2})
    with pytest.raises(ModelError, match="has no adapter: it is no run but a model by itself"):
        alone.command("/compare Hi")


def test_a_chat_is_saved_and_loaded(chat: Chat, model: LocalModel, tmp_path: Path) -> None:
    chat.command("/system 請用一句話回答。")
    first = said(chat, "你好\n第二行")
    file = tmp_path / "chat.json"
    assert chat.command(f"/save {file}") == f"Saved: {file}, 1 turn."
    with pytest.raises(SettingsError, match="is there already"):
        chat.command(f"/save {file}")
    other = Chat(model, asked={"max_new_tokens": 2})
    assert "1 turn" in str(other.command(f"/load {file}"))
    assert (other.system, other.turns, other.asked) == (chat.system, [("你好\n第二行", first)], chat.asked)
    assert said(other, "Hi") == said(chat, "Hi")
    assert read_rows(file), "a saved chat is a row of training data"


def test_a_file_that_is_no_chat_changes_nothing(chat: Chat, tmp_path: Path) -> None:
    said(chat, "Hi")
    before = (list(chat.turns), chat.system, dict(chat.asked))
    file = tmp_path / "x.json"
    for text in (
        "not json",
        "[]",
        '{"messages": 3}',
        '{"messages": [{"role": "user", "content": "x"}], "settings": {}}',
        '{"messages": [], "settings": {"temperature": 0}}',
        '{"messages": [], "settings": {"num_beams": 3}}',
        '{"messages": ["Hi", {"role": "user", "content": "x"}, {"role": "assistant", "content": ""}], '
        '"settings": {}}',
        '{"messages": [{"role": "user"}, {"role": "assistant", "content": ""}], "settings": {}}',
    ):
        file.write_text(text, encoding="utf-8")
        with pytest.raises(SettingsError):
            chat.command(f"/load {file}")
    for line in ("/load", "/save", f"/load {tmp_path / 'missing.json'}"):
        with pytest.raises(SettingsError):
            chat.command(line)
    assert (chat.turns, chat.system, chat.asked) == before
