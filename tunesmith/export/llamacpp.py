"""llama.cpp on one GGUF file, in a process of its own: tokens, logits and greedy answers.

with LlamaCpp(Path("model.gguf")) as model:
    [ids] = model.token_ids(["<|im_start|>user\\n你好"])
    scores = model.logits(ids)          # [tokens, vocabulary], float32
    answer = model.greedy(ids, 64)
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from tunesmith.children import python_child
from tunesmith.errors import MissingExtraError, ModelError
from tunesmith.export import llamacpp_child

_TEXTS_AT_ONCE = 1000


class LlamaCpp:
    """A GGUF file as llama.cpp understands it; `room` is how many tokens one call may have.

    Raises MissingExtraError without xllamacpp, ModelError where llama.cpp refuses the file or breaks off.
    """

    def __init__(self, file: Path, room: int = 2048) -> None:
        if llamacpp_child.library_file() is None:
            raise MissingExtraError("Checking a GGUF file", "xllamacpp", "gguf")
        self.file = file
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the child
        self._child = subprocess.Popen(
            python_child(llamacpp_child.__name__),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
        )
        try:
            answer = self._ask("load", path=str(file), room=room, threads=torch.get_num_threads())
        except BaseException:
            self.close()
            raise
        self.vocabulary = int(answer["vocabulary"])
        self.metadata: dict[str, str] = answer["metadata"]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        self._child.kill()
        self._child.communicate()
        self._stderr.close()

    def token_ids(self, texts: Sequence[str], *, add_special: bool = False) -> list[list[int]]:
        """The tokens of every text, in which special tokens count as such.

        `add_special`: with the BOS and EOS that the file says to add; else nothing is added.
        """
        found: list[list[int]] = []
        for start in range(0, len(texts), _TEXTS_AT_ONCE):
            part = list(texts[start : start + _TEXTS_AT_ONCE])
            answer = self._ask("tokenize", texts=part, add_special=add_special, parse_special=True)
            found += answer["ids"]
        return found

    def logits(self, ids: Sequence[int]) -> np.ndarray[Any, np.dtype[np.float32]]:
        """The scores after every token, [tokens, vocabulary]."""
        answer = self._ask("logits", ids=list(ids))
        rows, columns = int(answer["rows"]), int(answer["columns"])
        assert self._child.stdout is not None
        data = self._child.stdout.read(rows * columns * 4)
        if len(data) < rows * columns * 4:
            raise self._broken()
        return np.frombuffer(data, dtype=np.float32).reshape(rows, columns)

    def greedy(self, ids: Sequence[int], count: int) -> list[int]:
        """The likeliest next tokens, at most `count`, up to what the file calls an end of an answer."""
        answer: list[int] = self._ask("greedy", ids=list(ids), most=count)["ids"]
        return answer

    def ends(self) -> set[int]:
        """The tokens at which llama.cpp ends an answer."""
        return set(self._ask("ends")["ids"])

    def _ask(self, what: str, **request: Any) -> dict[str, Any]:
        child = self._child
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            child.stdin.write(json.dumps({"do": what, **request}).encode() + b"\n")
            child.stdin.flush()
        except BrokenPipeError:
            raise self._broken() from None
        line = child.stdout.readline()
        if not line.endswith(b"\n"):
            raise self._broken()
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise ModelError(
                f"{self.file.name}: {answer['error']}.",
                details=answer["log"],
                fix="Report this with the model's name: the file was written by tunesmith."
                if not answer["log"]
                else "llama.cpp's own words are above.",
            )
        return answer

    def _broken(self) -> ModelError:
        code = self._child.wait()
        self._stderr.seek(0)
        lines = self._stderr.read().decode("utf-8", errors="replace").splitlines()[-5:]
        return ModelError(
            f"llama.cpp broke off while it worked on {self.file.name} (exit code {code}).",
            details=lines,
            fix="Report this with the model's name. The model itself is untouched.",
        )
