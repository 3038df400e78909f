"""What the loop makes of answers that are scored between steps: when, by which the best is chosen, and again
after a stop in the middle of it.
"""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from tests.train.stopping import Make, assert_same_end, go_on, lines
from tests.train.test_equality import rows
from tests.train.test_loop import training
from tunesmith.rundir import RunDir
from tunesmith.train import checkpoint
from tunesmith.train.examine import Aim, Answered, Examined
from tunesmith.train.listener import Lines, evaluations_left, examined_text
from tunesmith.train.loop import run_loop
from tunesmith.train.signals import Stopped
from tunesmith.train.track import Tracking
from tunesmith.train.training import Training

EVALUATE: dict[str, Any] = {"every": 2, "metrics": ["score"], "prompts": "unused.jsonl"}


def scripted(figures: dict[int, float]) -> Any:
    return lambda step: Examined({"score": figures[step]}, [Answered("問", "答", None, {})] * 3)


def maker(folder: Path, figures: dict[int, float], **settings: Any) -> Make:
    given = {
        "evaluate": EVALUATE, "best": "score", "max_steps": 7, "batch_size": 2, "learning_rate": 1e-2,
        "aim": Aim("score", higher=True), "examine": scripted(figures), **settings,
    }  # fmt: skip

    def make(**parts: Any) -> Training:
        return training(folder, **{**given, **parts})

    return make


def scored(run: RunDir) -> list[int]:
    return [line["step"] for line in run.metrics() if "score" in line]


def test_before_the_first_step_at_multiples_and_at_the_end(tmp_path: Path) -> None:
    job = maker(tmp_path, {0: 0.9, 2: 0.2, 4: 0.6, 6: 0.6, 7: 0.5}, valid=rows(400, (6, 12)), eval_every=3)()
    outcome = run_loop(job)
    assert scored(job.run) == [0, 2, 4, 6, 7]
    # What training began with is never kept; of equal steps the first is.
    assert (outcome.best_step, outcome.best_value, outcome.by) == (4, 0.6, "score")
    assert outcome.best == checkpoint.folder_of(job.run, 4)
    line = next(line for line in job.run.metrics() if "score" in line)
    assert (line["metrics"], line["n"], "empty" in line) == (["score"], 3, False)
    # The time in it is in the total, and in no step's speed.
    assert line["seconds"] >= line["answer_seconds"]


def test_where_less_is_better_the_lowest_is_kept(tmp_path: Path) -> None:
    figures = {0: 0.1, 2: 0.2, 4: 0.6, 6: float("nan"), 7: 0.5}
    outcome = run_loop(maker(tmp_path, figures, aim=Aim("score", higher=False))())
    assert (outcome.best_step, outcome.best_value) == (2, 0.2)


def test_patience_counts_the_metric_and_the_last_weights_are_looked_at(tmp_path: Path) -> None:
    figures = {0: 0.0, 2: 0.5, 4: 0.4, 6: 0.3, 7: 0.9}
    settings: dict[str, Any] = {"early_stopping": 2, "valid": rows(400, (6, 12)), "eval_every": 1}
    outcome = run_loop(maker(tmp_path / "metric", figures, **settings)())
    assert (outcome.step, outcome.best_step, outcome.stopped_early) == (6, 2, True)


def test_early_stopping_by_the_loss_ends_with_answers_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([9.0, 3.0, 4.0, 5.0])
    monkeypatch.setattr("tunesmith.train.watch.valid_loss", lambda _: (next(losses), 1))
    settings: dict[str, Any] = {"best": None, "early_stopping": 2, "eval_every": 1, "aim": Aim()}
    job = maker(tmp_path, dict.fromkeys(range(8), 0.5), valid=rows(400, (6, 12)), **settings)()
    outcome = run_loop(job)
    assert (outcome.step, outcome.best_step, outcome.by) == (3, 1, "valid_loss")
    assert scored(job.run) == [0, 2, 3]


@pytest.mark.parametrize("at", [2, 4, 7])
def test_a_signal_in_it_lets_it_be_done_again_once(tmp_path: Path, at: int) -> None:
    figures = {0: 0.0, 2: 0.5, 4: 0.4, 6: 0.3, 7: 0.9}
    whole = maker(tmp_path / "whole", figures)()
    run_loop(whole)
    make = maker(tmp_path / "cut", figures)

    def stopped(step: int) -> Examined:
        if step == at:
            raise Stopped(signal.SIGTERM)
        return scripted(figures)(step)

    job = make(examine=stopped)
    with pytest.raises(Stopped):
        run_loop(job)
    found, _ = checkpoint.newest(job.run)
    assert found is not None
    assert (found.step, found.state["examined"], scored(job.run)) == (
        at,
        False,
        [s for s in figures if s < at],
    )
    outcome = go_on(make, job.run)
    assert scored(job.run) == list(figures)
    assert (outcome.best_step, outcome.best_value) == (7, 0.9)
    if at < 7:  # the last checkpoint of the other is from before the answers were scored
        assert_same_end(job.run, whole.run)


def test_killed_in_it_and_gone_on_with_from_an_earlier_step(tmp_path: Path) -> None:
    figures = {0: 0.0, 2: 0.5, 4: 0.6, 6: 0.3, 7: 0.4}
    whole = maker(tmp_path / "whole", figures, save_every=3)()
    run_loop(whole)
    make = maker(tmp_path / "cut", figures, save_every=3)

    class Killed(BaseException):
        """Nothing is saved."""

    def killed(step: int) -> Examined:
        if step == 6:
            raise Killed
        return scripted(figures)(step)

    job = make(examine=killed)
    with pytest.raises(Killed):
        run_loop(job)
    go_on(make, job.run)
    assert scored(job.run) == list(figures)
    assert lines(job.run) == lines(whole.run)
    assert_same_end(job.run, whole.run)


@pytest.mark.parametrize("every", [None, 0, 1, 2, 3, 7, 50])
def test_evaluations_that_are_left_are_counted(every: int | None) -> None:
    steps = 7
    due = [s for s in range(1, steps + 1) if every is not None and (s == steps or (every and s % every == 0))]
    for step in range(1, steps + 1):
        assert evaluations_left(step, steps, every) == sum(s >= step for s in due)


def test_time_left_holds_the_evaluations_to_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Lines, "say", lambda *_, **__: None)
    heard = Lines()
    heard.started(10, {"trainable": 1, "parameters": 2, "job": {"train": {"evaluate": {"every": 4}}}})
    line = {"step": 0, "score": 0.5, "metrics": ["score"], "n": 3, "answer_seconds": 30.0}
    heard.examined(line)
    heard.step({"step": 2, "tokens": 100, "tokens_per_second": 50.0})
    assert heard.seconds_left(2) == 8 * 2.0 + 3 * 30.0  # 8 steps; after 4, 8 and 10
    assert examined_text({**line, "empty": 2}) == (
        "step 0: score 0.500 (3 answers in 30 s, 2 empty, before this training)"
    )


def test_trackers_have_answers_in_a_place_of_their_own() -> None:
    told: list[dict[str, float]] = []

    class Kept:
        name = "kept"

        def log(self, values: dict[str, float], step: int) -> None:
            told.append({**values, "step": step})

    line = {"step": 4, "epoch": 0.5, "score": 0.25, "metrics": ["score"], "n": 3, "answer_seconds": 2.0}
    Tracking([Kept()]).log(line)
    assert told == [
        {
            "answers/epoch": 0.5,
            "answers/score": 0.25,
            "answers/n": 3,
            "answers/answer_seconds": 2.0,
            "step": 4,
        }
    ]
