"""Whoever answers, by name: a model on this machine, a run, or an endpoint."""

from __future__ import annotations

from collections.abc import Callable

from tunesmith.infer.config import Sampling
from tunesmith.infer.endpoint import is_endpoint
from tunesmith.infer.local import LocalModel, load
from tunesmith.infer.remote import RemoteModel, connect

Answerer = LocalModel | RemoteModel


def answerer(
    name: str,
    *,
    dtype: str = "auto",
    template: str | None = None,
    sampling: Sampling | None = None,
    note: Callable[[str], None] | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Answerer:
    """Load or connect. `note` is told what isn't as usual on this machine, `say` what leaves it."""
    if is_endpoint(name):
        return connect(name, dtype=dtype, template=template, sampling=sampling, note=note or say)
    return load(name, dtype=dtype, template=template, sampling=sampling, note=note)
