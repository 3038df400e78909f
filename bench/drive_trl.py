"""TRL's SFTTrainer on ready-made tokens and labels, with the settings that the race gives it.

options: batch_size, checkpointing, packing ("none", "padding_free", "bfd"), dtype ("bf16", "bf16_autocast",
"fp32"), compile.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import AutoTokenizer
from trl import SFTConfig, SFTTrainer

from bench.base import build_model
from bench.pace import Pace, read_spec
from bench.turns import Turns


def config(spec: dict[str, Any], folder: str) -> SFTConfig:
    """As near to ours as it gets: no shuffling, constant rate, AdamW, one divisor for the whole step."""
    options = spec["options"]
    packing = options.get("packing", "none")
    width = options.get("batch_size", 1)
    rows = spec["rows_per_step"]
    return SFTConfig(
        output_dir=folder,
        max_steps=spec["steps"],
        per_device_train_batch_size=width,
        gradient_accumulation_steps=max(1, rows // width),
        gradient_checkpointing=bool(options.get("checkpointing")),
        gradient_checkpointing_kwargs={"use_reentrant": False},
        packing=packing == "bfd",
        padding_free=packing == "padding_free",
        max_length=options.get("max_length") if packing == "bfd" else None,
        bf16=options.get("dtype", "bf16") == "bf16_autocast",
        train_sampling_strategy="sequential",
        learning_rate=spec["learning_rate"],
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=1.0,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        seed=42,
        torch_compile=bool(options.get("compile")),
        dataloader_pin_memory=False,
    )


def main() -> None:
    pace, spec = Pace(), read_spec()
    rows = json.loads(Path(spec["rows"]).read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        trainer = SFTTrainer(
            model=build_model(spec),
            args=config(spec, folder),
            train_dataset=Dataset.from_list(rows),
            processing_class=AutoTokenizer.from_pretrained(spec["model"]),
            callbacks=[Turns(pace)],
        )
        trainer.train()


if __name__ == "__main__":
    main()
