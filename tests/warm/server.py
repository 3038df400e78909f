"""A process with everything imported, which forks children that run a command of tunesmith: starting one
takes milliseconds instead of seconds, so that hundreds can be killed. Requests and answers are lines of JSON:

    {"words": […], "folder": …, "streams": [FILE, FILE, FILE], "variables": {…}, "before": […]}    {"pid": …}
    {"wait": pid, "seconds": …}                                              {"status": …}, null if it runs on

`streams` are stdin, stdout and stderr; a terminal as stdin becomes the child's own, which then leads a
session. `before` names a module, one of its functions and arguments: what the child calls first.

The children are real processes with their own memory and locks; what kills them is a real signal.
"""

from __future__ import annotations

import atexit
import fcntl
import importlib
import json
import os
import sys
import termios
import time
import traceback
from contextlib import suppress
from typing import Any

import matplotlib.backends.backend_agg
import matplotlib.figure
import transformers.models.llama.modeling_llama
import transformers.models.qwen2.modeling_qwen2

import tunesmith.api
import tunesmith.cli.compare
import tunesmith.cli.eval
import tunesmith.cli.generate
import tunesmith.cli.train
from tests.warm.ending import AT_END
from tunesmith.cli.main import main

IMPORTED = (matplotlib, transformers, tunesmith)


def serve() -> None:
    """Answer requests until stdin ends."""
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            answer = {"status": _ended(request["wait"], request["seconds"])}
        else:
            pid = os.fork()
            if pid == 0:
                _child(request)
            answer = {"pid": pid}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def _ended(pid: int, seconds: float) -> int | None:
    """The status of a child that ends in that time."""
    end = time.monotonic() + seconds
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return status
        if time.monotonic() > end:
            return None
        time.sleep(0.002)


def _child(request: dict[str, Any]) -> None:
    """Run the command as the installed script does; never returns."""
    code = 70
    try:
        os.chdir(request["folder"])
        os.environ.update(request["variables"])
        _take(request["streams"])
        if request["before"]:
            module, function, *arguments = request["before"]
            getattr(importlib.import_module(module), function)(*arguments)
        # Streams of its own: those of the warm process were perhaps made for another kind of file.
        sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
        sys.stdout, sys.stderr = (os.fdopen(n, "w", buffering=1, closefd=False) for n in (1, 2))
        sys.argv = ["tunesmith", *request["words"]]
        main()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        os.write(2, traceback.format_exc().encode())  # sys.stderr may be anything
    finally:
        atexit._run_exitfuncs()
        for call in AT_END:
            call()
        with suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _take(streams: list[str]) -> None:
    """Let the files be stdin, stdout and stderr."""
    modes = (os.O_RDONLY, os.O_WRONLY | os.O_CREAT | os.O_APPEND, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    opened = [os.open(file, mode) for file, mode in zip(streams, modes, strict=True)]
    for number, file in enumerate(opened):
        os.dup2(file, number)
    if os.isatty(0):
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # so that Ctrl-C reaches the child


if __name__ == "__main__":
    serve()
