"""How to use a run's result: the command line, and plain transformers (and peft)."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunesmith.redact import short_paths
from tunesmith.rundir import RunDir


def loading(run: RunDir, facts: Mapping[str, Any]) -> dict[str, str]:
    """{"commands", "python"}: lines that work as they stand, without the name of a home folder."""
    path, base = str(run.path), facts.get("base") or {}
    folder = _path_words(f"{path}/{run.weights.name if run.weights else 'adapter'}")
    lines = [
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f"folder = {folder}  # seen from where it was trained",
    ]
    if run.weights == run.model:
        lines.append("model = AutoModelForCausalLM.from_pretrained(folder)")
    else:
        lines.insert(0, "from peft import PeftModel")
        if base.get("kind") != "hub":
            lines.append(f"# {base.get('name')}, where it lies on the machine that trained it")
        lines.append(f"model = AutoModelForCausalLM.from_pretrained({_base_words(base)})")
        lines.append("model = PeftModel.from_pretrained(model, folder)")
    lines += [
        "tokenizer = AutoTokenizer.from_pretrained(folder)",
        'messages = [{"role": "user", "content": "…"}]',
        "inputs = tokenizer.apply_chat_template(",
        '    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True',
        ")",
        'answer = model.generate(**inputs, max_new_tokens=100)[0, inputs["input_ids"].shape[1] :]',
        "print(tokenizer.decode(answer, skip_special_tokens=True))",
    ]
    if any("os.path" in line for line in lines):
        lines.insert(0, "import os")
    name = shlex.quote(path)
    commands = [
        f"tunesmith chat {name}",
        f"tunesmith compare {name} --data FILE",
        f"tunesmith generate {name} --input FILE --output FILE",
    ]
    return {"commands": "\n".join(commands), "python": "\n".join(lines)}


def _base_words(base: Mapping[str, Any]) -> str:
    """The arguments of from_pretrained for the base model."""
    path, name = Path(str(base.get("path") or "")), str(base.get("name") or "")
    if base.get("kind") == "hub":
        revision = f", revision={base['revision']!r}" if base.get("revision") else ""
        return f"{name!r}{revision}"
    if path.suffix == ".gguf":
        return f"{_path_words(str(path.parent))}, gguf_file={path.name!r}"
    return _path_words(str(path) if str(path) != "." else name)


def _path_words(path: str) -> str:
    """A path as Python source that works on this machine and names no home folder."""
    short = str(short_paths(path, foreign=False))
    return f"os.path.expanduser({short!r})" if short.startswith("~") else repr(path)
