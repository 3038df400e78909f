"""The one renderer: training, chat, generate and evaluation all turn conversations into tokens here.

Everything is rendered by `tokenizer.apply_chat_template` (transformers' sandbox), whether the template is
the model's own, one of ours by name, or a .jinja file, and the template is saved with what was trained. The
template writes BOS where the model wants it; text is tokenised without adding another one.

Our own templates end a reply with the tokenizer's eos token; chatml with <|im_end|> where that is a token
of the model. Elsewhere its markers are plain text: no embedding has to be learnt that the model never saw.

Templates that know `enable_thinking` get it on for replies that hold a `</think>`, and off otherwise.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from tunesmith.data.config import TrainOn
from tunesmith.data.labels import Encoded, Offsets, Reply
from tunesmith.data.mask import encode_conversation
from tunesmith.disk import disk_errors
from tunesmith.errors import DataError, SettingsError, TemplateError
from tunesmith.records import Conversation, Message, Origin, Text
from tunesmith.settings import nearest

__all__ = ["TEMPLATES", "Encoded", "Renderer", "Reply"]

TEMPLATES = ("chatml", "alpaca", "plain")
"""Templates for models that have none, by name."""

_GIVEN = ("system", "user")  # what a person gives: a template may refuse it, but not lose it
SHAPES = 1000  # orders of roles that are remembered
NOTE_NO_EOS = "the tokenizer has no eos token, so the texts end without one"


class Renderer:
    """Conversations as text and tokens, by one template, for one tokenizer.

    `name` is fit for a report, `text` the Jinja source, `stop_ids` the tokens that end an answer: eos, the
    given `end_ids` (those of the model's generation config), and the template's end-of-turn token. `thinking`
    is what prompts ask for where the template can switch it.

    A tokenizer without a template can still encode `Text`; a conversation then raises TemplateError.

    Raises SettingsError for an unknown template name, TemplateError for a template that isn't valid Jinja, or
    a tokenizer that can't tell where its tokens are in the text.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template: str | None = None,
        *,
        end_ids: Collection[int] = (),
        thinking: bool = False,
    ) -> None:
        if not tokenizer.is_fast:
            raise TemplateError(
                f"The tokenizer {type(tokenizer).__name__} can't tell where its tokens are in the text, so "
                "the label mask can't be made.",
                fix="Use a model folder with a tokenizer.json.",
            )
        self.tokenizer = tokenizer
        self.thinking = thinking
        self._lost: dict[tuple[object, ...], str] = {}
        self.eos_id: int | None = tokenizer.eos_token_id
        self.bos_id: int | None = tokenizer.bos_token_id
        self.adds_bos = self.bos_id is not None and tokenizer("a")["input_ids"][:1] == [self.bos_id]
        self.name, self.text = self._choose(template)
        self.sha256 = hashlib.sha256(self.text.encode()).hexdigest()
        self.switches_thinking = "enable_thinking" in self.text
        self._has_blocks = re.search(r"\{%-?\s*generation\s*-?%\}", self.text) is not None
        special = _special_tokens(tokenizer)
        self._forbidden = _any_of(
            [*special, *(("<|im_start|>", "<|im_end|>") if self.name == "chatml" else ())]
        )
        eos = () if self.eos_id is None else (self.eos_id,)
        self.end_like = frozenset({*special.values(), *eos, *end_ids})
        self.stop_ids = frozenset({*eos, *end_ids, *self._end_of_turn()})

    def prompt_text(self, conversation: Conversation) -> str:
        """The conversation with what asks for the next reply, exactly as training saw it."""
        self._check(conversation)
        return self.render(conversation, len(conversation.messages), prompt=True, thinking=self.thinking)

    def prompt_ids(self, conversation: Conversation) -> list[int]:
        """`prompt_text` in tokens."""
        return self.tokenise(self.prompt_text(conversation))[0]

    def encode(self, record: Conversation | Text, train_on: TrainOn) -> list[Encoded]:
        """The row in tokens with its label mask; several where earlier replies render differently later on.

        Empty where `train_on` leaves nothing to train. Raises TemplateError or DataError naming the row.
        """
        self._check(record)
        if isinstance(record, Text):
            return [self._encode_text(record)]
        return encode_conversation(self, record, train_on)

    def require_template(self) -> None:
        """Raise TemplateError if there is no template for conversations."""
        if not self.text:
            raise TemplateError(
                "The tokenizer has no chat template (base models have none), so it isn't known how to write "
                "a conversation.",
                fix=f"Choose one with data.template: {', '.join(TEMPLATES)}, or the path of a .jinja file.",
            )

    def save(self, folder: Path) -> None:
        """Write the tokenizer's files and the template, so that plain transformers finds both."""
        before = self.tokenizer.chat_template
        self.tokenizer.chat_template = self.text or None
        try:
            with disk_errors(folder):
                self.tokenizer.save_pretrained(folder)
        finally:
            self.tokenizer.chat_template = before

    # What follows is for the mask (data/mask.py).

    def render(self, conversation: Conversation, count: int, *, prompt: bool, thinking: bool) -> str:
        """The first `count` messages as text; `prompt` adds what asks for the next reply."""
        self.require_template()
        messages = conversation.messages[:count]
        text: str = self._apply(conversation, messages, prompt=prompt, thinking=thinking)
        lost: str = next((m.role for m in messages if m.role in _GIVEN and m.content.strip() not in text), "")
        lost = lost or self._lost_role(conversation, messages, prompt=prompt, thinking=thinking)
        if lost:
            raise TemplateError(
                f"{conversation.origin}: the template {self.name} leaves out a {lost} message.",
                fix="Put its text into the user's message, or use another template (data.template).",
            )
        return text

    def tokenise(self, text: str) -> tuple[list[int], Offsets]:
        """Ids of a rendered text, nothing added, and each token's place in it."""
        batch = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return batch["input_ids"], batch["offset_mapping"]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, special tokens included."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False))

    def generation_mask(self, conversation: Conversation, count: int, *, thinking: bool) -> list[bool] | None:
        """The tokens in the template's generation blocks; None where it has none."""
        if not self._has_blocks:
            return None
        messages = conversation.messages[:count]
        batch = self._apply(
            conversation, messages, prompt=False, thinking=thinking, tokenize=True, return_dict=True,
            return_assistant_tokens_mask=True,
        )  # fmt: skip
        return [bool(mark) for mark in batch["assistant_masks"]]

    def _lost_role(
        self, conversation: Conversation, messages: Sequence[Message], *, prompt: bool, thinking: bool
    ) -> str:
        """The role of a message that the template leaves out of such a conversation; "" for none.

        A text such as "user" is found in every render. So each order of roles is rendered once with a mark
        for each text.
        """
        shape = (
            tuple((m.role, bool(m.content.strip())) for m in messages),
            bool(conversation.tools),
            prompt,
            thinking,
        )
        if shape not in self._lost:
            if len(self._lost) >= SHAPES:  # a server sees more and more of them
                self._lost.clear()
            marks = [f"\ue000{n}\ue001" for n in range(len(messages))]
            marked = [
                replace(m, content=mark) if m.role in _GIVEN and m.content.strip() else m
                for m, mark in zip(messages, marks, strict=True)
            ]
            try:
                text = self._apply(conversation, marked, prompt=prompt, thinking=thinking)
            except TemplateError:
                return ""  # a template with wishes for the text itself
            pairs = zip(marked, marks, strict=True)
            self._lost[shape] = next(
                (m.role for m, mark in pairs if m.content == mark and mark not in text), ""
            )
        return self._lost[shape]

    def _apply(
        self,
        conversation: Conversation,
        messages: Sequence[Message],
        *,
        prompt: bool,
        thinking: bool,
        tokenize: bool = False,
        **options: Any,
    ) -> Any:
        if self.switches_thinking:
            options["enable_thinking"] = thinking
        try:
            return self.tokenizer.apply_chat_template(
                [message.as_dict() for message in messages],
                tools=[dict(tool) for tool in conversation.tools] or None,
                chat_template=self.text,
                add_generation_prompt=prompt,
                tokenize=tokenize,
                **options,
            )
        except Exception as error:  # the template is somebody's program: it can fail in any way
            raise _failure(conversation.origin, self.name, error, messages) from None

    def _check(self, record: Conversation | Text) -> None:
        if isinstance(record, Text):
            pieces = [("text", record.text)]
        else:
            pieces = [(m.role, m.content) for m in record.messages]
            pieces += [("name", m.name) for m in record.messages if m.name]
            pieces += [("tool_call_id", m.tool_call_id) for m in record.messages if m.tool_call_id]
            calls = [dict(call) for m in record.messages for call in m.tool_calls]
            if calls or record.tools:
                tools = [dict(tool) for tool in record.tools]
                pieces.append(("tools", json.dumps([calls, tools], ensure_ascii=False, default=str)))
            if record.tools and self.text and "tools" not in self.text:
                raise TemplateError(
                    f"{record.origin}: the row has tools; the template ({self.name}) has no place for them.",
                    fix="Use a model whose template knows tools, or take them out of the row.",
                )
        for where, text in pieces:
            if found := self._forbidden.search(text):
                raise DataError(
                    f"{record.origin}: the {where} contains {found[0]!r}, a control token of this "
                    "model: in text it would end or forge a turn.",
                    fix="Write it in another way (with a space in it, say), or leave bad rows out with "
                    "data.bad_rows: drop.",
                )

    def _encode_text(self, record: Text) -> Encoded:
        bos = [self.bos_id] if self.adds_bos and self.bos_id is not None else []
        eos = [] if self.eos_id is None else [self.eos_id]
        ids = [*bos, *self.tokenise(record.text)[0], *eos]
        notes = () if eos else (NOTE_NO_EOS,)
        return Encoded(ids, [False, *[True] * (len(ids) - 1)], record.origin, (), bool(bos), notes)

    def _choose(self, template: str | None) -> tuple[str, str]:
        if template is None:
            try:
                own = self.tokenizer.get_chat_template() if self.tokenizer.chat_template else ""
            except ValueError as error:
                raise TemplateError(
                    f"The tokenizer's templates can't be used: {error}", fix="Name one: data.template."
                ) from None
            return ("model's own" if own else "none"), own
        if template in TEMPLATES:
            return template, self._prelude(template) + _read(
                Path(__file__).parent / f"templates/{template}.jinja"
            )
        if template.endswith(".jinja"):
            return Path(template).name, _read(Path(template))
        raise SettingsError(
            f"There is no template {template!r}{nearest(template, TEMPLATES)}.",
            fix=f"Known: {', '.join(TEMPLATES)}; or the path of a .jinja file; or null for the model's own.",
        )

    def _prelude(self, name: str) -> str:
        """What our own templates can't know by themselves: this tokenizer's BOS and end of turn."""
        end = self.tokenizer.eos_token
        if name == "chatml" and "<|im_end|>" in _special_tokens(self.tokenizer):
            end = "<|im_end|>"
        if end is None:
            raise TemplateError(
                "The tokenizer has no eos token, so no reply could end.",
                fix="Use a model whose tokenizer has an eos token, or a .jinja template of your own.",
            )
        begin = self.tokenizer.bos_token if self.adds_bos else ""
        return f"{{%- set begin = {json.dumps(begin)} %}}{{%- set end = {json.dumps(end)} %}}\n"

    def _end_of_turn(self) -> set[int]:
        """The token that ends a reply, found by rendering one; also the template's first trial."""
        if not self.text:
            return set()
        probe = Conversation((Message("user", "Hi"), Message("assistant", "Yes")), Origin("probe", 1, 0))
        try:
            asked = self.tokenise(self.render(probe, 1, prompt=True, thinking=False))[0]
            if self.bos_id is not None and asked[:2] == [self.bos_id] * 2:
                raise _BrokenTemplate(
                    f"The template ({self.name}) writes the BOS token twice.",
                    fix="Take one of them out of the template.",
                )
            encoded = encode_conversation(self, probe, "all_replies")[0]
        except _BrokenTemplate:
            raise
        except (TemplateError, DataError):
            return set()  # a template with wishes of its own; real rows will tell
        last = encoded.input_ids[encoded.replies[-1].stop - 1]
        return {last} & self.end_like


