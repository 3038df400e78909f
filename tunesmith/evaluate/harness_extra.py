"""Whether lm-evaluation-harness is here; asked before torch and the harness are imported."""

from __future__ import annotations

import importlib.util

from tunesmith.errors import MissingExtraError


def check_harness() -> None:
    """Raise MissingExtraError without the extra `harness`."""
    if importlib.util.find_spec("lm_eval") is None:
        raise MissingExtraError("`tunesmith benchmark`", "lm-eval", "harness")
