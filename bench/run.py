"""`make bench`: ours against the usual trainers on the same rows, in turns.

python -m bench.run                                    all workloads
python -m bench.run --only handbook --steps 4          one of them, shorter
python -m bench.run --llamafactory /path/to/venv       with LLaMA-Factory (llamafactory.md)
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench import plot, tables
from bench.race import Contender, race
from bench.workloads import ROOT, Workload, describe, lay_out, missing, model_folder, workloads

HERE = Path(__file__).parent

# Found by search_trl.py and search_llamafactory.py: README.md, "Others' settings".
TRL: dict[str, Any] = {"batch_size": 2, "dtype": "bf16", "packing": "none", "checkpointing": False}
LLAMAFACTORY: dict[str, Any] = {"batch_size": 2, "dtype": "bf16", "checkpointing": False}
NAIVE: dict[str, Any] = {"batch_size": 4, "dtype": "bf16"}
# Rows of nearly one length are padded little: there twice as many at a time are a tenth faster.
LIKE_LENGTHS = {"tang": {"batch_size": 4}}


def contenders(workload: Workload, llamafactory: Path | None) -> list[Contender]:
    """Ours first; the others with the settings that are best for them."""
    own = LIKE_LENGTHS.get(workload.name, {})
    found = [
        Contender("tunesmith", "tunesmith"),
        Contender("TRL", "trl", TRL | own, sort=True),
        Contender("naive loop", "naive", NAIVE),
    ]
    if llamafactory:
        python = str(llamafactory / "bin/python")
        found.insert(2, Contender("LLaMA-Factory", "llamafactory", LLAMAFACTORY | own, python, sort=True))
    if workload.quantization:
        found.pop()  # the naive loop has nothing of its own there
    return found


def measure(
    workload: Workload, llamafactory: Path | None, warmup: int, steps: int, rate: float
) -> dict[str, Any]:
    """One workload's race as plain values."""
    result: dict[str, Any] = {"name": workload.name, "title": workload.title}
    if why := missing(workload):
        print(f"{workload.title}: skipped, {why}", file=sys.stderr)
        return {**result, "skipped": why}
    print(f"{workload.title}:", file=sys.stderr)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        laid = {sort: lay_out(workload, folder, sort=sort) for sort in (False, True)}
        lanes = race(workload, contenders(workload, llamafactory), laid, folder, warmup=warmup, steps=steps)
    operations = 6 if workload.tune == "full" else 4
    return {
        **result,
        "data": describe([example for step in laid[False].steps for example in step]),
        "rows_per_step": workload.rows_per_step,
        "tokens": [laid[False].tokens(step) for step in range(warmup + steps)],
        "warmup": warmup,
        "operations": operations,
        "limit": rate / (operations * parameters()),
        "lanes": [lane.as_dict() for lane in lanes],
    }


def parameters() -> int:
    """Numbers in the model; the tied embedding once."""
    from safetensors import safe_open

    total = 0
    for file in model_folder().glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118
                size = 1
                for length in tensors.get_slice(key).get_shape():
                    size *= length
                total += size
    return total


def machine() -> dict[str, Any]:
    """bench.machine's facts, measured in a process that ends before the race begins."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.machine"], cwd=ROOT, stdout=subprocess.PIPE, check=True, text=True
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.run", description=__doc__.split("\n")[0])
    known = workloads()
    parser.add_argument("--only", action="append", choices=list(known), help="a workload; may be repeated")
    parser.add_argument("--steps", type=int, default=8, help="timed steps of every contender")
    parser.add_argument("--warmup", type=int, default=2, help="steps before them")
    parser.add_argument("--llamafactory", type=Path, help="environment in which LLaMA-Factory is installed")
    parser.add_argument("--output", type=Path, default=HERE, help="folder of the results")
    parser.add_argument("--name", default="results", help="of the files there: .json, .md and .png")
    options = parser.parse_args()
    results: dict[str, Any] = {"machine": machine(), "races": []}
    rate = results["machine"]["product_rate"]
    for name in options.only or known:
        found = measure(known[name], options.llamafactory, options.warmup, options.steps, rate)
        results["races"].append(found)
        # After each workload: an interrupted run has kept what was measured.
        write(results, options.output, options.name)
        if not found.get("skipped"):
            print(tables.table(found), file=sys.stderr)
    print(tables.page(results, options.name))


def write(results: dict[str, Any], folder: Path, name: str) -> None:
    """The results as .json, .md and .png."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(
        json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    (folder / f"{name}.md").write_text(tables.page(results, name), encoding="utf-8")
    plot.draw(results, folder / f"{name}.png")


if __name__ == "__main__":
    main()
