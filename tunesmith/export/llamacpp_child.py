"""The process that llama.cpp runs in: one GGUF file, asked by lines of JSON on stdin (see llamacpp.py).

Apart from its parent, because a parser in C++ that meets a bad file ends its process. The library is the one
inside PyPI's xllamacpp, called by its C interface: the Python one answers prompts, but gives neither all
logits nor the tokens of a text. Of its large structures only the first numbers are touched, after a check.

No import but the standard library's: what starts for every check should start at once.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, cast

# What llama_context_params begins with, as numbers of 32 bits (None: not looked at). Its defaults tell
# whether this is the layout that is known here: n_ctx, n_batch, n_ubatch, n_seq_max, …, threads (twice), …,
# flash attention (-1: auto), …, two pointers, the number formats of the keys' and values' cache (1: F16).
_DEFAULTS = (512, 2048, 512, 1, *(None,) * 3, 4, 4, 0, *(2**32 - 1,) * 4, *(None,) * 12, 1, 1)
_ROOM, _BATCH, _FLASH, _CACHE = 0, 1, 13, (26, 27)
_ERROR = 4  # GGML_LOG_LEVEL_ERROR
_Int = ctypes.c_int32
_Ints = ctypes.POINTER(_Int)


class _Parameters(ctypes.Structure):
    """Room for any of llama.cpp's parameter structures; it is handed back as it was filled."""

    _fields_ = (("words", ctypes.c_uint64 * 128),)


class _Batch(ctypes.Structure):
    """llama_batch: tokens with their places, sequences, and whether logits are wanted."""

    _fields_ = (
        ("n_tokens", _Int),
        ("token", _Ints),
        ("embd", ctypes.c_void_p),
        ("pos", _Ints),
        ("n_seq_id", _Ints),
        ("seq_id", ctypes.POINTER(_Ints)),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    )


class _Refused(Exception):
    """llama.cpp said no."""


def main() -> None:
    """Answer requests until stdin ends."""
    # llama.cpp may print: what it prints must not fall between the answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    model = _Model()
    for line in sys.stdin.buffer:
        request = json.loads(line)
        try:
            _ANSWERS[request.pop("do")](model, answers, **request)
        except _Refused as refused:
            _say(answers, {"error": str(refused), "log": model.errors[-5:]})
        answers.flush()


def library_file() -> Path | None:
    """The shared library of the installed xllamacpp, which isn't imported; None where it isn't installed."""
    spec = importlib.util.find_spec("xllamacpp")
    for place in (spec.submodule_search_locations or []) if spec else []:
        for pattern in ("xllamacpp*.so", "xllamacpp*.pyd", "xllamacpp*.dylib"):
            if files := sorted(Path(place).glob(pattern)):
                return files[0]
    return None


class _Model:
    """One loaded file."""

    def __init__(self) -> None:
        file = library_file()
        if file is None:
            raise SystemExit("xllamacpp isn't installed")
        self.library = _declared(ctypes.CDLL(str(file)))
        self.errors: list[str] = []
        self._log = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(self._keep)
        self.library.llama_log_set(self._log, None)
        self.library.llama_backend_init()
        self.model = self.context = self.vocabulary = self.batch = cast(Any, None)
        self.size = self.room = 0

    def _keep(self, level: int, text: bytes, _: Any) -> None:
        if level >= _ERROR:
            self.errors.append(text.decode("utf-8", errors="replace").strip())

    def load(self, path: str, room: int, threads: int) -> None:
        """Read the file and make room for `room` tokens."""
        library = self.library
        model = library.llama_model_load_from_file(path.encode(), library.llama_model_default_params())
        if not model:
            raise _Refused("llama.cpp can't load the file")
        parameters = library.llama_context_default_params()
        numbers = ctypes.cast(ctypes.pointer(parameters), ctypes.POINTER(ctypes.c_uint32))
        if any(known not in (None, numbers[place]) for place, known in enumerate(_DEFAULTS)):
            raise _Refused("this version of xllamacpp lays out its parameters in another way")
        numbers[_ROOM] = numbers[_BATCH] = room
        # The file is looked at, not what a server may save: a cache in F16 would be a part of every distance.
        numbers[_FLASH] = 0
        for place in _CACHE:
            numbers[place] = 0
        self.context = library.llama_init_from_model(model, parameters)
        if not self.context:
            raise _Refused("llama.cpp can't make a context for the file")
        library.llama_set_n_threads(self.context, threads, threads)
        self.model, self.room = model, room
        self.vocabulary = library.llama_model_get_vocab(model)
        self.size = library.llama_vocab_n_tokens(self.vocabulary)
        self.batch = library.llama_batch_init(room, 0, 1)

    def metadata(self) -> dict[str, str]:
        """Every key of the header that isn't a list, as text."""
        key, value = "llama_model_meta_key_by_index", "llama_model_meta_val_str_by_index"
        count = self.library.llama_model_meta_count(self.model)
        return {self._text(key, number): self._text(value, number) for number in range(count)}

    def _text(self, function: str, number: int) -> str:
        # As snprintf does, the functions say how long the text is, however much of it there was room for.
        read = getattr(self.library, function)
        room = ctypes.create_string_buffer(4096)
        length = read(self.model, number, room, len(room))
        if length >= len(room):
            room = ctypes.create_string_buffer(length + 1)
            read(self.model, number, room, len(room))
        return room.value.decode("utf-8", errors="replace")

    def tokens(self, text: str, add_special: bool, parse_special: bool) -> list[int]:
        """The ids of a text."""
        data = text.encode("utf-8", errors="replace")
        room = len(data) + 16
        found = (_Int * room)()
        count = self.library.llama_tokenize(
            self.vocabulary, data, len(data), found, room, add_special, parse_special
        )
        if count < 0:
            raise _Refused(f"llama.cpp made more than {room} tokens of {len(data)} bytes")
        return found[:count]

    def decode(self, ids: list[int], start: int = 0, *, every: bool = False) -> None:
        """Read tokens from place `start` on; logits are kept of every one, or of the last."""
        if start + len(ids) > self.room:
            raise _Refused(f"{start + len(ids)} tokens don't fit into {self.room}")
        if start == 0:
            self.library.llama_memory_clear(self.library.llama_get_memory(self.context), True)
        batch = self.batch
        batch.n_tokens = len(ids)
        for place, token in enumerate(ids):
            batch.token[place], batch.pos[place] = token, start + place
            batch.n_seq_id[place], batch.seq_id[place][0] = 1, 0
            batch.logits[place] = every or place + 1 == len(ids)
        if self.library.llama_decode(self.context, batch) != 0:
            raise _Refused("llama.cpp can't compute the tokens")


