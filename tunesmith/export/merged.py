"""`--to merged`: a folder of transformers that needs no code of ours, nor PEFT."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel

from tunesmith.export.loaded import TransformersModel, of_model, open_folder
from tunesmith.export.merge import check_finite, merge
from tunesmith.export.work import Work, Written
from tunesmith.model import adapters, saved, weights
from tunesmith.model.load import load_model, local_folder
from tunesmith.model.peft_parts import PeftModel

USAGE = """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("FOLDER")
model = AutoModelForCausalLM.from_pretrained("FOLDER", dtype="auto")
{ask}```

With tunesmith: `tunesmith chat FOLDER`, `tunesmith eval FOLDER --data FILE`.
"""
_CHAT = """\
prompt = tokenizer.apply_chat_template(
    [{"role": "user", "content": "…"}], add_generation_prompt=True, return_tensors="pt", return_dict=True
)
answer = model.generate(**prompt, max_new_tokens=200)
print(tokenizer.decode(answer[0, prompt["input_ids"].shape[1]:], skip_special_tokens=True))
"""
_TEXT = """\
prompt = tokenizer("…", return_tensors="pt")
print(tokenizer.decode(model.generate(**prompt, max_new_tokens=200)[0]))
"""


def write(work: Work, folder: Path) -> Written:
    """Merge into the 16-bit base, and write weights, config, tokenizer, template and end tokens."""
    notes: list[str] = []
    model = merged_model(work, notes)
    expected: dict[str, Any] = {
        "dtype": str(work.dtype).removeprefix("torch."),
        "tied": of_model(model)["tied"],
    }
    set_end_tokens(model, work)
    saved.write_model(model, folder, shard_bytes=work.request.shard_bytes)
    work.renderer.save(folder)
    (folder / saved.META).write_text(json.dumps(meta(work), ensure_ascii=False, indent=1), encoding="utf-8")
    for line in notes:
        work.note(line)
    return Written(expected, usage(work), notes, ["merged"])


def open_merged(work: Work, folder: Path) -> TransformersModel:
    """What lies in the folder, by transformers."""
    return open_folder(folder, work.device)


def needs(work: Work) -> int:
    """Bytes of the weights, untied ones apart, and room for the rest."""
    found = weights.tensors(local_folder(work.subject.found.base))
    largest = max((weights.parameter_bytes({k: t}, work.dtype.itemsize) for k, t in found.items()), default=0)
    return weights.parameter_bytes(found, work.dtype.itemsize) + largest + 64 * 2**20


def merged_model(work: Work, notes: list[str]) -> PreTrainedModel:
    """The whole model in memory, in the export's number format."""
    found = work.subject.found
    device = replace(found.device, dtype=work.dtype)
    model: Any = load_model(found.base, device, dtype=work.dtype)
    if found.adapter is None:
        return _in_one_format(model, work.dtype)
    tuned = adapters.attach(model, found.adapter)
    assert isinstance(tuned, PeftModel)
    return merge(tuned, notes.append)


def set_end_tokens(model: PreTrainedModel, work: Work) -> None:
    """A generation config that stops where the model was taught to: at the template's end of turn, too."""
    config = model.generation_config
    if not isinstance(config, GenerationConfig):
        config = GenerationConfig.from_model_config(model.config)
    tokenizer = work.renderer.tokenizer
    ends = sorted(work.renderer.stop_ids, key=lambda i: (i != tokenizer.eos_token_id, i))
    if ends:
        config.eos_token_id = ends if len(ends) > 1 else ends[0]
    if config.pad_token_id is None:
        config.pad_token_id = (
            tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        )
    if config.bos_token_id is None and tokenizer.bos_token_id is not None:
        config.bos_token_id = tokenizer.bos_token_id
    config._from_model_config = False
    model.generation_config = config


def meta(work: Work) -> dict[str, Any]:
    """tunesmith.json of an export: as `chat` wants it, and nothing of this machine."""
    own, base = work.subject.found.meta, work.base
    settings = dict(own.get("adapter") or {})
    settings.pop("continue_from", None)
    return {
        "step": work.subject.step,
        "model": base.name if base.kind != "hub" else base.hub,
        "revision": base.revision,
        "kind": base.kind,
        "base_fingerprint": base.fingerprint,
        "adapter": settings or None,
        "trained_over": own.get("quantization"),
        "template": own.get("template")
        or {"name": work.renderer.name, "sha256": work.renderer.sha256, "thinking": work.renderer.thinking},
        "version": own.get("version"),
        "exported": work.request.to,
    }


def usage(work: Work) -> str:
    """How the folder is used, for its card."""
    return USAGE.format(ask=_CHAT if work.renderer.text else _TEXT)


def _in_one_format(model: Any, dtype: torch.dtype) -> PreTrainedModel:
    """A model that was tuned as a whole: fp32 where it was trained, now in the export's format throughout."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.requires_grad_(False)
            if parameter.is_floating_point():
                parameter.data = parameter.data.to(dtype)
        check_finite(model)
    model.config.dtype = dtype
    return model
