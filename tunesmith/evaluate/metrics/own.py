"""A metric of one's own: a function in a Python file that the person names, or one handed over in Python."""

from __future__ import annotations

import importlib.util
import inspect
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tunesmith.errors import SettingsError, UsageError
from tunesmith.evaluate.metrics.metric import Metric

NAMED = ".py:"
"""What tells FILE.py:function from the name of a metric."""


def from_file(word: str) -> Metric:
    """The metric of `FILE.py:function`, a file on this machine, whose code runs as the person's own.

    Raises UsageError where the file or the function isn't there, or the file can't be run.
    """
    path, _, name = word.rpartition(":")
    file = Path(path).expanduser()
    if not file.is_file():
        raise UsageError(f"--metric {word}: there is no file {path}.", fix="Write FILE.py:function.")
    spec = importlib.util.spec_from_file_location(f"metric_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UsageError(
            f"--metric {word}: {file} can't be run: {type(error).__name__}: {error}", fix="Correct the file."
        ) from error
    function = getattr(module, name, None)
    if not callable(function):
        there = [key for key, value in vars(module).items() if inspect.isfunction(value)]
        raise UsageError(
            f"--metric {word}: {file} has no function {name!r} (there are: {', '.join(there) or 'none'}).",
            fix="Write FILE.py:function.",
        )
    return from_function(function, name)


def from_function(function: Callable[..., Any], name: str = "") -> Metric:
    """A metric of a function (prediction, references, prompt) -> a number, more is better.

    `references` is a list of texts; a function of two parameters goes without the prompt. Raises
    SettingsError for another number of parameters, and when it fails on a row or gives no number.
    """
    name = name or getattr(function, "__name__", type(function).__name__)
    try:
        kinds = [each.kind for each in inspect.signature(function).parameters.values()]
    except (TypeError, ValueError):
        kinds = []
    places = sum(
        kind in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD) for kind in kinds
    )
    if places not in (2, 3) and inspect.Parameter.VAR_POSITIONAL not in kinds:
        raise SettingsError(
            f"The metric {name} takes {places} parameters.",
            fix=f"Write def {name}(prediction, references, prompt), or the same without the prompt.",
        )

    def score(prediction: str, references: Sequence[str], prompt: str = "") -> float:
        given = (prediction, list(references), prompt)[: 2 if places == 2 else 3]
        try:
            value = function(*given)
            if isinstance(value, str):
                raise TypeError(f"{value!r} is a text, not a number")
            number = float(value)
        except Exception as error:
            raise SettingsError(
                f"The metric {name} failed on the answer {prediction[:60]!r}: "
                f"{type(error).__name__}: {error}",
                fix="Correct the function; the answers are kept, and the same command goes on.",
            ) from error
        if not math.isfinite(number):
            raise SettingsError(
                f"The metric {name} gave {number} for the answer {prediction[:60]!r}.",
                fix="Let it return a number for every answer, an empty one too.",
            )
        return number

    return Metric(name, score, False, "a function of your own", least=None, top=None)
