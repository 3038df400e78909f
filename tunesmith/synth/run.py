"""From a request to the files: prepare, connect, make, write, account."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tunesmith.errors import GenerateError
from tunesmith.synth import account, output
from tunesmith.synth.asking import Asker, Budget, Model
from tunesmith.synth.chunk import Count
from tunesmith.synth.config import Price, Request
from tunesmith.synth.ledger import Ledger, file_of
from tunesmith.synth.make import FAILED, NOT_ASKED, Made, Watch, make_rows
from tunesmith.synth.prepare import Prepared, prepare
from tunesmith.synth.prompts import versions
from tunesmith.words import are, counted
from tunesmith.worklog import claim

Connect = Callable[[], tuple[Model | None, Model | None]]
Note = Callable[[str], None]


@dataclass(frozen=True)
class Result:
    """What came: `content` is the report, `file` where it stands, `lines` the account for a person."""

    content: dict[str, Any]
    file: Path
    lines: list[str]

    @property
    def rows(self) -> int:
        """Rows that were kept."""
        return sum(self.content["account"]["kept"].values())


def run(
    request: Request, connect: Connect, *, count: Count | None = None, watch: Watch = lambda *_: None,
    note: Note = lambda _: None,
) -> Result:  # fmt: skip
    """Make the rows. `connect` gives the maker and the judge once they are needed.

    Raises what `prepare` does, RunError, what the models raise, and GenerateError where no row came out.
    """
    prepared = prepare(request, count, note)
    tell(prepared, note)
    if request.judging and request.model == request.judge:
        note(f"{request.model} judges its own rows, and models favour what they wrote: name another --judge.")
    with claim(request.output, AGAIN):
        output.sweep(request.output)
        output.check_space(request.output, prepared)
        model, judging = connect()
        ledger = Ledger(file_of(request.output))
        try:
            output.check_replaceable(request.output, ledger, force=request.force)
            budget = Budget(ledger, _prices(request), request.max_calls, request.max_cost)
            maker = Asker(model, ledger, budget, request.tokens) if model else None
            judge = Asker(judging, ledger, budget, request.judge_tokens) if judging else None
            try:
                made = make_rows(prepared, maker, judge, watch)
            except KeyboardInterrupt:
                calls = sum(one.calls for one in ledger.sums())
                raise KeyboardInterrupt(f"Interrupted. {counted(calls, 'call')} kept.\n{AGAIN}") from None
            return _written(prepared, made, budget, model, judging)
        finally:
            ledger.close()


AGAIN = "The same command goes on, and asks nothing twice."


def tell(prepared: Prepared, note: Note) -> None:
    """Say what wasn't read, and what is special about what was."""
    for unread in prepared.library.unread:
        note(f"Not read: {unread.name}: {unread.reason}")
    for document in prepared.library.documents:
        for line in document.notes:
            note(f"{document.name}: {line}")


def _written(
    prepared: Prepared, made: Made, budget: Budget, model: Model | None, judging: Model | None
) -> Result:
    request, ledger = prepared.request, budget.ledger
    files = output.write_rows(
        request.output, prepared, made, ledger, model.name if model else "", judging.name if judging else ""
    )
    figures = account.account(prepared, made)
    waiting = figures["waiting"] + sum(why == NOT_ASKED for _, _, why, _ in made.without)
    failed = sum(why == FAILED for _, _, why, _ in made.without)
    failed += sum(row.why == f"judge: {FAILED}" for row in made.rows)
    content: dict[str, Any] = {
        "complete": not waiting and not failed and request.pilot is None,
        "stopped": budget.stopped if waiting else "",
        "account": figures,
        "files": files,
        "documents": [
            {"file": one.name, "sha256": one.sha256, "characters": len(one.text), "pages": one.pages,
             "empty_pages": list(one.empty_pages), "notes": list(one.notes)}
            for one in prepared.library.documents
        ],
        "unread": [asdict(one) for one in prepared.library.unread],
        "sections": {part: list(prepared.parts.values()).count(part) for part in ("train", "valid", "test")},
        "settings": request.facts(),
        "maker": model.facts() if model else None,
        "judge": judging.facts() if judging else None,
        "prompts": versions(request.made_kinds),
        "calls": [asdict(one) for one in ledger.sums()],
        "cost": round(budget.cost(), 6) if budget.prices else None,
        "without_price": [one.name for one in (model, judging) if one and one.name not in budget.prices],
    }  # fmt: skip
    told = account.lines(figures, made=bool(request.made_kinds))
    told += [
        f"no {part} rows came out, though {counted(n, 'section')} {are(n)} for {part}: there is no "
        f"{output.file_for(request.output, part).name}"
        for part in ("valid", "test")
        if (n := content["sections"][part]) and part not in figures["kept"]
    ]
    result = Result(content, output.write_report(request.output, content), told)
    if not result.rows:
        stopped = [f"{content['stopped']}."] if content["stopped"] else []
        raise GenerateError(
            "No row came out.", details=[*told, *stopped], fix=_what_to_do(request, ledger.file)
        )
    return result


def _prices(request: Request) -> Mapping[str, Price]:
    pairs = ((request.judge, request.judge_price), (request.model, request.price))
    return {name: price for name, price in pairs if name and price}


def _what_to_do(request: Request, ledger: Path) -> str:
    if not request.made_kinds:
        return f"A passage is continued by the next one of its section: give a --size below {request.size}."
    rejected = output.file_for(request.output, "rejected")
    return (
        f"Look into {rejected} for what was rejected, and into {ledger} for the replies: a small model "
        "may not be able to reply in JSON. --min-score is the threshold of the scores."
    )
