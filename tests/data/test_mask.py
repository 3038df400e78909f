"""The label mask: BOS once, prompts as at chat time, labels exactly what the model has to write."""

from __future__ import annotations

import random

import pytest

from tests.data.talks import ORIGIN, labels, reply, talk, with_template
from tests.families import CHAT_FAMILIES, FAMILIES, tiny_tokenizer
from tunesmith.data.labels import NOTE_ADDED, NOTE_BLOCKS, NOTE_BORDER, NOTE_EOS
from tunesmith.data.mask import NOTE_NOT_REPLY, NOTE_TAIL, NOTE_TURNS
from tunesmith.data.template import Encoded, Renderer
from tunesmith.errors import DataError, TemplateError
from tunesmith.records import Conversation, Message, Text

# family: labels of ("你好", "您好！") and then of ("1+1?", "It is 2."), and the prompt of the first
GOLDEN = {
    "llama": (
        ["您好！<|eot_id|>", "It is 2.<|eot_id|>"],
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n你好<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    "qwen2": (
        ["您好！<|im_end|>", "It is 2.<|im_end|>"],
        "<|im_start|>system\nBe helpful.<|im_end|>\n<|im_start|>user\n你好<|im_end|>\n"
        "<|im_start|>assistant\n",
    ),
    "qwen3": (
        ["您好！<|im_end|>", "It is 2.<|im_end|>"],
        "<|im_start|>user\n你好<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
    ),
    "gemma3": (
        ["您好！<end_of_turn>", "It is 2.<end_of_turn>"],
        "<bos><start_of_turn>user\n你好<end_of_turn>\n<start_of_turn>model\n",
    ),
    "mistral": ([" 您好！</s>", " It is 2.</s>"], "<s>[INST] 你好[/INST]"),
    # Its end token swallows the white space after it, and the end of text follows the last one.
    "phi3": (["您好！<|end|>", "It is 2.<|end|>"], "<|user|>\n你好<|end|>\n<|assistant|>\n"),
}

GOLDEN["gemma2"], GOLDEN["qwen3_moe"] = GOLDEN["gemma3"], GOLDEN["qwen3"]


@pytest.mark.parametrize("family", CHAT_FAMILIES)
def test_golden_labels_and_prompt(family: str) -> None:
    renderer = Renderer(tiny_tokenizer(family))
    wanted, prompt = GOLDEN[family]
    assert renderer.prompt_text(talk("你好")) == prompt
    examples = renderer.encode(talk("你好", "您好！", "1+1?", "It is 2."), "all_replies")
    assert [run for e in examples for run in labels(e, renderer)] == wanted
    [last] = renderer.encode(talk("你好", "您好！", "1+1?", "It is 2."), "last_reply")
    assert labels(last, renderer) == wanted[1:]


@pytest.mark.parametrize("family", CHAT_FAMILIES)
def test_training_ids_are_those_of_the_models_own_template_and_of_chat(family: str) -> None:
    """Seeded random conversations, token for token: the trap of two BOS, and of another template in chat."""
    tokenizer, pick = tiny_tokenizer(family), random.Random(family)
    renderer = Renderer(tokenizer)
    for _ in range(150):
        conversation = random_talk(pick, family)
        dicts = [m.as_dict() for m in conversation.messages]
        options = {"enable_thinking": False} if family.startswith("qwen3") else {}
        replies = [i for i, d in enumerate(dicts) if d["role"] == "assistant"]
        examples = renderer.encode(conversation, "all_replies")
        whole = [dicts] if len(examples) == 1 else [dicts[: i + 1] for i in replies]
        for encoded, turns in zip(examples, whole, strict=True):
            ids = tokenizer.apply_chat_template(turns, tokenize=True, **options)["input_ids"]
            if NOTE_BORDER in encoded.notes:
                assert renderer.decode(encoded.input_ids) == renderer.decode(ids)
            else:
                assert encoded.input_ids == ids
            assert encoded.input_ids.count(tokenizer.bos_token_id) == (
                family in ("llama", "gemma2", "gemma3", "mistral")
            )
        for i in replies:
            prompt = Conversation(conversation.messages[:i], ORIGIN)
            ids = renderer.prompt_ids(prompt)
            served = tokenizer.apply_chat_template(dicts[:i], add_generation_prompt=True, **options)
            assert ids == served["input_ids"]
            example = examples[0] if len(examples) == 1 else examples[replies.index(i)]
            assert example.input_ids[: len(ids)] == ids
            assert not any(example.label_mask[t] for t in range(len(ids))) or i != replies[0]
        check_labels(examples, conversation, renderer, replies)


def check_labels(
    examples: list[Encoded], conversation: Conversation, renderer: Renderer, replies: list[int]
) -> None:
    runs = [run for e in examples for run in labels(e, renderer)]
    assert len(runs) == len(replies)
    for run, i in zip(runs, replies, strict=True):
        content = conversation.messages[i].content
        text = run.strip()
        ends = [end for token in renderer.stop_ids if text.endswith(end := renderer.decode([token]))]
        assert ends, run
        assert text.removesuffix(ends[0]).strip() == content.strip()
    for example in examples:
        last = max(t for t, label in enumerate(example.label_mask) if label)
        assert example.input_ids[last] in renderer.stop_ids
        assert example.replies[-1].stop == last + 1
        assert not example.label_mask[0]


def random_talk(pick: random.Random, family: str) -> Conversation:
    words = [
        "你好",
        "明月",
        "，",
        "。",
        "\n",
        "\n\n",
        " ",
        "  ",
        "a",
        "Hello",
        "world",
        "1",
        "{",
        "}}",
        "é",
        "🙂",
    ]
    turns = ["".join(pick.choices(words, k=pick.randint(1, 12))) + pick.choice("。.x") for _ in range(6)]
    system = "短い。" if family in ("llama", "qwen2", "qwen3", "phi3") and pick.random() < 0.5 else None
    return talk(*turns[: 2 * pick.randint(1, 3)], system=system)


# Thinking


def test_a_reply_without_thinking_is_trained_as_chat_asks_for_it() -> None:
    renderer = Renderer(tiny_tokenizer("qwen3"))
    [encoded] = renderer.encode(talk("hi", "yo"), "all_replies")
    assert labels(encoded, renderer) == ["yo<|im_end|>"]
    asked = renderer.prompt_ids(talk("hi"))
    assert encoded.input_ids[: len(asked)] == asked
    assert renderer.decode(asked).endswith("assistant\n<think>\n\n</think>\n\n")


def test_a_reply_with_thinking_is_trained_with_its_thinking() -> None:
    renderer = Renderer(tiny_tokenizer("qwen3"), thinking=True)
    [encoded] = renderer.encode(talk("hi", "<think>\nhm\n</think>\n\nyo"), "all_replies")
    assert labels(encoded, renderer) == ["<think>\nhm\n</think>\n\nyo<|im_end|>"]
    asked = renderer.prompt_ids(talk("hi"))
    assert encoded.input_ids[: len(asked)] == asked


def test_earlier_replies_that_render_differently_become_examples_of_their_own() -> None:
    renderer = Renderer(tiny_tokenizer("qwen3"))
    row = talk("a?", "<think>\nx\n</think>\n\nA", "b?", "B")
    first, second = renderer.encode(row, "all_replies")
    assert labels(first, renderer) == ["<think>\nx\n</think>\n\nA<|im_end|>"]
    assert labels(second, renderer) == ["B<|im_end|>"]
    assert "x" not in renderer.decode(second.input_ids)
    assert first.notes == second.notes == (NOTE_TURNS,)


def test_thinking_without_a_switch_is_not_a_label_and_says_so() -> None:
    template = (
        "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\\n' }}"
        "{%- if m.role == 'assistant' %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}"
        "{{- m.content + '<|im_end|>\\n' }}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
    )
    renderer = with_template("qwen3", template)
    [encoded] = renderer.encode(talk("hi", "yo"), "all_replies")
    assert labels(encoded, renderer) == ["yo<|im_end|>"]
    assert encoded.notes == (NOTE_ADDED,)


@pytest.mark.parametrize("text", ["n", "i", "think", "end", "<", "\n n ", "im_end", "yo"])
def test_a_short_reply_is_not_taken_for_what_the_template_writes(text: str) -> None:
    """The prompt opens the thinking, the full text closes it empty: `n` stands in those tags too."""
    template = (
        "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\\n' }}"
        "{%- if m.role == 'assistant' %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}"
        "{{- m.content | trim + '<|im_end|>\\n' }}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n<think>\\n' }}{%- endif %}"
    )
    renderer = with_template("qwen2", template)  # here, the tags are text
    [encoded] = renderer.encode(talk("hi", text), "all_replies")
    assert labels(encoded, renderer) == [f"{text.strip()}<|im_end|>"]
    assert encoded.notes == (NOTE_ADDED,)


def test_a_short_thought_is_not_taken_for_its_tag() -> None:
    renderer = Renderer(tiny_tokenizer("qwen3"), thinking=True)
    [encoded] = renderer.encode(talk("hi", "<think>n</think>n"), "all_replies")
    assert labels(encoded, renderer) == ["<think>\nn\n</think>\n\nn<|im_end|>"]


def test_a_template_that_writes_a_short_reply_elsewhere_is_refused() -> None:
    template = (
        "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\\n' }}"
        "{{- 'end' if m.content == 'n' else m.content | upper }}{{- '<|im_end|>\\n' }}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
    )
    with pytest.raises(DataError, match=r"'n', .*stands more than once"):
        with_template("qwen2", template).encode(talk("1", "n"), "all_replies")


def test_a_prompt_that_training_would_never_see_is_refused() -> None:
    template = (
        "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}"
        "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n<think>\\n' }}{%- endif %}"
    )
    with pytest.raises(TemplateError, match=r"rows\.jsonl:7.*never gets"):
        with_template("qwen3", template).encode(talk("hi", "yo"), "all_replies")


# train_on


def test_train_on() -> None:
    renderer = Renderer(tiny_tokenizer("qwen2"))
    row = talk("a?", reply("A", True), "b?", reply("B", False), "c?", "C")

    def trained(train_on: str, conversation: Conversation = row) -> list[str]:
        return [run for e in renderer.encode(conversation, train_on) for run in labels(e, renderer)]  # type: ignore[arg-type]

    assert trained("all_replies") == ["A<|im_end|>", "C<|im_end|>"]
    assert trained("last_reply") == ["C<|im_end|>"]
    assert trained("marked") == ["A<|im_end|>"]
    assert trained("marked", talk("a?", "A")) == []
    assert trained("last_reply", talk("a?", "A", "b?", reply("B", False))) == []
    everything = "".join(trained("everything"))
    assert "a?" in everything
    assert "C<|im_end|>\n" in everything
    assert "\nB<|im_end|>" not in everything
    [encoded] = renderer.encode(talk("a?", "A"), "everything")
    assert encoded.label_mask == [False] + [True] * (len(encoded.input_ids) - 1)


@pytest.mark.parametrize("asked", ["e", "helpful", "user", "Be helpful.", "assistant", "start"])
def test_a_message_that_is_masked_is_not_taken_for_the_templates_own_text(asked: str) -> None:
    """The default system prompt `Be helpful.` and the headers hold these words too."""
    renderer = Renderer(tiny_tokenizer("qwen2"))
    row = talk(
        Message("user", asked, False), "fine", Message("user", asked), Message("assistant", "e", False)
    )
    [encoded] = renderer.encode(row, "everything")
    first, second, third = labels(encoded, renderer)
    assert first.endswith("Be helpful.<|im_end|>\n<|im_start|>user\n")
    assert second == (
        f"\n<|im_start|>assistant\nfine<|im_end|>\n<|im_start|>user\n{asked}<|im_end|>\n<|im_start|>assistant\n"
    )
    assert third == "\n"


def test_what_follows_the_last_trained_reply_is_left_out_and_noted() -> None:
    renderer = Renderer(tiny_tokenizer("llama"))
    [encoded] = renderer.encode(talk("a?", "A", "thanks"), "all_replies")
    assert renderer.decode(encoded.input_ids).endswith("A<|eot_id|>")
    assert encoded.notes == (NOTE_TAIL,)
    [encoded] = renderer.encode(talk(Message("user", "a?", True), "A"), "all_replies")
    assert encoded.notes == (NOTE_NOT_REPLY,)


def test_text_is_trained_whole_with_bos_and_eos() -> None:
    for family in FAMILIES:
        tokenizer = tiny_tokenizer(family)
        renderer = Renderer(tokenizer)
        [encoded] = renderer.encode(Text("白日依山盡", ORIGIN), "all_replies")
        assert encoded.input_ids == [*tokenizer("白日依山盡")["input_ids"], tokenizer.eos_token_id]
        assert encoded.label_mask == [False] + [True] * (len(encoded.input_ids) - 1)
        assert encoded.bos == renderer.adds_bos


# Borders and ends


def test_a_token_across_the_border_is_taken_apart_as_in_chat() -> None:
    template = (
        "{%- for m in messages %}{{- m.content + (eos_token if m.role == 'assistant' else '') }}{%- endfor %}"
    )
    renderer = with_template("gpt2", template)
    together = renderer.tokenise("Answer, the library")[0]
    [encoded] = renderer.encode(talk("Answer, the lib", "rary"), "all_replies")
    asked = renderer.prompt_ids(talk("Answer, the lib"))
    assert encoded.input_ids[: len(asked)] == asked
    assert encoded.input_ids[:-1] != together
    assert labels(encoded, renderer) == ["rary<|endoftext|>"]
    assert encoded.notes == (NOTE_BORDER,)
    first, second = renderer.encode(talk("the lib", "rary", " ask", " ing"), "all_replies")
    assert first.notes == (NOTE_TURNS, NOTE_BORDER)
    asked = renderer.prompt_ids(talk("the lib", "rary", " ask"))
    assert second.input_ids[: len(asked)] == asked


def test_an_empty_prompt_leaves_the_first_token_unlabelled() -> None:
    renderer = with_template("gpt2", "{%- for m in messages %}{{- m.content }}{%- endfor %}")
    [encoded] = renderer.encode(talk("", "yes"), "all_replies")
    assert encoded.label_mask == [False] + [True] * (len(encoded.input_ids) - 1)


def test_a_bos_that_begins_every_turn_is_not_kept_as_one() -> None:
    tokenizer = tiny_tokenizer("qwen2")
    tokenizer.bos_token = "<|im_start|>"  # as SmolLM2 has it
    [encoded] = Renderer(tokenizer).encode(talk("a", "b"), "all_replies")
    assert not encoded.bos


def test_a_template_without_end_tokens_gets_eos() -> None:
    template = "{%- for m in messages %}{{- m.role + ': ' + m.content + '\\n' }}{%- endfor %}"
    template += "{%- if add_generation_prompt %}{{- 'assistant: ' }}{%- endif %}"
    renderer = with_template("gpt2", template)
    [encoded] = renderer.encode(talk("a", "b"), "all_replies")
    assert renderer.decode(encoded.input_ids) == "user: a\nassistant: b<|endoftext|>"
    assert labels(encoded, renderer)[-1].endswith("b<|endoftext|>")
    assert encoded.notes[-1] == NOTE_EOS


def test_truncation_knows_header_and_reply() -> None:
    for family in CHAT_FAMILIES:
        renderer = Renderer(tiny_tokenizer(family))
        encoded = renderer.encode(talk("你好", "您好！", "1+1?", "2"), "all_replies")[-1]
        last = encoded.replies[-1]
        header = renderer.decode(encoded.input_ids[last.header : last.start])
        assert header.startswith(
            ("<|start_header_id|>a", "<|im_start|>a", "<start_of_turn>m", "<|assistant|>")
        ) or (family == "mistral" and not header)
        assert renderer.decode(encoded.input_ids[last.start : last.stop]) == GOLDEN[family][0][1].replace(
            "It is 2.", "2"
        )


def test_tool_calls_are_trained_with_their_end() -> None:
    template = (
        "{%- if tools %}{{- '<|im_start|>system\\n' + (tools | tojson) + '<|im_end|>\\n' }}{%- endif %}"
        "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\\n' + m.content }}"
        "{%- for c in m.tool_calls or [] %}{{- '<tool_call>' + (c.function | tojson) + '</tool_call>' }}"
        "{%- endfor %}{{- '<|im_end|>\\n' }}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
    )
    tool = {"type": "function", "function": {"name": "clock", "arguments": {}}}
    turns = (
        Message("user", "时间？"),
        Message("assistant", "", None, (tool,)),
        Message("tool", "9:00"),
        reply("九点。"),
    )
    renderer = with_template("qwen2", template)
    [encoded] = renderer.encode(Conversation(turns, ORIGIN, tools=(tool,)), "all_replies")
    call = '<tool_call>{"name": "clock", "arguments": {}}</tool_call><|im_end|>'
    assert labels(encoded, renderer) == [call, "九点。<|im_end|>"]


# Generation blocks

HEAD = "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\\n' }}"
TAIL = "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
TURN = "{%- if m.role == 'assistant' %}{% generation %}BODY{% endgeneration %}{%- else %}BODY{%- endif %}"
BODY = "{{- m.content + '<|im_end|>\\n' }}"


def blocks(template: str) -> Renderer:
    return with_template("qwen2", HEAD + template + TAIL)


def test_generation_blocks_agree_with_the_difference() -> None:
    renderer = blocks(TURN.replace("BODY", BODY))
    [encoded] = renderer.encode(talk("你", "好", "b", "c。"), "all_replies")
    assert labels(encoded, renderer) == ["好<|im_end|>", "c。<|im_end|>"]
    assert encoded.notes == ()
    [encoded] = renderer.encode(talk("你", "好", "b", "c。"), "last_reply")
    assert labels(encoded, renderer) == ["c。<|im_end|>"]


def test_generation_blocks_without_the_end_token_are_corrected() -> None:
    only_content = (
        "{%- if m.role == 'assistant' %}{% generation %}{{- m.content }}{% endgeneration %}"
        "{%- else %}{{- m.content }}{%- endif %}{{- '<|im_end|>\\n' }}"
    )
    renderer = blocks(only_content)
    [encoded] = renderer.encode(talk("a", "你好"), "all_replies")
    assert labels(encoded, renderer) == ["你好<|im_end|>"]
    assert encoded.notes == (NOTE_BLOCKS,)


def test_unsound_generation_blocks_are_refused() -> None:
    around_all = "{% generation %}" + BODY + "{% endgeneration %}"
    with pytest.raises(TemplateError, match="outside the replies"):
        blocks(around_all).encode(talk("a", "b"), "all_replies")
    nothing = BODY + "{% generation %}{% endgeneration %}"
    with pytest.raises(TemplateError, match="no token"):
        blocks(nothing).encode(talk("a", "b"), "all_replies")
