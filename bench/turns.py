"""A trainer of transformers' kind that takes its turns: TRL and LLaMA-Factory."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from bench.pace import Pace


class Turns(TrainerCallback):
    """Blocks before each step; fetching and laying out its rows counts to the step before it."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._pace.wait()

    def on_log(self, *_: Any, logs: dict[str, Any] | None = None, **__: Any) -> None:
        if logs and "loss" in logs:
            self._pace.loss = float(logs["loss"])

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self._pace.wait()
