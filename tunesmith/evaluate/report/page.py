"""The report as one offline HTML page, fit to be mailed; of a run, or of a result alone.

A model's answer can't become HTML: every value is escaped, rows stand in JSON blocks that can't end their
element, and the page's policy runs no script but its own. Without the script the first rows are there all
the same; with it all rows, searched, filtered, sorted and paged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from jinja2 import Environment
from markupsafe import Markup

from tunesmith.evaluate.blind.tables import RATER_COLUMNS, rater_rows, summary_rows
from tunesmith.evaluate.blind.tables import in_chinese as of_blind_test
from tunesmith.evaluate.numbers import number as figure_text
from tunesmith.evaluate.pages import both, data_block, environment, rendered, told
from tunesmith.evaluate.report.charts import NARROW, WIDE, Mark, deltas, forest
from tunesmith.evaluate.report.data import number
from tunesmith.evaluate.report.figures import Figure, shown
from tunesmith.evaluate.report.labels import label
from tunesmith.evaluate.report.result import Group, Told
from tunesmith.evaluate.report.rows import TEXT_LIMITS, Changes, row_block

STATIC_ROWS = 100  # without a script
MOST_CARDS = 3  # of a comparison
MOST_MARKS = 24  # of a chart by groups
SHOWN_TEXT = TEXT_LIMITS[0]

Chart = tuple[str, str, Markup, Markup]
"""English and Chinese caption, wide and narrow picture."""


def page(
    name: str,
    results: Sequence[Told],
    training: Mapping[str, Any] | None = None,
    blind: Sequence[Mapping[str, Any]] = (),
) -> str:
    """The page as text; `training` is a run's story, `blind` are reports of blind tests."""
    return rendered(
        _environment(),
        "report/page.html",
        css=["report/page.css", "report/result.css", "blind/report.css"],
        js=["report/language.js", "report/rows.js"],
        name=name,
        training=training,
        results=[_seen(result) for result in results],
        several=sum(result.kind == "comparison" and result.own for result in results) > 1,
        blind=[_of_blind(content) for content in blind],
    )


@cache  # compiling the templates takes longer than filling them in
def _environment() -> Environment:
    made = environment()
    made.filters |= {
        "verdict": _verdict,
        "number": number,
        "cut": _cut,
        "label": label,
        "rest": _rest,
        "of_blind": lambda words: both(words, of_blind_test(words)),
    }
    return made


def _seen(result: Told) -> dict[str, Any]:
    """A result with what only a page has: cells, charts, cards, and the block of its rows."""
    block = row_block(result.rows, result.primary, result.letters)
    return {
        "told": result,
        "table": [_cells(figure) for figure in result.figures],
        "cards": _cards(result),
        "forests": _forests(result),
        "changes": [_changed(change, result) for change in result.changes],
        "groups": [_grouped(group, result.minus) for group in result.groups],
        "block": block,
        "json": data_block(block),
        "static": block["rows"][:STATIC_ROWS],
    }


def _cells(figure: Figure) -> dict[str, Any]:
    return {
        "figure": figure,
        "a": shown(figure.a, whole=figure.whole, n=figure.n),
        "b": shown(figure.b, whole=figure.whole, n=figure.n),
        "difference": shown(figure.difference, sign=True),
    }


def _cards(result: Told) -> list[dict[str, Any]]:
    """The loss and the first metrics of a comparison: what the reader came for, and of nobody else."""
    judged = [figure for figure in result.figures if figure.verdict] if result.a and result.own else []
    return [_cells(figure) for figure in judged[:MOST_CARDS]]


def _forests(result: Told) -> list[Chart]:
    """Differences that are judged: scores between 0 and 1 share an axis, every other one has its own."""
    differing = [figure for figure in result.figures if figure.difference and figure.verdict]
    together = [figure for figure in differing if _is_share(figure)]
    charts, minus = [], result.minus
    if together:
        charts.append(_chart(f"Scores from 0 to 1: {minus}", f"0 到 1 的得分：{minus}", _marks(together)))
    for figure in differing:
        if figure not in together:
            loss = figure.name == "loss"
            english = "loss (nats, lower is better)" if loss else figure.name
            chinese = "损失（nat，越低越好）" if loss else figure.name
            charts.append(_chart(f"{english}: {minus}", f"{chinese}：{minus}", _marks([figure])))
    return charts


def _is_share(figure: Figure) -> bool:
    """Whether a figure goes from 0 to 1, as far as its values tell."""
    if figure.name in ("loss", "mean length", "length", "chrf") or figure.name.startswith("bleu"):
        return False
    values = [end for value in (figure.a, figure.b) if value for end in value.ends]
    return all(0 <= value <= 1 for value in values)


def _marks(figures: Sequence[Figure]) -> list[Mark]:
    return [
        Mark(figure.name, figure.n, figure.difference, _kind(figure.verdict))
        for figure in figures
        if figure.difference is not None
    ]


def _chart(english: str, chinese: str, marks: Sequence[Mark], *, sign: bool = True) -> Chart:
    title = f"{english} [95 %] · {chinese}"
    wide, narrow = (forest(marks, width=width, title=title, sign=sign) for width in (WIDE, NARROW))
    return english, chinese, wide, narrow


def _changed(change: Changes, result: Told) -> dict[str, Any]:
    title = f"{change.name}: {result.minus}, n = {result.n} · {change.name}：逐行 {result.minus}"
    wide, narrow = (
        deltas(change.differences, change.better, width=width, title=title) for width in (WIDE, NARROW)
    )
    least, median, most = (figure_text(value, sign=True) for value in change.spread)
    return {"of": change, "wide": wide, "narrow": narrow, "least": least, "median": median, "most": most}


def _grouped(group: Group, minus: str) -> dict[str, Any]:
    largest = sorted(group.figures, key=lambda one: -one[1].n)[:MOST_MARKS]
    kept = [one for one in group.figures if one in largest]
    sign = any(figure.difference is not None for _, figure in kept)
    # No verdicts, so no colours: among many groups some differ by chance.
    marks = [Mark(value, figure.n, figure.difference or figure.b) for value, figure in kept]
    words = f"{group.metric}: {minus}" if sign else group.metric
    return {
        "of": group,
        "table": [(value, _cells(figure)) for value, figure in group.figures],
        "chart": _chart(f"{words} ({group.column})", f"{words}（{group.column}）", marks, sign=sign),
        "left_out": len(group.figures) - len(kept),
        "compared": sign,
    }


def _of_blind(content: Mapping[str, Any]) -> dict[str, Any]:
    summary = zip(summary_rows(content), summary_rows(content, chinese=True), strict=True)
    return {**content, "summary": list(summary), "columns": RATER_COLUMNS, "table": rater_rows(content)}


def _kind(verdict: str) -> str:
    return {"better": "better", "worse": "worse", "higher": "moved", "lower": "moved"}.get(verdict, "open")


def _verdict(text: str) -> Markup:
    return (
        Markup('<span class="verdict {}">{}</span>').format(_kind(text), told(text)) if text else Markup("")
    )


def _cut(text: Any) -> Markup:
    """A text as text; a very long one is cut, and says so."""
    text = "" if text is None else str(text)
    return _rest([text[:SHOWN_TEXT], max(0, len(text) - SHOWN_TEXT)])


def _rest(text: Sequence[Any]) -> Markup:
    """[text, characters that are left out] as text that says so."""
    if not text[1]:
        return Markup("{}").format(text[0])
    more = both(f"… {text[1]:,} more characters", f"……另有 {text[1]:,} 个字符")
    return Markup('{}<span class="more"> {}</span>').format(text[0], more)
