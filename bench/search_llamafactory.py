"""LLaMA-Factory's best settings on this machine:

python -m bench.search_llamafactory --python /path/to/venv/bin/python --output bench/search.md
"""

from __future__ import annotations

import argparse
from itertools import product

from bench.race import Contender
from bench.search import command


def candidates(options: argparse.Namespace) -> list[Contender]:
    """Batch sizes and orders in bf16; packing, checkpointing, fp32 and compilation beside them."""
    chosen = [
        ({"batch_size": size, "dtype": "bf16"}, sort)
        for size, sort in product((1, 2, 4), (True, False))
        if not (size == 1 and sort)
    ]
    varied = [{"dtype": "fp32"}, {"dtype": "bf16", "checkpointing": True}, {"dtype": "bf16", "compile": True}]
    chosen += [({"batch_size": 2, **extra}, True) for extra in varied]
    chosen += [({"packing": cutoff, "dtype": "bf16"}, False) for cutoff in (1024, 2048)]
    return [Contender("LLaMA-Factory", "llamafactory", some, options.python, sort) for some, sort in chosen]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--python", required=True, help="Python of LLaMA-Factory's environment")
    command("LLaMA-Factory", candidates, parser)
