"""Who hears what happens during a training: a progress bar, a notebook, a test."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol


class Listener(Protocol):
    """Called in the order of the methods here; `step`, `evaluated` and `sampled` repeat."""

    def note(self, text: str) -> None:
        """A sentence for the person: what is being done, or something worth knowing."""

    def data(self, report: Mapping[str, Any]) -> None:
        """The data report, before training starts."""

    def started(self, steps: int, facts: Mapping[str, Any]) -> None:
        """Training starts: how many steps, and what the run knows (device, trainable parameters, …)."""

    def step(self, line: Mapping[str, Any]) -> None:
        """A line of metrics.jsonl about an optimizer step."""

    def evaluated(self, line: Mapping[str, Any]) -> None:
        """A line of metrics.jsonl about the validation rows."""

    def sampled(self, line: Mapping[str, Any]) -> None:
        """A line of samples.jsonl."""

    def finished(self, summary: Mapping[str, Any]) -> None:
        """Training is over and the weights are saved."""


class Silent:
    """A listener that hears everything and does nothing."""

    def note(self, text: str) -> None: ...

    def data(self, report: Mapping[str, Any]) -> None: ...

    def started(self, steps: int, facts: Mapping[str, Any]) -> None: ...

    def step(self, line: Mapping[str, Any]) -> None: ...

    def evaluated(self, line: Mapping[str, Any]) -> None: ...

    def sampled(self, line: Mapping[str, Any]) -> None: ...

    def finished(self, summary: Mapping[str, Any]) -> None: ...
