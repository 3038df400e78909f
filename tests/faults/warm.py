"""A process with everything imported, which forks children that run a command of tunesmith: starting one
takes milliseconds instead of seconds, so that hundreds can be killed. Requests and answers are lines of JSON:

    {"words": […], "folder": …, "printed": FILE, "before": ["module", "function", argument…]}   {"pid": …}
    {"wait": pid}                                                                               {"status": …}

The children are real processes with their own memory and locks; what kills them is a real signal.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
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
from tests.faults.system import AT_END
from tunesmith.cli.main import main

IMPORTED = (matplotlib, transformers, tunesmith)


def serve() -> None:
    """Answer requests until stdin ends."""
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            answer = {"status": os.waitpid(request["wait"], 0)[1]}
        else:
            pid = os.fork()
            if pid == 0:
                _child(request)
            answer = {"pid": pid}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def _child(request: dict[str, Any]) -> None:
    """Run the command as the installed script does; never returns."""
    code = 70
    try:
        os.chdir(request["folder"])
        file = os.open(request["printed"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for number, target in ((nothing, 0), (file, 1), (file, 2)):
            os.dup2(number, target)
        if request["before"]:
            module, function, *arguments = request["before"]
            getattr(importlib.import_module(module), function)(*arguments)
        # Streams of its own: those of the warm process were perhaps made for another kind of file.
        sys.stdout, sys.stderr = (os.fdopen(n, "w", buffering=1, closefd=False) for n in (1, 2))
        sys.argv = ["tunesmith", *request["words"]]
        main()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        with open(request["printed"], "a", encoding="utf-8") as file:  # noqa: PTH123 - stderr may be anything
            traceback.print_exc(file=file)
    finally:
        for call in AT_END:
            call()
        with suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve()
