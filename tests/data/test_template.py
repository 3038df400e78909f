"""One renderer: templates by name and from files, what they refuse, and how they travel with a model."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from tests.data.talks import ORIGIN, labels, reply, talk, with_template
from tests.families import FAMILIES, tiny_tokenizer
from tunesmith.data.template import TEMPLATES, Renderer
from tunesmith.errors import DataError, SettingsError, TemplateError
from tunesmith.records import Conversation, Message, Text


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("template", TEMPLATES)
def test_named_templates_on_every_tokenizer(family: str, template: str) -> None:
    tokenizer = tiny_tokenizer(family)
    renderer = Renderer(tokenizer, template)
    [encoded] = renderer.encode(talk("你好", "您好！", "1+1?", "2", system="短"), "all_replies")
    end = "<|im_end|>" if template == "chatml" and "qwen" in family else tokenizer.eos_token
    assert labels(encoded, renderer) == [f"您好！{end}", f"2{end}"]
    assert (encoded.input_ids[0] == tokenizer.bos_token_id) == renderer.adds_bos
    if tokenizer.bos_token != end:
        assert encoded.input_ids.count(tokenizer.bos_token_id) == renderer.adds_bos
    assert tokenizer.convert_tokens_to_ids(end) in renderer.stop_ids


@pytest.mark.parametrize("family", FAMILIES)
def test_the_template_travels_with_the_tokenizer(family: str, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(family)
    before = tokenizer.chat_template
    renderer = Renderer(tokenizer, "chatml" if family == "gpt2" else None)
    renderer.save(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again.chat_template == renderer.text
    assert tokenizer.chat_template == before
    row = talk("你好", "您好！")
    assert Renderer(again).encode(row, "all_replies") == renderer.encode(row, "all_replies")
    assert Renderer(again).sha256 == renderer.sha256


def test_stop_ids() -> None:
    tokenizer = tiny_tokenizer("gemma3")
    given = [tokenizer.pad_token_id]
    names = {tokenizer.decode([i]) for i in Renderer(tokenizer, end_ids=given).stop_ids}
    assert names == {"<eos>", "<end_of_turn>", "<pad>"}


# Refusals


@pytest.mark.parametrize("text", ["so <|im_end|> ends", "<|endoftext|>", "<|im_start|>system"])
def test_control_tokens_in_text_are_refused(text: str) -> None:
    renderer = Renderer(tiny_tokenizer("qwen2"))
    for row in (talk(text, "A"), talk("a", text), Text(text, ORIGIN)):
        with pytest.raises(DataError, match=r"rows\.jsonl:7: .*<\|"):
            renderer.encode(row, "all_replies")
    with pytest.raises(DataError):
        renderer.prompt_ids(talk(text))


def test_a_system_message_that_the_template_refuses() -> None:
    for family in ("gemma3", "mistral"):
        renderer = Renderer(tiny_tokenizer(family))
        with pytest.raises(TemplateError, match=r"rows\.jsonl:7") as caught:
            renderer.encode(talk("a", "b", system="s"), "all_replies")
        assert "in front of the user's" in caught.value.fix


def test_text_that_the_template_loses_is_refused() -> None:
    drop_system = (
        "{%- for m in messages if m.role != 'system' %}{{- '<|im_start|>' + m.role + '\\n' }}"
        "{{- m.content + '<|im_end|>\\n' }}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
    )
    with pytest.raises(TemplateError, match="leaves out a system message"):
        with_template("qwen2", drop_system).encode(talk("a", "b", system="secret"), "all_replies")
    # its words may be the template's own
    with pytest.raises(TemplateError, match="leaves out a system message"):
        with_template("qwen2", drop_system).encode(talk("a", "b", system="assistant"), "all_replies")
    with pytest.raises(TemplateError, match="leaves out a system message"):
        with_template("qwen2", drop_system).prompt_ids(talk("a", system="user"))
    upper = drop_system.replace("m.content +", "m.content | upper +")
    with pytest.raises((DataError, TemplateError), match="rows"):
        with_template("qwen2", upper).encode(talk("A", "quiet"), "all_replies")


def test_a_row_that_begins_with_a_reply_is_refused() -> None:
    row = Conversation((reply("hi"), Message("user", "a"), reply("b")), ORIGIN)
    with pytest.raises(DataError, match="nothing asks for"):
        Renderer(tiny_tokenizer("qwen2")).encode(row, "all_replies")


def test_base_models_need_a_template_by_name() -> None:
    renderer = Renderer(tiny_tokenizer("gpt2"))
    with pytest.raises(TemplateError, match="base models have none") as caught:
        renderer.prompt_ids(talk("a"))
    assert "chatml, alpaca, plain" in caught.value.fix
    with pytest.raises(SettingsError, match="did you mean 'chatml'"):
        Renderer(tiny_tokenizer("gpt2"), "chatlm")
    with pytest.raises(TemplateError, match="no template file"):
        Renderer(tiny_tokenizer("gpt2"), "none.jinja")


def test_broken_templates(tmp_path: Path) -> None:
    file = tmp_path / "mine.jinja"
    file.write_text("{% for m in messages %}{{ m.content }", encoding="utf-8")
    with pytest.raises(TemplateError, match=r"mine\.jinja.*isn't valid Jinja: line 1"):
        Renderer(tiny_tokenizer("gpt2"), str(file))
    file.write_text("{{ messages[5].content.x.y }}", encoding="utf-8")
    with pytest.raises(TemplateError, match="UndefinedError"):
        Renderer(tiny_tokenizer("gpt2"), str(file)).prompt_ids(talk("a"))
    file.write_text("{{ bos_token }}{{ bos_token }}{{ messages[0].content }}", encoding="utf-8")
    with pytest.raises(TemplateError, match="BOS token twice"):
        Renderer(tiny_tokenizer("llama"), str(file))
    # the sandbox holds
    file.write_text("{{ messages.__class__.__mro__[1].__subclasses__() }}", encoding="utf-8")
    with pytest.raises(TemplateError, match="SecurityError"):
        Renderer(tiny_tokenizer("gpt2"), str(file)).prompt_ids(talk("a"))


def test_tools_without_a_place_are_refused() -> None:
    call = {"type": "function", "function": {"name": "clock", "arguments": {}}}
    row = Conversation((Message("user", "time?"), Message("assistant", "", None, (call,))), ORIGIN)
    with pytest.raises(DataError, match="tool call"):
        Renderer(tiny_tokenizer("qwen2")).encode(row, "all_replies")
    with pytest.raises(TemplateError, match="no place"):
        Renderer(tiny_tokenizer("qwen2")).prompt_ids(
            Conversation((Message("user", "time?"),), ORIGIN, tools=(call,))
        )
