"""tunesmith: fine-tune a language model on your own data, measure what changed, take it away.

    import tunesmith

    run = tunesmith.train("job.yaml")                       # or a dict, or a Job
    model = tunesmith.load(run)
    print(model.chat("你好"))
    print(tunesmith.compare(run, data="test.jsonl").content["metrics"])

The functions are those of the command line (tunesmith/api/); importing this package imports no torch.
"""

from __future__ import annotations

import importlib
import inspect
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tunesmith.api import (
        blind_new,
        check,
        compare,
        evaluate,
        export,
        generate,
        judge,
        load,
        open_run,
        plan,
        runs,
        serve,
        summary,
        sweep,
        train,
        verify,
        verify_resume,
    )
    from tunesmith.api.benchmarking import benchmark
    from tunesmith.api.making import make
    from tunesmith.errors import TunesmithError
    from tunesmith.evaluate.blind.page import blind_page
    from tunesmith.evaluate.blind.report import blind_report
    from tunesmith.evaluate.report.write import report, report_text
    from tunesmith.infer.config import Sampling
    from tunesmith.serve.blind import blind_serve
    from tunesmith.train.config import Job
    from tunesmith.train.listener import Silent

__all__ = [
    "Job",
    "Sampling",
    "Silent",
    "TunesmithError",
    "benchmark",
    "blind_new",
    "blind_page",
    "blind_report",
    "blind_serve",
    "check",
    "compare",
    "evaluate",
    "export",
    "generate",
    "judge",
    "load",
    "make",
    "open_run",
    "plan",
    "report",
    "report_text",
    "runs",
    "serve",
    "summary",
    "sweep",
    "train",
    "verify",
    "verify_resume",
]

_ELSEWHERE = {
    "Job": "tunesmith.train.config",
    "Sampling": "tunesmith.infer.config",
    "Silent": "tunesmith.train.listener",
    "TunesmithError": "tunesmith.errors",
    # The harness takes seconds to import.
    "benchmark": "tunesmith.api.benchmarking",
    "make": "tunesmith.api.making",
    # What raters need waits for no torch.
    "blind_page": "tunesmith.evaluate.blind.page",
    "blind_report": "tunesmith.evaluate.blind.report",
    "blind_serve": "tunesmith.serve.blind",
    "report": "tunesmith.evaluate.report.write",
    "report_text": "tunesmith.evaluate.report.write",
}


class _CallableStage(ModuleType):
    """A stage's package that is also the function of its name: `tunesmith.train` is a folder and a verb.

    Python sets the attribute `train` of this package to the folder's module as soon as anything in it is
    imported. Without this, the second `tunesmith.train(…)` of a session would call a module.

    Signature and documentation are the function's, looked up when `help()` or a notebook asks for them.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _verb(self)(*args, **kwargs)


def _verb(stage: ModuleType) -> Any:
    return getattr(importlib.import_module("tunesmith.api"), stage.__name__.rpartition(".")[2])


_CallableStage.__signature__ = property(lambda stage: inspect.signature(_verb(stage)))  # type: ignore[attr-defined]
_CallableStage.__doc__ = property(lambda stage: _verb(stage).__doc__)  # type: ignore[assignment]


for _name in ("train", "evaluate", "serve", "export"):
    importlib.import_module(f"tunesmith.{_name}").__class__ = _CallableStage


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'tunesmith' has no attribute {name!r}")
    return getattr(importlib.import_module(_ELSEWHERE.get(name, "tunesmith.api")), name)


def __dir__() -> list[str]:
    return __all__
