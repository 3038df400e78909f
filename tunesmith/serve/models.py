"""What is served: names, the loads behind them, and the lane in which each is computed.

runs and adapters over one base     one load; each adapter has a lane, and all take turns step by step
their base                          by its own name, in the first adapter's batch where the two can be mixed
a run tuned as a whole, a model     a load of its own
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from tunesmith.data.template import Renderer
from tunesmith.errors import DataError, TemplateError, UsageError
from tunesmith.evaluate.sides import base_of, loads_of
from tunesmith.infer.choosing import Choice, Chooser, row_generator
from tunesmith.infer.config import NEW_TOKENS, Sampling
from tunesmith.infer.decoding import slow_because
from tunesmith.infer.found import Found, find
from tunesmith.infer.guide import SchemaGuides
from tunesmith.infer.live import ROUNDING, LiveRow
from tunesmith.infer.local import LocalModel, over
from tunesmith.model import adapters
from tunesmith.model.fused_lora import can_mix
from tunesmith.model.load import context_length, first_use, load_model
from tunesmith.records import Conversation, Message, Origin
from tunesmith.serve.asking import Refused
from tunesmith.serve.lanes import BatchLane, SingleLane, cache_tokens

USUAL = 2048  # tokens of a prompt and its answer that there is room for in each place of a batch
UNKNOWN_CONTEXT = 32768  # tokens of prompt and answer for a model that names no limit


@dataclass
class Served:
    """A model that requests can name. `adapter`: whether its rows are computed with the adapter on."""

    name: str
    model: LocalModel
    lane: BatchLane | SingleLane
    adapter: bool
    context: int
    base: str | None = None  # the name of the model that it is an adapter of
    _tokenizing: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def fingerprint(self) -> str:
        """Differs where the weights or their number format do."""
        return f"fp_{self.model.weights}_{self.model.device.dtype_name}"

    @property
    def renderer(self) -> Renderer:
        """Its template and tokenizer."""
        return self.model.renderer

    def ids(self, prompt: Sequence[Message] | str | Sequence[int], param: str) -> list[int]:
        """A prompt in tokens. Raises Refused where it can't be asked."""
        tokenizer = self.renderer.tokenizer
        self._check_size(prompt, param)
        with self._tokenizing:
            if isinstance(prompt, str):
                found: list[int] = tokenizer(prompt, verbose=False)["input_ids"]
            elif prompt and isinstance(prompt[0], Message):
                found = self._rendered([one for one in prompt if isinstance(one, Message)], param)
            else:
                found = [one for one in prompt if isinstance(one, int)]
                size = self.vocabulary
                if any(not 0 <= one < size for one in found):
                    raise Refused(
                        400, f"{param} holds a number that is no token: 0 to {size - 1} are.", param=param
                    )
        if not found:
            raise Refused(400, f"{param} has no tokens: there is nothing to go on with.", param=param)
        if len(found) >= self.context:
            raise Refused(
                400,
                f"The prompt has {len(found)} tokens, and {self.name} reads {self.context} here, prompt and "
                "answer together. Shorten it, or begin a new conversation.",
                param=param,
                code="context_length_exceeded",
            )
        return found

    def _check_size(self, prompt: Sequence[Message] | str | Sequence[int], param: str) -> None:
        """Refuse what can't fit however it's cut into tokens, before the work of cutting it."""
        if isinstance(prompt, str):
            size = len(prompt.encode())
        else:
            size = sum(len(one.content.encode()) if isinstance(one, Message) else 1 for one in prompt)
        texts = isinstance(prompt, str) or isinstance(prompt[0], Message)
        most = self.context * (self.longest_token if texts else 1)
        if size > most:
            raise Refused(
                400,
                f"The prompt has {size} {'bytes' if texts else 'tokens'}, and {self.name} reads "
                f"{self.context} tokens here, which are {most} at most. Shorten it.",
                param=param,
                code="context_length_exceeded",
            )

    @cached_property
    def longest_token(self) -> int:
        """Bytes of text that one token stands for at most."""
        # A token's name has at least as many bytes as its text: byte-level alphabets and ▁ only add some.
        return max(len(name.encode()) for name in self.renderer.tokenizer.get_vocab())

    @property
    def vocabulary(self) -> int:
        """Tokens that the model knows."""
        return int(self.model.model.get_input_embeddings().weight.shape[0])

    def rows(self, ids: Sequence[int], sampling: Sampling, count: int, row: int, seed: int) -> list[LiveRow]:
        """So many answers to be to prompt number `row`. Raises SettingsError for a schema."""
        limit = min(sampling.max_new_tokens or NEW_TOKENS, self.context - len(ids))
        tokenizer, ends = self.renderer.tokenizer, self.renderer.stop_ids
        chooser = Chooser(sampling)
        guides: SchemaGuides | None = None
        if sampling.json_schema is not None:
            with self._tokenizing:
                guides = SchemaGuides(tokenizer, sampling.json_schema, sorted(ends), self.vocabulary)
        found = []
        for answer in range(count):
            guide = guides.new() if guides is not None else None
            choice = Choice(ids, sampling, row_generator(seed, row, answer), guide)
            found.append(
                LiveRow(ids, limit, choice, self.adapter, chooser=chooser, tokenizer=tokenizer, end_ids=ends)
            )
        return found

    def _rendered(self, messages: Sequence[Message], param: str) -> list[int]:
        try:
            return self.renderer.prompt_ids(Conversation(tuple(messages), Origin(param, 1, 0)))
        except DataError as error:  # a control token in a text
            raise Refused(400, error.what.split(": ", 1)[-1], param=param) from None
        except TemplateError as error:
            raise Refused(400, error.what.split(": ", 1)[-1], param=param) from None


