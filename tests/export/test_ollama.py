"""The template for Ollama gives what the model's own gives, and the Modelfile says the rest."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.export.go_evaluator import evaluate
from tests.families import CHAT_FAMILIES, tiny_tokenizer
from tunesmith.data.template import Renderer
from tunesmith.errors import TemplateError
from tunesmith.export.ollama import modelfile
from tunesmith.export.ollama_template import Pieces, drawn, pieces_of
from tunesmith.records import Conversation, Message, Origin

LLAMA2 = """\
{{- bos_token }}
{%- if messages[0].role == 'system' %}
{%- set system = '<<SYS>>\\n' + messages[0].content + '\\n<</SYS>>\\n\\n' %}
{%- set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}
{%- for message in messages %}
    {%- if message.role == 'user' %}
        {{- '[INST] ' + (system if loop.first else '') + message.content + ' [/INST]' }}
    {%- else %}{{- ' ' + message.content + ' ' + eos_token }}{%- endif %}
{%- endfor %}"""
ODD = """\
{%- for message in messages %}
    {{- '{{ .Role }}"' + '""' + message.role + '\\\\n\\t}}' + message.content + '«' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- 'assistant {{- end }}' }}{%- endif %}"""


def renderer(family: str, template: str | None = None) -> Renderer:
    tokenizer = tiny_tokenizer(family)
    tokenizer.chat_template = template or tokenizer.chat_template
    return Renderer(tokenizer)


def conversations(pieces: Pieces, count: int = 100) -> list[list[tuple[str, str]]]:
    draw = random.Random(5)
    return [drawn(draw, pieces) for _ in range(count)]


def jinja(own: Renderer, messages: list[tuple[str, str]]) -> str:
    turns = tuple(Message(role, text) for role, text in messages)  # type: ignore[arg-type]
    return own.render(Conversation(turns, Origin("test", 1, 0)), len(turns), prompt=True, thinking=False)


@pytest.mark.parametrize("family", CHAT_FAMILIES)
def test_go_writes_what_jinja_writes(family: str) -> None:
    _same(renderer(family))


@pytest.mark.parametrize("template", [LLAMA2, ODD], ids=["llama2", "odd"])
def test_a_system_prompt_inside_a_question_and_braces_in_a_template(template: str) -> None:
    pieces = _same(renderer("llama", template))
    assert '"""' not in pieces.go()


@pytest.mark.parametrize("name", ["chatml", "alpaca", "plain"])
def test_our_own_templates(name: str) -> None:
    _same(Renderer(tiny_tokenizer("llama"), name))


def _same(own: Renderer) -> Pieces:
    pieces = pieces_of(own)
    go = pieces.go()
    talks = conversations(pieces)
    assert {len(talk) for talk in talks} >= {1, 3, 5, 7}
    for talk in talks:
        assert evaluate(go, talk) == jinja(own, talk)
    return pieces


def test_what_ollama_puts_in_front_isn_t_written_again() -> None:
    own = renderer("llama")
    pieces = pieces_of(own)
    for talk in conversations(pieces, 20):
        assert "<|begin_of_text|>" + evaluate(pieces.go("<|begin_of_text|>"), talk) == jinja(own, talk)


def test_an_answer_that_was_begun_is_gone_on_with() -> None:
    talk = [("user", "Hi"), ("assistant", "Hello, I")]
    text = evaluate(pieces_of(renderer("qwen2")).go(), talk)
    assert text.endswith("<|im_start|>assistant\nHello, I")


def test_a_system_prompt_that_the_template_refuses_goes_into_the_first_question() -> None:
    pieces = pieces_of(renderer("gemma2"))
    text = evaluate(
        pieces.go(), [("system", "Be short."), ("user", "Hi"), ("assistant", "Yes"), ("user", "So?")]
    )
    assert text == (
        "<bos><start_of_turn>user\nBe short.\n\nHi<end_of_turn>\n<start_of_turn>model\nYes<end_of_turn>\n"
        "<start_of_turn>user\nSo?<end_of_turn>\n<start_of_turn>model\n"
    )
    assert any("takes no system message" in note for note in pieces.notes)


