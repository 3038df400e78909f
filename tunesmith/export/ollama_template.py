"""A chat template of Jinja as one of Go, which is what Ollama reads: found by rendering, proved by rendering.

Between two texts of a conversation stands something that depends on who spoke and who speaks next: an end, a
header, the default system prompt. These pieces are cut out of renders of conversations of marks. The pieces
together must then give, to the letter, what the Jinja template gives for hundreds of drawn conversations;
where they don't, the template does more than pieces can say, and is refused.

    start  system: <|im_start|>system\\n          system  user:      <|im_end|>\\n<|im_start|>user\\n
    start  user:   <|im_start|>user\\n            user    assistant: <|im_end|>\\n<|im_start|>assistant\\n

Ollama's template is Go's text/template (https://github.com/ollama/ollama/blob/main/docs/template.md); every
piece is written as a quoted string of Go, so that no brace or blank in it can mean anything.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tunesmith.data.template import Renderer
from tunesmith.errors import TemplateError
from tunesmith.records import Conversation, Message, Origin, Role

START, REPLY = "start", "reply"
_ROLES: tuple[Role, ...] = ("system", "user", "assistant")
_DRAWN = 300
_WORDS = (
    "hello", "你好", "the", "山", "{{x}}", "<b>", '"quoted"', "it's", "3.14", "🚀", "\\n", "`code`", "$1",
    "%s",
    "春眠不覺曉", "end.", "a\nb", "a\n\nb",
)  # fmt: skip


@dataclass(frozen=True)
class Pieces:
    """What stands before a text, by (who spoke last, who speaks); REPLY is where the model goes on.

    `strips`: roles around whose texts the Jinja template strips white space, which Go's can't. `folds`: it
    takes no system message; Go's puts one in front of the first question, as such models are mostly used.
    """

    before: dict[tuple[str, str], str]
    strips: frozenset[str] = frozenset()
    folds: bool = False

    @property
    def notes(self) -> list[str]:
        """What Ollama's template does otherwise, for people."""
        found = []
        if self.strips:
            found.append(
                "The model's template strips white space around the messages of "
                f"{' and '.join(sorted(self.strips))}; Ollama's can't, so send messages without it."
            )
        if self.folds:
            found.append(
                "The model's template takes no system message; in Ollama one is put in front of the first "
                "question, with an empty line between them."
            )
        return found

    def render(self, messages: Sequence[tuple[str, str]]) -> str:
        """A conversation of (role, text), with what asks for the assistant's reply."""
        last, parts = START, []
        for role, text in messages:
            parts += [self.before[last, role], text.strip() if role in self.strips else text]
            last = role
        return "".join((*parts, self.before[last, REPLY]))

    def go(self, bos: str = "") -> str:
        """The template in Go; `bos` is what Ollama puts in front by itself, and isn't written again."""
        lines = [f'{{{{- $last := "{START}" }}}}{{{{- range .Messages }}}}']
        before = dict(self.before)
        if self.folds:
            before[START, "system"], before["system", "user"] = before[START, "user"], "\n\n"
        for role in (*_ROLES, REPLY):
            cases = {
                last: piece.removeprefix(bos) if last == START and bos else piece
                for (last, next_role), piece in before.items()
                if next_role == role
            }
            if role == REPLY:
                # A last message of the assistant is gone on with, as Ollama's own templates do.
                lines.append('{{- end }}{{- if ne $last "assistant" }}' + _chosen(cases, role))
            elif cases:
                lines.append(f'{{{{- if eq .Role "{role}" }}}}{_chosen(cases, role)}')
                lines.append(f'{{{{- .Content }}}}{{{{- $last = "{role}" }}}}{{{{- end }}}}')
        return "\n".join((*lines, "{{- end }}"))


def pieces_of(renderer: Renderer, seed: int = 0) -> Pieces:
    """The pieces of a renderer's template. Raises TemplateError where it does more than pieces can say."""
    if "strftime_now" in renderer.text:
        raise _refused("it writes the date of the day")
    strips = _strips(renderer)
    before: dict[tuple[str, str], str] = {}
    for roles, usual in _orders():
        marks = [f"<<mark {place} of {role}>>" for place, role in enumerate(roles)]
        text = _rendered(renderer, list(zip(roles, marks, strict=True)))
        if text is None:
            continue
        rest = text
        for last, role, mark in zip((START, *roles), (*roles, REPLY), (*marks, None), strict=True):
            if mark is None:
                piece, rest = rest, ""
            elif rest.count(mark) == 1:
                piece, _, rest = rest.partition(mark)
            elif not usual:
                break
            else:
                raise _refused(f"a text of the {role} stands in it {text.count(mark)} times, or out of order")
            known = before.setdefault((last, role), piece)
            if known != piece and usual:
                raise _refused(
                    f"between {last} and {role} it writes now {known!r}, now {piece!r}, depending on more "
                    "than who speaks"
                )
    if not {(START, "user"), ("user", REPLY)} <= before.keys():
        raise _refused("it renders no question of a user")
    folds = (START, "system") not in before
    if folds:
        before = {pair: piece for pair, piece in before.items() if "system" not in pair}
    pieces = Pieces(before, strips, folds)
    _prove(renderer, pieces, seed)
    return pieces


