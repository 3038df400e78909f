"""The gate: is what lies on the disk the model that was tuned? Each check with its figure and verdict.

    token ids    of thousands of texts and of rendered conversations: all equal
    template     the same text
    metadata     vocabulary, special tokens, end tokens, tied or not, number format
    drift        mean KL(tuned || exported) over prompts, answers and passages: within the target's budget
    fine-tune    KL(tuned || exported) against KL(base || exported): an export that is nearer to the base has
                 lost what was trained, however small a budget it keeps

The last is needed because a light fine-tune may itself be smaller than the budget. Where training changed
nothing that can be measured (NOTHING), there is nothing to lose.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from tunesmith.export.figures import Distance, distance
from tunesmith.export.protocol import Exported
from tunesmith.export.reference import Heard, Reference, Watch, listen

BUDGET_16_BIT = 1e-3  # nats a token
BUDGET_BF16 = 3e-3  # its eight binary digits alone take 0.0002 to 0.0014 of SmolLM2-135M's tuned weights
NOTHING = 1e-7  # a mean KL that arithmetic alone makes
_SHOWN = 5
_MUST_SAY = ("vocabulary", "bos", "eos")

State = Literal["equal", "within", "over", "different", "reported", "not measured"]


@dataclass(frozen=True)
class Check:
    """One comparison: `figure` in words, `limit` where there is one, `details` what differs."""

    name: str
    state: State
    figure: str = ""
    limit: str = ""
    details: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether it speaks for the export, or at least not against it."""
        return self.state not in ("over", "different")


@dataclass(frozen=True)
class Answer:
    """What both say to a prompt, greedily."""

    prompt: str
    tuned: str
    exported: str
    own: bool

    @property
    def equal(self) -> bool:
        """Whether both texts are the same."""
        return self.tuned == self.exported


@dataclass(frozen=True)
class Verification:
    """All checks of one export, with the distances behind them."""

    checks: list[Check]
    drift: Distance
    arithmetic: str
    budget: float | None
    tuned_from_base: Distance | None = None
    exported_from_base: Distance | None = None
    from_quantised: Distance | None = None
    quantisation: str | None = None
    answers: list[Answer] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def failed(self) -> list[Check]:
        """The checks that speak against it."""
        return [check for check in self.checks if not check.passed]

    @property
    def only_drift(self) -> bool:
        """Whether nothing but the budget is broken, which a person may allow."""
        return bool(self.failed) and all(check.name == DRIFT for check in self.failed)

    def to_json(self, *, texts: bool = False) -> dict[str, Any]:
        """As JSON takes it; prompts and answers, which may be the user's data, only with `texts`."""
        answers: dict[str, Any] = {"asked": len(self.answers), "equal": sum(a.equal for a in self.answers)}
        if texts:
            answers["texts"] = [{**vars(a), "equal": a.equal} for a in self.answers]
        return {
            "passed": not self.failed,
            "checks": [
                {
                    "name": c.name,
                    "state": c.state,
                    "figure": c.figure,
                    "limit": c.limit,
                    "details": list(c.details),
                }
                for c in self.checks
            ],
            "arithmetic": self.arithmetic,
            "budget_mean_kl": self.budget,
            "tuned_exported": self.drift.to_json(),
            "base_tuned": self.tuned_from_base.to_json() if self.tuned_from_base else None,
            "base_exported": self.exported_from_base.to_json() if self.exported_from_base else None,
            "quantised_base": {"type": self.quantisation, "tuned_exported": self.from_quantised.to_json()}
            if self.from_quantised
            else None,
            "answers": answers,
            "notes": self.notes,
        }


TOKENS, TEMPLATE, METADATA = "token ids", "chat template", "metadata"
DRIFT, FINE_TUNE, QUANTISED = "drift", "fine-tune", "quantised base"