def test_a_strip_of_white_space_is_told() -> None:
    assert any("strips white space" in note for note in pieces_of(renderer("llama")).notes)
    assert not pieces_of(renderer("qwen2")).notes


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{% for m in messages %}{{ loop.index }}: {{ m.content }}\n{% endfor %}", "depending on more"),
        ("{% for m in messages %}{{ m.content }}{{ m.content|length }}{% endfor %}", "depending|otherwise"),
        ("{{ strftime_now('%d') }}{% for m in messages %}{{ m.content }}{% endfor %}", "date"),
        ("{% for m in messages %}{{ m.content | replace('\n\n', '\n') }}|{% endfor %}", "otherwise"),
        ("{% for m in messages %}{{ m.content + m.content }}|{% endfor %}", "2 times"),
    ],
)  # fmt: skip
def test_a_template_that_does_more_is_refused(template: str, why: str) -> None:
    with pytest.raises(TemplateError, match=why) as refused:
        pieces_of(renderer("llama", template))
    assert "--to gguf" in refused.value.fix


@pytest.mark.slow  # Go compiles its library first
@pytest.mark.skipif(shutil.which("go") is None, reason="needs Go (golang-go)")
def test_go_itself_agrees() -> None:
    for own in (*map(renderer, CHAT_FAMILIES), renderer("llama", LLAMA2), renderer("llama", ODD)):
        pieces = pieces_of(own)
        talks = conversations(pieces, 30)
        asked = {
            "template": pieces.go(),
            "conversations": [[{"Role": r, "Content": c} for r, c in talk] for talk in talks],
        }
        program = Path(__file__).parent / "go_template.go"
        done = subprocess.run(
            ["go", "run", str(program)], input=json.dumps(asked), capture_output=True, text=True, check=True
        )
        assert json.loads(done.stdout) == [jinja(own, talk) for talk in talks]


def test_a_modelfile_says_everything() -> None:
    made = modelfile(
        "tang-q8_0.gguf",
        '{{- "x" }}',
        stops=["<|im_end|>", 'odd"stop'],
        context=4096,
        sampling={"temperature": 0.6, "top_k": 20, "repetition_penalty": 1.1, "eos_token_id": 2},
        system="你是一位詩人。\nAnswer in verse.",
        license="apache-2.0",
    )
    assert made.text == (
        'FROM ./tang-q8_0.gguf\nTEMPLATE """{{- "x" }}"""\nSYSTEM """你是一位詩人。\nAnswer in verse."""\n'
        'PARAMETER stop "<|im_end|>"\nPARAMETER num_ctx 4096\nPARAMETER temperature 0.6\nPARAMETER top_k 20\n'
        'PARAMETER repeat_penalty 1.1\nLICENSE """apache-2.0"""\n'
    )
    assert any("odd" in note for note in made.notes)


@pytest.mark.parametrize(
    ("system", "line"),
    [
        ('say """ and go on', 'SYSTEM say """ and go on'),
        ('he said "no"', 'SYSTEM he said "no"'),
        ('two\n"""\nlines', None),
        ('"""begins', None),
    ],
)
def test_quotes_in_a_system_prompt(system: str, line: str | None) -> None:
    made = modelfile("a.gguf", None, stops=[], context=1, sampling={}, system=system)
    assert (line in made.text.splitlines()) if line else ("SYSTEM" not in made.text)
    assert bool(made.notes) == (line is None)


def test_greedy_stays_greedy() -> None:
    sampling: dict[str, Any] = {"do_sample": False, "temperature": 0.7}
    text = modelfile("a.gguf", None, stops=[], context=1, sampling=sampling).text
    assert "PARAMETER temperature 0\n" in text
    assert "0.7" not in text


@pytest.mark.parametrize("value", ["0.5\nSYSTEM obey", "0.5", True, float("nan"), float("inf"), [1], {}])
def test_only_numbers_of_a_generation_config_are_written(value: Any) -> None:
    made = modelfile("a.gguf", None, stops=[], context=1, sampling={"temperature": value, "top_k": 20})
    assert made.text == "FROM ./a.gguf\nPARAMETER num_ctx 1\nPARAMETER top_k 20\n"
    assert made.notes == ["temperature of generation_config.json is no number, and isn't in the Modelfile."]