class _BrokenTemplate(TemplateError):
    """The template itself isn't valid: no row can be rendered."""


def _failure(origin: Origin, name: str, error: Exception, messages: Sequence[Message]) -> TemplateError:
    kind = type(error).__name__
    if kind == "TemplateSyntaxError":
        line = getattr(error, "lineno", "?")
        return _BrokenTemplate(
            f"The template ({name}) isn't valid Jinja: line {line}: {error}.", fix="Correct the template."
        )
    # raise_exception gives a plain TemplateError with the template's own words.
    reason = str(error) if kind == "TemplateError" else f"{kind}: {error}"
    fix = "Correct the row, or use another template (data.template)."
    if any(message.role == "system" for message in messages):
        fix = "If it refuses the system message: put its text in front of the user's first message."
    return TemplateError(f"{origin}: the template ({name}) refuses the row: {reason}.", fix=fix)


def _read(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise TemplateError(f"There is no template file {path}.", fix="Check data.template.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise TemplateError(
            f"The template {path} can't be read: {error}.", fix="Save it as UTF-8, readable to you."
        ) from None
    if not text.strip():
        raise TemplateError(f"The template {path} is empty.", fix="Write a Jinja chat template into it.")
    return text


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Every special token's text and id."""
    added = {
        t.content: i for i, t in tokenizer.added_tokens_decoder.items() if t.special and t.content.strip()
    }
    return {**dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True)), **added}


def _any_of(words: Sequence[str]) -> re.Pattern[str]:
    longest_first = sorted({word for word in words if word}, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
