"""The report as Markdown, in English or Chinese: for a README, a merge request, a paper's appendix."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tunesmith.evaluate.blind.markdown import blind_lines
from tunesmith.evaluate.chinese import in_chinese
from tunesmith.evaluate.formats import MARK, Language
from tunesmith.evaluate.markdown import escaped, fenced, joined, table
from tunesmith.evaluate.numbers import number
from tunesmith.evaluate.report.figures import Figure, Value, shown
from tunesmith.evaluate.report.labels import in_chinese as label_in_chinese
from tunesmith.evaluate.report.result import Told
from tunesmith.evaluate.report.rows import (
    TEXT_LIMITS,
    Changes,
    answer,
    failure,
    likelihoods,
    references,
)
from tunesmith.evaluate.section import Quoted

SHOWN_ROWS = 20
KINDS = {
    "comparison": "Before and after",
    "judgement": "Judged by a model",
    "benchmark": "Public benchmarks",
}

CHINESE = {
    "figure": "指标",
    "wins/losses/ties": "胜/负/平",
    "verdict": "结论",
    "value [95 %]": "数值 [95 %]",
    "Before and after": "前后对比",
    "Evaluation": "评测",
    "Judged by a model": "模型评判",
    "Public benchmarks": "公开基准",
    "By group": "分组",
    "Changes row by row": "逐行变化",
    "worse": "更差",
    "the same": "相同",
    "better": "更好",
    "lower": "更低",
    "higher": "更高",
    "least": "最小",
    "median": "中位数",
    "greatest": "最大",
    "Rows": "逐行查看",
    "prompt": "提示",
    "answer": "回答",
    "reference": "参考",
    "choices, log-likelihood": "选项与对数似然",
    "How it was measured": "评测方式",
    "Training": "训练",
    "model": "模型",
    "steps": "步数",
    "time": "用时",
    "peak memory": "峰值内存",
    "tokens": "token 数",
    "validation loss": "验证损失",
    "empty": "空",
    "no answer, the call failed": "没有回答：调用失败",
    "judge": "评判模型",
}
NOTE = (
    "Intervals are 95 % ones over these rows; another training seed would give another model, which they "
    "don't cover."
)
CHINESE |= {NOTE: "区间为这些数据行上的 95 % 区间；换一个随机种子会训练出另一个模型，区间不包含这种差异。"}


def markdown(
    name: str,
    results: Sequence[Told],
    training: Mapping[str, Any] | None = None,
    blind: Sequence[Mapping[str, Any]] = (),
    language: Language = "en",
) -> str:
    """The report as text; the first rows of each result stand at its end."""
    writer = _Writer(language)
    lines = [MARK, f"# {escaped(name)}", ""]
    if training is not None:
        lines += writer.training(training)
    for result in results:
        lines += writer.result(result)
    for content in blind:
        lines += blind_lines(content, language)
    return joined(lines)


class _Writer:
    """Parts of a report in one language."""

    def __init__(self, language: Language) -> None:
        self.language = language

    def say(self, text: str) -> str:
        """One of our own words or sentences; names of metrics and what others wrote stay as they are."""
        if self.language == "en" or isinstance(text, Quoted):
            return text
        if text in CHINESE:
            return CHINESE[text]
        named = label_in_chinese(text)
        return in_chinese(text) if named == text else named

    def training(self, training: Mapping[str, Any]) -> Iterator[str]:
        history, cost = training["history"], training["cost"]
        best = history.best.value if history.best else None
        losses = [f"{value:.3f}" for value in (history.first, best) if value is not None]
        rows = [
            ("model", training["model"]),
            ("steps", str(history.steps)),
            ("validation loss", " → ".join(losses)),
            *(
                (name, " → ".join(f"{end.value:.3f}" for end in ends if end) + f" (n = {history.answers})")
                for name, ends in history.changes.items()
            ),
            ("time", self.say(cost["time"])),
            ("peak memory", cost["memory"]),
            ("tokens", cost["tokens"]),
        ]
        yield f"## {self.say('Training')}"
        yield ""
        yield from table(("", ""), [(self.say(name), value) for name, value in rows if value])

    def result(self, result: Told) -> Iterator[str]:
        names = f" · {result.a} → {result.b}" if result.kind == "comparison" else ""
        what = self.say(KINDS.get(result.kind, "Evaluation"))
        yield f"## {what} · {escaped((result.data or result.file) + names)}"
        yield ""
        if result.kind == "damaged":
            yield escaped(f"{result.file}: {result.error}")
            yield ""
            return
        a, b = result.letters
        sides = f"{a} = {result.a}, {b} = {result.b}" if result.a else result.b
        judge = f"; {self.say('judge')}: {result.judge}" if result.judge else ""
        yield escaped(f"n = {result.n:,}. {sides}{judge}")
        yield ""
        for note in result.notes:
            yield escaped(self.say(note))
            yield ""
        if result.figures:
            yield from self.figures(result)
        if result.a:
            yield self.say(NOTE)
            yield ""
        yield from self.groups(result)
        yield from self.changes(result)
        for section in result.sections:
            yield f"### {escaped(self.say(section.title))}"
            yield ""
            for sentence in section.sentences:
                yield escaped(self.say(sentence))
                yield ""
            if section.rows:
                columns = tuple(self.say(column) for column in section.columns)
                yield from table(columns, [tuple(map(self.say, row)) for row in section.rows])
        yield from self.rows(result)
        if result.settings:
            yield f"### {self.say('How it was measured')}"
            yield ""
            yield from table(("", ""), [(self.say(name), self.say(value)) for name, value in result.settings])

    def figures(self, result: Told) -> Iterator[str]:
        if result.a is None:
            rows = [(self.say(f.name), f"{f.n:,}", _words(f, f.b)) for f in result.figures]
            yield from table((self.say("figure"), "n", self.say("value [95 %]")), rows)
            return
        told = [
            (
                self.say(f.name),
                f"{f.n:,}",
                _words(f, f.a),
                _words(f, f.b),
                *(_differences(f) or [""]),
                "/".join(map(str, f.counts or ())),
                self.say(f.verdict) if f.verdict else "",
            )
            for f in result.figures
        ]
        intervals = (f"{what} [95 %]" for what in (*result.letters, result.minus))
        names = ("figure", "n", *intervals, "wins/losses/ties", "verdict")
        yield from table([self.say(name) for name in names], told)

    def groups(self, result: Told) -> Iterator[str]:
        if not result.groups:
            return
        yield f"### {self.say('By group')}"
        yield ""
        for group in result.groups:
            compared = any(figure.difference for _, figure in group.figures)
            of_both = (*result.letters, f"{result.minus} {group.metric} [95 %]")
            names = of_both if compared else (f"{group.metric} [95 %]",)
            rows = [
                (value, f"{f.n:,}", *([_words(f, f.a)] if f.a else []), _words(f, f.b), *_differences(f))
                for value, f in group.figures
            ]
            yield from table((group.column, "n", *names), rows)

    def changes(self, result: Told) -> Iterator[str]:
        changes = result.changes
        if not changes:
            return
        yield f"### {self.say('Changes row by row')}"
        yield ""
        judged = [change for change in changes if change.better != "neither"]
        neutral = [change for change in changes if change.better == "neither"]
        for some, low, high in ((judged, "worse", "better"), (neutral, "lower", "higher")):
            names = ("figure", "n", low, "the same", high, "least", "median", "greatest")
            if some:
                words = [self.say(name) + (f" {result.minus}" if name == "least" else "") for name in names]
                yield from table(words, [self.change(one) for one in some])

    def change(self, one: Changes) -> tuple[str, ...]:
        spread = (number(difference, sign=True) for difference in one.spread)
        return (self.say(one.name), f"{len(one.differences):,}", *map(str, one.counts), *spread)

    def rows(self, result: Told) -> Iterator[str]:
        if not result.rows:
            return
        few = min(len(result.rows), SHOWN_ROWS)
        yield f"### {self.say('Rows')} ({few:,} / {len(result.rows):,})"
        yield ""
        for at, row in enumerate(result.rows[:SHOWN_ROWS], 1):
            yield f"**{at}.** {self.say('prompt')}"
            yield from fenced(str(row.get("prompt", "")))
            pair = zip(result.letters, (row["a"], row["b"]), strict=True) if result.a else ()
            sides = list(pair) or [(self.say("answer"), row)]
            for side, given in sides:
                text = answer(row, given)
                why = failure(given)
                what = "empty" if why is None else "no answer, the call failed"
                told = f"{self.say(what)}: {why}" if why else self.say(what)
                yield f"{side}" + ("" if text.strip() else f" ({escaped(told)})")
                yield from fenced(text)
            if listed := likelihoods(row, TEXT_LIMITS[0]):
                yield self.say("choices, log-likelihood")
                yield from fenced(listed)
            for reference in references(row)[:3]:
                yield self.say("reference")
                yield from fenced(reference)


def _words(figure: Figure, value: Value | None) -> str:
    return " ".join(filter(None, shown(value, whole=figure.whole, n=figure.n)))


def _differences(figure: Figure) -> list[str]:
    """The difference with its interval as the one cell it takes; none where there is no difference."""
    words = " ".join(filter(None, shown(figure.difference, sign=True)))
    return [words] if words else []