def check(
    exported: Exported, reference: Reference, *, budget: float | None, expected: dict[str, Any], watch: Watch
) -> Verification:
    """Ask the export what the tuned model was asked. `expected` is metadata that the export was to have.

    `budget` is the largest mean KL; None reports it only. Nothing is raised here: `failed` says what is
    wrong.
    """
    asked = reference.asked
    checks = [
        _token_ids(exported, reference),
        _template(exported.template() or "", reference.template),
        _metadata(exported.metadata(), {**reference.metadata, **expected}),
    ]
    heard = listen(exported, reference, watch)
    drift = distance(reference.tuned.logits, heard.logits)
    base = reference.base
    tuned_from_base = distance(base, reference.tuned.logits) if base is not None else None
    exported_from_base = distance(base, heard.logits) if base is not None else None
    checks += [_drift(drift, budget), _fine_tune(drift, tuned_from_base, exported_from_base)]
    quantised = reference.quantised
    from_quantised = distance(quantised.logits, heard.logits) if quantised else None
    if reference.quantisation:
        checks.append(_over_quantised(from_quantised, reference.quantisation))
    answers = _answers(reference, heard)
    if asked.prompts:
        same = sum(answer.equal for answer in answers)
        checks.append(Check("greedy answers", "reported", f"{same} of {len(answers)} equal, word for word"))
    return Verification(
        checks, drift, str(reference.arithmetic).removeprefix("torch."), budget, tuned_from_base,
        exported_from_base, from_quantised, reference.quantisation, answers, list(reference.notes),
    )  # fmt: skip


def _token_ids(exported: Exported, reference: Reference) -> Check:
    texts = [*reference.asked.texts, *reference.asked.rendered]
    found = exported.token_ids(texts)
    pairs = zip(texts, reference.token_ids, found, strict=True)
    odd = [
        f"{text[:60]!r}: {ours[:12]} became {theirs[:12]}" for text, ours, theirs in pairs if ours != theirs
    ]
    figure = (
        f"{len(texts) - len(odd):,} of {len(texts):,} texts, {len(reference.asked.rendered)} of them "
        "conversations"
    )
    return Check(TOKENS, "different" if odd else "equal", figure, "all", _some(odd))


def _template(found: str, wanted: str) -> Check:
    if found == wanted:
        return Check(TEMPLATE, "equal", f"{len(wanted):,} characters" if wanted else "none, as in the base")
    where = next(
        (i for i, (a, b) in enumerate(zip(found, wanted, strict=False)) if a != b),
        min(len(found), len(wanted)),
    )
    what = "missing" if not found else f"differs from character {where + 1:,} on"
    return Check(TEMPLATE, "different", what, "the same text")


def _metadata(found: dict[str, Any], wanted: dict[str, Any]) -> Check:
    names = [name for name in wanted if name in found or name in _MUST_SAY]
    odd = [
        f"{name}: {found.get(name, 'missing')}, should be {wanted[name]}"
        for name in names
        if name not in found or found[name] != wanted[name]
    ]
    return Check(METADATA, "different" if odd else "equal", ", ".join(names), "all", tuple(odd))


def _drift(drift: Distance, budget: float | None) -> Check:
    figure = (
        f"mean KL {_nats(drift.mean_kl)}, largest {_nats(drift.max_kl)}, same first choice {drift.top1:.1%} "
        f"of {drift.positions} positions"
    )
    if budget is None:
        return Check(DRIFT, "reported", figure)
    # NaN and infinity are never within a budget.
    return Check(DRIFT, "within" if drift.mean_kl <= budget else "over", figure, f"mean KL {budget:.0e}")


def _fine_tune(drift: Distance, tuned: Distance | None, exported: Distance | None) -> Check:
    if tuned is None or exported is None:
        return Check(FINE_TUNE, "not measured", "there is no base to compare with")
    figure = f"mean KL from the base: tuned {_nats(tuned.mean_kl)}, exported {_nats(exported.mean_kl)}"
    if tuned.mean_kl <= NOTHING:
        return Check(FINE_TUNE, "reported", f"{figure}: training changed nothing that can be measured")
    there = drift.mean_kl < exported.mean_kl
    return Check(
        FINE_TUNE, "within" if there else "different", figure, "nearer to the tuned model than to the base"
    )


def _over_quantised(found: Distance | None, kind: str) -> Check:
    name = f"against {kind} base"
    if found is None:
        return Check(name, "not measured")
    same = f"same first choice {found.top1:.1%}"
    figure = f"mean KL {_nats(found.mean_kl)}, {same}: the base in 16 bits is another one"
    return Check(name, "reported", figure)


def _nats(value: float) -> str:
    return f"{value:.3f}" if 0.01 <= value < 1000 else f"{value:.1e}"


def _answers(reference: Reference, heard: Heard) -> list[Answer]:
    decode = reference.decode
    return [
        Answer(prompt.text, decode(ours), decode(theirs), prompt.own)
        for prompt, ours, theirs in zip(
            reference.asked.prompts, reference.tuned.answers, heard.answers, strict=True
        )
    ]


def _some(lines: list[str]) -> tuple[str, ...]:
    more = len(lines) - _SHOWN
    return (*lines[:_SHOWN], *([f"and {more:,} more"] if more > 0 else []))