@dataclass(frozen=True)
class Models:
    """All that is served, by name, in the order in which it's listed; `notes` are for whoever started it."""

    by_name: Mapping[str, Served]
    lanes: Sequence[BatchLane | SingleLane]
    notes: Sequence[str]


def public_name(name: str) -> str:
    """What a model is called in the API: a folder or file by its own name, without the way to it."""
    path = Path(name).expanduser()
    if path.exists() or path.is_absolute():
        path = path.resolve()
        return path.name.removesuffix(".gguf")
    return name


def load_all(
    names: Sequence[str], *, dtype: str, template: str | None, width: int, note: Callable[[str], None]
) -> Models:
    """Load models and runs for answers, `width` at a time. `note` is told what isn't as usual.

    Raises UsageError where two would have one name, and what `find` and `over` raise.
    """
    found = {at: find(name, dtype) for at, name in enumerate(names)}
    loads = [[found[at] for at in members] for members in loads_of(found)]
    called = [_with_base(members) for members in loads]
    _check_names(called)
    count = sum(max(1, sum(one.adapter is not None for _, one in members)) for members in called)
    served: list[Served] = []
    notes: list[str] = []
    for members in called:
        load = _Load(members, template, width, count, note)
        served += load.served
        notes += load.notes
    order = {public_name(name): at for at, name in enumerate(names)}
    served.sort(key=lambda one: order.get(one.name, len(order)))
    lanes: dict[int, BatchLane | SingleLane] = {id(one.lane): one.lane for one in served}
    return Models({one.name: one for one in served}, list(lanes.values()), notes)


def _with_base(members: Sequence[Found]) -> list[tuple[str, Found]]:
    """Who is served from a load, each with its name, and their base."""
    named = [(public_name(one.name), one) for one in members]
    tuned = [one for one in members if one.adapter is not None]
    if tuned and len(tuned) == len(members) and (base := base_of(tuned[0])) is not None:
        named.append((public_name(base.name), base))
    return named


