"""tunesmith: fine-tune a language model on your own data, measure what changed, take it away.

    import tunesmith

    run = tunesmith.train("job.yaml")                       # or a dict, or a Job
    model = tunesmith.load(run)
    print(model.chat("你好"))
    print(tunesmith.compare(run, data="test.jsonl").content["metrics"])

The functions are those of the command line (tunesmith/api.py); importing this package imports no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tunesmith.api import check, compare, evaluate, generate, load, open_run, report, runs, summary, train
    from tunesmith.errors import TunesmithError
    from tunesmith.infer.config import Sampling
    from tunesmith.train.config import Job

__all__ = [
    "Job",
    "Sampling",
    "TunesmithError",
    "check",
    "compare",
    "evaluate",
    "generate",
    "load",
    "open_run",
    "report",
    "runs",
    "summary",
    "train",
]

_ELSEWHERE = {
    "Job": "tunesmith.train.config",
    "Sampling": "tunesmith.infer.config",
    "TunesmithError": "tunesmith.errors",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'tunesmith' has no attribute {name!r}")
    return getattr(importlib.import_module(_ELSEWHERE.get(name, "tunesmith.api")), name)


def __dir__() -> list[str]:
    return __all__
