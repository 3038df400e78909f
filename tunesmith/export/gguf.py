"""`--to gguf`: one file for llama.cpp, written from merged weights and asked by llama.cpp itself."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoConfig, PreTrainedTokenizerBase

from tunesmith.device import available_memory
from tunesmith.export import merged
from tunesmith.export.asked import ANSWER_TOKENS, LONGEST
from tunesmith.export.config import TYPES, Request
from tunesmith.export.gate import BUDGET_16_BIT, BUDGET_BF16
from tunesmith.export.gguf_families import context_of, family_of
from tunesmith.export.gguf_pre import find_pre, way_of
from tunesmith.export.gguf_tokens import Vocabulary, vocabulary_of
from tunesmith.export.gguf_write import embedding_rows, read_config, write_gguf
from tunesmith.export.llamacpp import LlamaCpp
from tunesmith.export.subject import Subject
from tunesmith.export.work import Work, Written
from tunesmith.model import gguf_file, weights
from tunesmith.model.load import local_folder, quiet

# nats a token. Right files of SmolLM2-135M are 0.006 to 0.011 off, mostly by llama.cpp's products in 8 bits.
BUDGET_8_BIT = 2e-2
USAGE = """\
With llama.cpp (the chat template is in the file):

```
llama-cli -m {file}
llama-server -m {file} --jinja
```

With tunesmith: `tunesmith chat {file}`.
"""


class GgufModel:
    """A GGUF file in llama.cpp as the gate asks it (protocol.py)."""

    def __init__(self, file: Path, tokenizer: PreTrainedTokenizerBase, ends: Sequence[int]) -> None:
        self._llama = LlamaCpp(file, room=LONGEST + ANSWER_TOKENS + 8)
        self._said = said = self._llama.metadata
        prefix = said.get("tokenizer.ggml.add_space_prefix")
        self._way = way_of(
            tokenizer, said.get("tokenizer.ggml.pre", ""), None if prefix is None else prefix == "true"
        )
        self._ends = ends

    def token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, brought into the form that llama.cpp doesn't bring it into by itself."""
        return self._llama.token_ids([self._way.prepare(text) for text in texts])

    def logits(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """[T, V]."""
        return self._llama.logits(token_ids)

    def greedy(self, token_ids: Sequence[int], count: int) -> list[int]:
        """The most likely next tokens, without the one that ends the answer."""
        return self._llama.greedy(token_ids, count)

    def template(self) -> str | None:
        """The chat template in the file."""
        return self._said.get("tokenizer.chat_template")

    def metadata(self) -> dict[str, Any]:
        """As llama.cpp read it. `ends` are those of the tuned model's that it takes for ends; it may have
        more.
        """
        found = {role: self._said.get(f"tokenizer.ggml.{name}_token_id") for role, name in _ROLES.items()}
        known = self._llama.ends()
        return {
            "vocabulary": self._llama.vocabulary,
            **{role: None if token is None else int(token) for role, token in found.items()},
            "ends": sorted(end for end in self._ends if end in known),
            "context": int(self._said[f"{self._said['general.architecture']}.context_length"]),
            "adds_bos": self._said.get("tokenizer.ggml.add_bos_token") == "true",
        }

    def close(self) -> None:
        """End llama.cpp."""
        self._llama.close()


_ROLES = {"bos": "bos", "eos": "eos", "pad": "padding"}


def write(work: Work, folder: Path) -> Written:
    """Merge, find out how llama.cpp has to tokenise, and write the file."""
    kind = work.request.type
    check_family(work)
    whole = folder / ".merged"
    whole.mkdir()
    done = merged.write(work, whole)
    vocabulary = _vocabulary(work, whole)
    way = find_pre(work.renderer.tokenizer, vocabulary, hint=_hint(work))
    file = folder / file_name(work)
    written = write_gguf(
        whole,
        file,
        kind,
        vocabulary,
        way,
        name=title(work),
        license=work.base.licence,
        progress=lambda done, total: work.watch(f"writing {file.name}, MiB", done >> 20, total >> 20),
    )
    context = context_of(read_config(whole))
    shutil.rmtree(whole)
    notes = [*written.notes, *way.notes]
    for line in notes:
        work.note(line)
    return Written(
        {"context": context},
        USAGE.format(file=file.name),
        [*done.notes, *notes],
        ["gguf", "llama.cpp"],
        "gguf",
    )


def open_gguf(work: Work, folder: Path) -> GgufModel:
    """The file, by llama.cpp."""
    return GgufModel(folder / file_name(work), work.renderer.tokenizer, sorted(work.renderer.stop_ids))


def needs(work: Work) -> int:
    """Bytes of the merged weights, which go again, and of the file."""
    found = weights.tensors(local_folder(work.subject.found.base))
    numbers = weights.parameter_bytes(found, 1)
    return merged.needs(work) + int(numbers * TYPES[work.request.type] / 8 * 1.1) + 64 * 2**20


def budget(work: Work) -> float | None:
    """The largest mean KL: 1e-3 with 16 bits or more, 3e-3 for bf16, 2e-2 with 8; with fewer None."""
    bits = TYPES[work.request.type]
    if work.request.type == "bf16":
        return BUDGET_BF16
    return BUDGET_16_BIT if bits >= 16 else BUDGET_8_BIT if bits >= 8 else None


def merge_dtype(request: Request, subject: Subject) -> torch.dtype:
    """What the adapter is merged in: bf16 for bf16; else fp32, so that nothing is rounded twice.

    Where memory can't hold that, it is bf16 as well, except for a file that is to have 32 bits.
    """
    if request.type == "bf16":
        return torch.bfloat16
    numbers = weights.parameter_bytes(weights.tensors(local_folder(subject.found.base)), 1)
    fits = numbers * 4 * 1.15 + 2**30 <= available_memory(subject.found.device.kind)
    return torch.float32 if fits or request.type == "f32" else torch.bfloat16


def check_family(work: Work) -> None:
    """Raise ModelError, before anything is merged, for a model that can't be written."""
    with quiet():
        config = AutoConfig.from_pretrained(
            local_folder(work.subject.found.base), local_files_only=True, trust_remote_code=False
        )
    family_of(config)


def title(work: Work) -> str:
    """What the file calls the model: the run's name, no path."""
    run = work.subject.run
    return run.path.resolve().name if run else PurePath(work.subject.found.name).name


def file_name(work: Work) -> str:
    """`tang-1-q8_0.gguf`."""
    name = re.sub(r"[^\w.-]+", "-", title(work)).strip("-.") or "model"
    return f"{name}-{work.request.type}.gguf"


def _vocabulary(work: Work, whole: Path) -> Vocabulary:
    renderer = work.renderer
    return vocabulary_of(renderer.tokenizer, embedding_rows(whole), set(renderer.stop_ids), renderer.text)


def _hint(work: Work) -> str | None:
    """The pre-tokenizer that the base's own GGUF file names, where it came from one."""
    base = work.subject.found.base
    if base.kind not in ("embedded", "gguf"):
        return None
    return str(gguf_file.check(base.path).values.get("tokenizer.ggml.pre"))