def _orders() -> Iterator[tuple[tuple[Role, ...], bool]]:
    """Conversations that ask for a reply; first the usual ones (True), in which the pieces must agree."""
    for turns in (1, 2, 3, 4):
        talk: tuple[Role, ...] = (*(("user", "assistant") * (turns - 1)), "user")
        yield talk, True
        yield ("system", *talk), True
    for count in (1, 2, 3):
        for order in itertools.product(_ROLES, repeat=count):
            # A last word of the assistant is gone on with, and Ollama joins two messages of one role.
            if order[-1] != "assistant" and all(a != b for a, b in itertools.pairwise(order)):
                yield order, False


def _prove(renderer: Renderer, pieces: Pieces, seed: int) -> None:
    draw = random.Random(seed)
    for _ in range(_DRAWN):
        messages = drawn(draw, pieces)
        wanted = _rendered(renderer, messages)
        if wanted is not None and pieces.render(messages) != wanted:
            raise _refused(f"{messages!r:.200} is rendered otherwise than its pieces say")


def drawn(draw: random.Random, pieces: Pieces) -> list[tuple[str, str]]:
    """A conversation of an order that the pieces know, which ends with a question."""
    count = draw.randint(1, 6)
    roles: list[Role] = ["system"] if draw.random() < 0.5 and (START, "system") in pieces.before else []
    roles += [("user", "assistant")[place % 2] for place in range(2 * count - 1)]
    return [(role, _text(draw, strip=role in pieces.strips)) for role in roles]


def _text(draw: random.Random, *, strip: bool) -> str:
    text = draw.choice(("", " ", "\n")).join(draw.choice(_WORDS) for _ in range(draw.randint(1, 8)))
    return text.strip() if strip else draw.choice((text, text, f" {text}", f"{text}\n"))


def _strips(renderer: Renderer) -> frozenset[str]:
    """The roles whose texts lose the white space around them."""
    found = set()
    odd = " \n<<mark>>\n "
    for role in _ROLES:
        talk = [("user", "first"), ("assistant", "second"), ("user", "third")]
        if role == "system":
            talk.insert(0, (role, ""))
        place = next(n for n, turn in enumerate(talk) if turn[0] == role)
        text = _rendered(renderer, [*talk[:place], (role, odd), *talk[place + 1 :]])
        if text is not None and odd not in text:
            found.add(role)
    return frozenset(found)


def _rendered(renderer: Renderer, messages: Sequence[tuple[str, str]]) -> str | None:
    """The Jinja template's text, with what asks for a reply; None where it refuses such a conversation."""
    turns = tuple(Message(role, text) for role, text in messages)  # type: ignore[arg-type]
    conversation = Conversation(turns, Origin("ollama", 1, 0))
    try:
        return renderer.render(conversation, len(turns), prompt=True, thinking=renderer.thinking)
    except TemplateError:
        return None


def _refused(why: str) -> TemplateError:
    return TemplateError(
        f"The chat template can't be written for Ollama: {why}.",
        fix="Use --to gguf: llama.cpp (llama-server --jinja) renders the model's own template, which is in "
        "the file.",
    )


def _chosen(cases: dict[str, str], role: str) -> str:
    """Go text that writes the piece of whoever spoke last.

    Who mostly speaks before a role serves for orders that the template doesn't know: Ollama leaves out the
    oldest messages of a long chat, so that any may come.
    """
    usual = {"system": START, "user": "assistant", "assistant": "user", REPLY: "user"}[role]
    default = cases.get(usual, next(iter(cases.values())))
    text = ""
    for last, piece in cases.items():
        if piece != default:
            text += f'{{{{- {"else " if text else ""}if eq $last "{last}" }}}}{_literal(piece)}'
    return text + f"{{{{- else }}}}{_literal(default)}{{{{- end }}}}" if text else _literal(default)


def _literal(text: str) -> str:
    # A string of JSON is one of Go; escaped quotes can't end the Modelfile's """.
    return f"{{{{- {json.dumps(text, ensure_ascii=False)} }}}}" if text else ""