def _check_names(loads: Sequence[Sequence[tuple[str, Found]]]) -> None:
    seen: dict[str, str] = {}
    for name, one in (pair for load in loads for pair in load):
        if name in seen and seen[name] != one.name:
            raise UsageError(
                f"Two models would be called {name!r}: {seen[name]} and {one.name}.",
                fix="Requests couldn't tell them apart: rename one of the folders, or serve them apart with "
                "--port.",
            )
        if name in seen and one.adapter is not None:
            raise UsageError(f"{one.name} is named twice.", fix="Name it once.")
        seen[name] = one.name


class _Load:
    """A base in memory with its adapters, and what is served from it."""

    def __init__(
        self,
        members: Sequence[tuple[str, Found]],
        template: str | None,
        width: int,
        lanes: int,
        note: Callable[[str], None],
    ) -> None:
        first = members[0][1]
        if waiting := first_use(first.base):
            note(waiting)
        self.whole: Any = load_model(first.base, first.device, quantization=first.quantization)
        tuned = [(name, one) for name, one in members if one.adapter is not None]
        self._at: int | None = 0 if tuned else None
        self._several = len(tuned) > 1
        if tuned:
            folders = [one.adapter for _, one in tuned if one.adapter is not None]
            self.whole = (
                adapters.attach_several(self.whole, folders)
                if self._several
                else adapters.attach(self.whole, folders[0])
            )
        self.inner: Any = self.whole.get_base_model() if tuned else self.whole
        self.context = context_length(self.inner) or UNKNOWN_CONTEXT
        self.slow = slow_because(self.inner)
        self.notes: list[str] = []
        bases = [(name, one) for name, one in members if one.adapter is None]
        base_name = bases[0][0] if bases else None
        self.served: list[Served] = []
        self._width, self._lanes = width, lanes
        mixing: BatchLane | SingleLane | None = None
        for at, (name, one) in enumerate(tuned):
            self._switch(at)
            lane = self._lane(partial(self._switched, at))
            if mixing is None and (self.slow or can_mix(self.inner)):
                mixing = lane
            self.served.append(self._serve(name, one, lane, template, note, adapter=True, base=base_name))
        for name, one in bases:
            lane = mixing or self._lane(self._all_off if tuned else nullcontext)
            mixed = mixing is not None
            if tuned and not mixed:
                self.notes.append(f"{name} is computed apart from {tuned[0][0]}: the two can't be mixed.")
            self.served.append(self._serve(name, one, lane, template, note, adapter=not mixed, base=None))

    def _lane(self, within: Callable[[], AbstractContextManager[Any]]) -> BatchLane | SingleLane:
        if self.slow:
            return SingleLane(self.inner, self.context, within, lambda: adapters.adapter_off(self.whole))
        # A conversation of full length, and several of the usual ones: torch takes all of it at once.
        wanted = max(self.context, self._width * USUAL) + self._width * ROUNDING
        tokens = cache_tokens(
            self.inner.config,
            self.inner.dtype.itemsize,
            self.inner.device.type,
            wanted=wanted,
            lanes=self._lanes,
        )
        return BatchLane(self.inner, self._width, tokens, within)

    def _serve(
        self,
        name: str,
        one: Found,
        lane: BatchLane | SingleLane,
        template: str | None,
        note: Callable[[str], None],
        *,
        adapter: bool,
        base: str | None,
    ) -> Served:
        model = over(one, self.whole, template=template, note=note if not self.served else None)
        context = self.context
        if isinstance(lane, BatchLane) and (room := lane.tokens - ROUNDING) < context:
            context = room
            text = (
                f"The memory holds {context:,} tokens of a conversation here, of the {self.context:,} that "
            )
            self.notes.append(f"{text}{name} could read.")
        return Served(name, replace(model, name=name), lane, adapter, context, base)

    def _switch(self, at: int) -> None:
        if self._several and at != self._at:
            adapters.switch(self.whole, at)
        self._at = at

    def _switched(self, at: int) -> AbstractContextManager[Any]:
        self._switch(at)
        return nullcontext()

    def _all_off(self) -> AbstractContextManager[Any]:
        return adapters.adapter_off(self.whole)