def _load(model: _Model, answers: BinaryIO, path: str, room: int, threads: int) -> None:
    model.load(path, room, threads)
    _say(answers, {"vocabulary": model.size, "metadata": model.metadata()})


def _tokenize(
    model: _Model, answers: BinaryIO, texts: list[str], add_special: bool, parse_special: bool
) -> None:
    _say(answers, {"ids": [model.tokens(text, add_special, parse_special) for text in texts]})


def _logits(model: _Model, answers: BinaryIO, ids: list[int]) -> None:
    model.decode(ids, every=True)
    _say(answers, {"rows": len(ids), "columns": model.size})
    scores = model.library.llama_get_logits(model.context)
    answers.write(ctypes.string_at(scores, len(ids) * model.size * 4))


def _greedy(model: _Model, answers: BinaryIO, ids: list[int], most: int) -> None:
    """The likeliest tokens, up to and without one that llama.cpp takes for an end."""
    written: list[int] = []
    model.decode(ids)
    while len(written) < most:
        row = model.library.llama_get_logits_ith(model.context, -1)
        scores = struct.unpack(f"{model.size}f", ctypes.string_at(row, model.size * 4))
        token = scores.index(max(scores))
        if model.library.llama_vocab_is_eog(model.vocabulary, token):
            break
        written.append(token)
        if len(ids) + len(written) >= model.room:
            break
        model.decode([token], len(ids) + len(written) - 1)
    _say(answers, {"ids": written})


def _ends(model: _Model, answers: BinaryIO) -> None:
    is_end = model.library.llama_vocab_is_eog
    _say(answers, {"ids": [token for token in range(model.size) if is_end(model.vocabulary, token)]})


_ANSWERS: dict[str, Callable[..., None]] = {
    "load": _load,
    "tokenize": _tokenize,
    "logits": _logits,
    "greedy": _greedy,
    "ends": _ends,
}


def _say(answers: BinaryIO, content: dict[str, Any]) -> None:
    answers.write(json.dumps(content).encode() + b"\n")


def _declared(library: ctypes.CDLL) -> ctypes.CDLL:
    """The functions used here, with the types of include/llama.h."""
    pointer, text, flag = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_bool
    floats = ctypes.POINTER(ctypes.c_float)
    for name, result, arguments in (
        ("llama_backend_init", None, ()),
        ("llama_log_set", None, (pointer, pointer)),
        ("llama_model_default_params", _Parameters, ()),
        ("llama_context_default_params", _Parameters, ()),
        ("llama_model_load_from_file", pointer, (text, _Parameters)),
        ("llama_init_from_model", pointer, (pointer, _Parameters)),
        ("llama_set_n_threads", None, (pointer, _Int, _Int)),
        ("llama_model_get_vocab", pointer, (pointer,)),
        ("llama_vocab_n_tokens", _Int, (pointer,)),
        ("llama_vocab_is_eog", flag, (pointer, _Int)),
        ("llama_model_meta_count", _Int, (pointer,)),
        ("llama_model_meta_key_by_index", _Int, (pointer, _Int, text, ctypes.c_size_t)),
        ("llama_model_meta_val_str_by_index", _Int, (pointer, _Int, text, ctypes.c_size_t)),
        ("llama_tokenize", _Int, (pointer, text, _Int, _Ints, _Int, flag, flag)),
        ("llama_batch_init", _Batch, (_Int, _Int, _Int)),
        ("llama_get_memory", pointer, (pointer,)),
        ("llama_memory_clear", None, (pointer, flag)),
        ("llama_decode", _Int, (pointer, _Batch)),
        ("llama_get_logits", floats, (pointer,)),
        ("llama_get_logits_ith", floats, (pointer, _Int)),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    library.llama_log_set.argtypes = (ctypes.CFUNCTYPE(None, ctypes.c_int, text, pointer), pointer)
    return library


if __name__ == "__main__":
    main()
