"""LLaMA-Factory's own `run_exp` on ready-made tokens and labels; runs in LLaMA-Factory's environment.

options: batch_size, checkpointing, packing (rows of a step that fit are laid together; neat: as neat_packing
has it), dtype ("bf16": a bf16 base under autocast, as pure_bf16 is
refused on a CPU; "fp32"), compile. See llamafactory.md.
"""

from __future__ import annotations

import json
import sys
import tempfile
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

# LLaMA-Factory imports torchaudio whatever it trains, and PyPI's wheel of it needs CUDA: text can do without.
try:
    import torchaudio  # noqa: F401
except (ImportError, OSError):
    sys.modules["torchaudio"] = ModuleType("torchaudio")
    sys.modules["torchaudio"].__spec__ = ModuleSpec("torchaudio", None)

from datasets import Dataset, DatasetDict
from llamafactory.train.tuner import run_exp

from bench.pace import Pace, read_spec
from bench.turns import Turns


def packed(rows: list[dict[str, Any]], rows_per_step: int, cutoff: int) -> tuple[list[dict[str, Any]], int]:
    """Each step's rows first-fit into packs of `cutoff` tokens, as neat_packing lays them; packs per step.

    neat_packing numbers the rows in attention_mask (1, 2, …), from which a block-diagonal mask is built.
    Every step must have as many packs: those with fewer are split.
    """
    steps: list[list[list[dict[str, Any]]]] = []
    for at in range(0, len(rows), rows_per_step):
        packs: list[list[dict[str, Any]]] = []
        for row in sorted(rows[at : at + rows_per_step], key=lambda row: -len(row["input_ids"])):
            size = len(row["input_ids"])
            place = next((p for p in packs if sum(len(r["input_ids"]) for r in p) + size <= cutoff), None)
            packs.append([row]) if place is None else place.append(row)
        steps.append(packs)
    most = max(map(len, steps))
    for packs in steps:
        while len(packs) < most:
            largest = max(packs, key=len)
            half = len(largest) // 2
            packs.append(largest[half:])
            del largest[half:]
    return [_one(pack, cutoff) for packs in steps for pack in packs], most


def _one(pack: list[dict[str, Any]], cutoff: int) -> dict[str, Any]:
    ids = [token for row in pack for token in row["input_ids"]]
    labels = [label for row in pack for label in row["labels"]]
    mask = [number for number, row in enumerate(pack, 1) for _ in row["input_ids"]]
    places = [place for row in pack for place in range(len(row["input_ids"]))]
    filler = cutoff - len(ids)
    return {
        "input_ids": ids + [0] * filler,
        "labels": labels + [-100] * filler,
        "attention_mask": mask + [0] * filler,
        "position_ids": places + [0] * filler,
    }


def arguments(
    spec: dict[str, Any], folder: Path, tokens: Path, width: int, accumulate: int
) -> dict[str, Any]:
    """What would stand in LLaMA-Factory's YAML."""
    options = spec["options"]
    dtype = options.get("dtype", "bf16")
    whole = spec["tune"] == "full"
    chosen: dict[str, Any] = {
        "stage": "sft",
        "do_train": True,
        "model_name_or_path": spec["model"],
        "template": "chatml",
        "dataset": "laid out already",  # has to be there; tokenized_path wins
        "tokenized_path": str(tokens),
        "finetuning_type": "full" if whole else "lora",
        "output_dir": str(folder / "out"),
        "per_device_train_batch_size": width,
        "gradient_accumulation_steps": accumulate,
        "learning_rate": spec["learning_rate"],
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "max_steps": spec["steps"],
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_shuffling": True,
        "disable_gradient_checkpointing": not options.get("checkpointing"),
        "bf16": dtype == "bf16",
        "flash_attn": "sdpa",
        "overwrite_output_dir": True,
        "use_cpu": True,
        "seed": 42,
        "torch_compile": bool(options.get("compile")),
        "dataloader_pin_memory": False,
        "disable_tqdm": True,
        "trust_remote_code": False,
    }
    if not whole:
        chosen |= {
            "lora_rank": spec["rank"], "lora_alpha": spec["alpha"], "lora_target": "all", "lora_dropout": 0.0,
        }  # fmt: skip
    if options.get("packing"):
        chosen |= {"neat_packing": True, "packing": True, "cutoff_len": options["packing"]}
    if spec.get("quantization") == "nf4":
        chosen |= {"quantization_bit": 4, "quantization_method": "bnb", "quantization_type": "nf4"}
    return chosen


def main() -> None:
    pace, spec = Pace(), read_spec()
    rows = json.loads(Path(spec["rows"]).read_text(encoding="utf-8"))
    options = spec["options"]
    if cutoff := options.get("packing"):
        rows, packs = packed(rows, spec["rows_per_step"], cutoff)
        width, accumulate = 1, packs
    else:
        rows = [{**row, "attention_mask": [1] * len(row["input_ids"])} for row in rows]
        width = options.get("batch_size", 1)
        accumulate = max(1, spec["rows_per_step"] // width)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        DatasetDict({"train": Dataset.from_list(rows)}).save_to_disk(str(folder / "tokens"))
        run_exp(arguments(spec, folder, folder / "tokens", width, accumulate), callbacks=[Turns(pace)])


if __name__ == "__main__":
    main()
