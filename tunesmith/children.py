"""Child processes of tunesmith's own modules."""

from __future__ import annotations

import sys
from pathlib import Path

# -P keeps the current folder out of sys.path: a json.py in it would be run instead of Python's own. The
# folder that this package was imported from comes last, for one that isn't installed.
_CODE = (
    "import runpy, sys; sys.path.append(sys.argv.pop(1)); runpy.run_module(sys.argv.pop(1), None, '__main__')"
)


def python_child(module: str) -> list[str]:
    """The command that runs one of tunesmith's modules, wherever the person is."""
    return [sys.executable, "-P", "-c", _CODE, str(Path(__file__).resolve().parents[1]), module]
