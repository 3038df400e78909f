"""What job.yaml holds: the job as resolved, and everything needed to tell two runs apart."""

from __future__ import annotations

import hashlib
import json
import platform
from array import array
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import torch
from transformers import PreTrainedModel

from tunesmith.data.check import Dataset
from tunesmith.data.encode import Example
from tunesmith.model import adapters
from tunesmith.train.config import Job
from tunesmith.train.identity import code_sha256, flat_job
from tunesmith.train.prepare import Prepared

PACKAGES = ("tunesmith", "torch", "transformers", "peft", "tokenizers")


def facts_of(asked: Job, ready: Prepared) -> dict[str, Any]:
    """The record of a training that is about to start. `asked`: the job with its `auto`s as they were."""
    job, source, renderer, training = ready.job, ready.source, ready.renderer, ready.training
    trainable, parameters = adapters.trainable_count(cast(PreTrainedModel, training.model))
    resolved = job.model_dump(mode="json")
    return {
        "job": resolved,
        "chosen": _chosen(asked.model_dump(mode="json"), resolved),
        "base": {
            "name": job.model,
            "kind": source.kind,
            "path": str(source.path),
            "revision": source.revision,
            "fingerprint": ready.base_fingerprint,
        },
        "template": {"name": renderer.name, "sha256": renderer.sha256, "thinking": renderer.thinking},
        "tokenizer_sha256": tokenizer_sha256(renderer.tokenizer),
        "trainable": trainable,
        "parameters": parameters,
        "device": training.device.name,
        "dtype": training.device.dtype_name,
        "threads": torch.get_num_threads(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "steps": training.steps,
        "best": training.aim.to_json(),
        # Which of the ways to the same gradients was taken.
        "packing": training.packing,
        "segments": training.segments,
        "sharing": training.sharing,
        "compiled": training.compiled.active,
        "kernels": training.compiled.kernels.described,
        "approximate": ready.approximate,
        "folder": str(Path.cwd()),  # what relative paths of the job are relative to
        "started": now(),
        "data_sha256": {
            **_hashes(ready.train_rows, ready.valid_rows),
            **(ready.examination.files if ready.examination else {}),
        },
        "examples_sha256": examples_sha256([*training.train, *training.valid]),
        "code_sha256": code_sha256(),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in PACKAGES},
            **({"bitsandbytes": version("bitsandbytes")} if _uses_bitsandbytes(job) else {}),
        },
    }


def result_meta(facts: Mapping[str, Any], step: int) -> dict[str, Any]:
    """tunesmith.json of the weights of a step, by the record of the training."""
    return {
        "step": step,
        "model": facts["base"]["name"],
        "revision": facts["base"]["revision"],
        "kind": facts["base"]["kind"],
        "base_path": facts["base"]["path"],
        "base_fingerprint": facts["base"]["fingerprint"],
        "adapter": facts["job"]["adapter"],
        "quantization": facts["job"]["quantization"],
        "template": facts["template"],
        "version": facts["versions"]["tunesmith"],
    }


def now() -> str:
    """The time, as records hold it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def tokenizer_sha256(tokenizer: Any) -> str:
    """A hash of how a tokenizer cuts text."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    text = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    special = json.dumps(tokenizer.special_tokens_map, sort_keys=True, default=str)
    return hashlib.sha256(f"{text}\0{special}".encode()).hexdigest()


def examples_sha256(examples: Iterable[Example]) -> str:
    """A hash of all tokens and of which of them are trained on."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(array("q", [len(example.input_ids), *example.input_ids]).tobytes())
        digest.update(bytes(example.label_mask))
    return digest.hexdigest()


def _chosen(asked: dict[str, Any], resolved: dict[str, Any]) -> list[str]:
    """Settings that were left open and decided here: a job that leaves them open is still the same one."""
    here = Path.cwd()
    before, after = flat_job(asked, here), flat_job(resolved, here)
    return [key for key in after if before.get(key) != after[key]]


def _uses_bitsandbytes(job: Job) -> bool:
    return job.quantization is not None or job.train.optimizer == "adamw_8bit"


def _hashes(*sets: Dataset | None) -> dict[str, str]:
    """sha256 of every data file that was read."""
    return {file.path: file.sha256 for data in sets if data is not None for file in data.files}
