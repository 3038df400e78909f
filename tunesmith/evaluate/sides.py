"""Who is compared: names become sides, and sides that stand on one base share a load.

runs and adapters over the same base     one load, the adapters switched
a base and adapters over it              the same load, every adapter off
all others                               a load each, one after the other: two large ones needn't fit at once
endpoints                                asked where they are
files of answers                         nothing is loaded or asked
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from tunesmith.errors import ModelError, UsageError
from tunesmith.evaluate.answerers import Base, Note
from tunesmith.evaluate.compare import Side
from tunesmith.evaluate.predicted import Predictions
from tunesmith.infer.config import Sampling
from tunesmith.infer.endpoint import is_endpoint
from tunesmith.infer.found import Found, find
from tunesmith.infer.local import LocalModel, over
from tunesmith.infer.remote import connect
from tunesmith.model import adapters, source
from tunesmith.model.load import fingerprint, load_model, local_folder
from tunesmith.model.source import Source
from tunesmith.records import Completer


@dataclass(frozen=True)
class Sides:
    """Everybody of a comparison in the order asked for, the reference first.

    `order` is the one in which they are measured: those of one load after another.
    """

    names: tuple[str, ...]
    sides: tuple[Side, ...]
    order: tuple[int, ...]


def sides_of(
    names: Sequence[str],
    given: Mapping[str, Predictions],
    *,
    with_base: bool,
    dtype: str,
    template: str | None,
    sampling: Sampling,
    note: Note = lambda _: None,
) -> Sides:
    """The models, runs and files of these names (answers `given` of those), and first of all the runs' base
    if `with_base`.

    `note` is told where rows are sent, when the turn of an endpoint comes. Nothing is read into memory yet.
    Raises what `find` raises, for all of them before anything is measured; UsageError where there is no base,
    or more than one; ModelError if a base has changed since.
    """
    found = {
        at: find(name, dtype)
        for at, name in enumerate(names, with_base)
        if not is_endpoint(name) and name not in given
    }
    if with_base:
        found = {0: _base_under(list(found.values()), names), **found}
    sides: dict[int, Side] = {
        at: given[name] if name in given else partial(connect, name, sampling=sampling, note=note)
        for at, name in enumerate(names, with_base)
        if at not in found
    }
    for members in loads_of(found):
        load = _Load([found[at] for at in members], template, sampling)
        sides |= {at: partial(load.take, number) for number, at in enumerate(members)}
    named = (*((found[0].name,) if with_base else ()), *names)
    return Sides(named, tuple(sides[at] for at in range(len(named))), tuple(sides))


class _Load:
    """A base in memory, from the turn of its first side to that of its last."""

    def __init__(self, found: Sequence[Found], template: str | None, sampling: Sampling) -> None:
        self._found, self._template, self._sampling = found, template, sampling
        self._tuned = [at for at, one in enumerate(found) if one.adapter is not None]
        self._waiting = set(range(len(found)))
        self._model: Any = None

    def take(self, at: int) -> Completer:
        """The side that is measured now; any taken before it isn't asked again."""
        if self._model is None:
            first = self._found[0]
            self._model = load_model(first.base, first.device, quantization=first.quantization)
            if self._tuned:
                folders = [folder for one in self._found if (folder := one.adapter) is not None]
                self._model = adapters.attach_several(self._model, folders)
        side = over(self._found[at], self._model, template=self._template, sampling=self._sampling)
        self._waiting.discard(at)
        if not self._waiting:
            self._model = None
        if not self._tuned:
            return side
        if at not in self._tuned:
            return self._base(side)
        adapters.switch(side.model, self._tuned.index(at))
        return side

    def _base(self, side: LocalModel) -> Base:
        """The base under adapters: any of them, switched off."""
        return Base(replace(side, adapter=self._found[self._tuned[0]].adapter), side.name)


def loads_of(found: Mapping[int, Found]) -> list[list[int]]:
    """Numbers of those that share a load, each with all others of it."""
    loads: list[list[int]] = []
    for at, one in found.items():
        for load in loads:
            if all(one.shares_base(found[other]) for other in load):
                load.append(at)
                break
        else:
            loads.append([at])
    return loads


def _base_under(found: Sequence[Found], names: Sequence[str]) -> Found:
    """The base of all that were tuned, asked with the template of the first of them."""
    bases = {one.name: base for one in found if (base := base_of(one)) is not None}
    if not bases:
        raise UsageError(
            f"{names[0]} isn't the folder of a run, so it has no base to be compared with."
            if len(names) == 1
            else f"None of these is a run, so they have no base: {', '.join(names)}.",
            fix="Give a run (`tunesmith runs list`), or two models: tunesmith compare A B --data FILE.",
        )
    base = next(iter(bases.values()))
    if any(other.fingerprint != base.fingerprint for other in bases.values()):
        raise UsageError(
            "The runs were tuned from different bases: none can be the reference of all.",
            details=[f"{name}: {other.name}" for name, other in bases.items()],
            fix="Name the reference yourself, first of all: tunesmith compare BASE RUN1 RUN2 --data FILE.",
        )
    folder = local_folder(base.base)
    for one in found:
        if one.name not in bases and local_folder(one.base) == folder:
            raise UsageError(
                f"{one.name} is the base itself: it would be measured twice.",
                fix="Leave out its name, or --with-base (in Python with_base=True).",
            )
    return base


def base_of(one: Found) -> Found | None:
    """What a run or an adapter was tuned from, asked as it is: by its tokenizer and template."""
    if one.run is None and one.adapter is None:
        return None
    facts = (one.run.job().get("base") or {}) if one.run is not None else {}
    name = str(facts.get("name") or one.meta.get("model") or one.base.name)
    if one.adapter is not None:
        return replace(one, name=name, run=None, adapter=None)
    return replace(one, name=name, base=_base_of_run(one.name, facts, name), run=None)


def _base_of_run(run: str, facts: dict[str, Any], name: str) -> Source:
    """The base that a whole model was tuned from, as its fingerprint tells."""
    path = str(facts.get("path") or "")
    found = source.resolve(path if path and Path(path).exists() else name, facts.get("revision"))
    expected = facts.get("fingerprint")
    if expected and (now := fingerprint(found)) != expected:
        raise ModelError(
            f"{run} was tuned from another base than what {name} is now (fingerprint "
            f"{str(expected)[:12]}, now {now[:12]}): the difference would not be that of the training.",
            fix=f"Put back the base's files as they were, or compare with a model by name: "
            f"tunesmith compare MODEL {run} --data FILE.",
        )
    return found
