"""What a job's `train.evaluate` and `train.best` name, checked before all else. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence

from tunesmith.errors import SettingsError
from tunesmith.evaluate.metrics import Metric, resolve
from tunesmith.settings import nearest
from tunesmith.train.config import OWN_METRIC, VALID_LOSS, EvaluateSettings, Job

# Names in a line of metrics.jsonl that a metric of one's own can't have.
TAKEN = frozenset({"step", "epoch", "loss", VALID_LOSS, "metrics", "n", "empty", "seconds", "answer_seconds"})


def check_names(job: Job) -> None:
    """Raise SettingsError for metrics that nobody knows; which of them a family means, the rows will tell."""
    if (settings := job.train.evaluate) is None:
        return
    own = [name.rpartition(":")[2] for name in settings.metrics if OWN_METRIC in name]
    best = [] if job.train.by_loss or job.train.best in own else [str(job.train.best)]
    for metric in resolve([*settings.metrics, *best], []):
        if metric.name in TAKEN:
            raise SettingsError(
                f"train.evaluate.metrics: {metric.name} is the name of another figure in metrics.jsonl.",
                fix="Give the function another name.",
            )


def chosen_by(best: str, settings: EvaluateSettings, metrics: Sequence[Metric]) -> Metric:
    """The metric that `train.best` means among those that `train.evaluate` measures.

    Raises SettingsError where it is none of them, several, or one of which neither more nor less is better.
    """
    named = [metric for metric in metrics if metric.name == best]
    if not named and best in settings.metrics:
        named = [metric for metric in metrics if metric.name.startswith(f"{best}_")]  # bleu: bleu_zh
    names = [metric.name for metric in metrics]
    if len(named) != 1:
        raise SettingsError(
            f"train.best: {best} isn't measured by train.evaluate{nearest(best, names)}.",
            fix=f"Add it to train.evaluate.metrics, or choose from: {', '.join(names)}, {VALID_LOSS}.",
        )
    if named[0].better == "neither":
        fit = [metric.name for metric in metrics if metric.better != "neither"]
        raise SettingsError(
            f"train.best: of {best}, neither more nor less is better, so it can't choose a step.",
            fix=f"Choose from: {', '.join([*fit, VALID_LOSS])}.",
        )
    return named[0]
