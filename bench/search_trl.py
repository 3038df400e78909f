"""TRL's best settings on this machine: python -m bench.search_trl --workload handbook --output FILE.md

Batch size, checkpointing, packing, number format, and the order of rows inside a step (by length, which
is what TRL's group_by_length is for, but with the same rows in every step).
"""

from __future__ import annotations

import argparse
from itertools import product

from bench.race import Contender
from bench.search import command


def candidates(_: argparse.Namespace) -> list[Contender]:
    """A grid of batch size, packing and order in bf16; the rest varied at one point of it."""
    options = [
        ({"batch_size": size, "packing": packing, "dtype": "bf16"}, sort)
        for size, packing, sort in product((1, 2, 4, 8), ("none", "padding_free"), (True, False))
        if not (size == 1 and (packing == "padding_free" or sort))
        and not (packing == "padding_free" and sort)
    ]
    varied = [
        {"dtype": "bf16_autocast"},
        {"dtype": "fp32"},
        {"dtype": "bf16", "checkpointing": True},
        {"dtype": "bf16", "compile": True},
    ]
    options += [({"batch_size": 2, "packing": "none", **extra}, True) for extra in varied]
    return [Contender("TRL", "trl", chosen, sort=sort) for chosen, sort in options]


if __name__ == "__main__":
    command("TRL", candidates, argparse.ArgumentParser(description=__doc__.split("\n")[0]))
