"""Which of llama.cpp's pre-tokenizers cuts texts as this tokenizer does: found out with llama.cpp itself.

A GGUF file doesn't hold the rules by which a text is cut before BPE, only a name (tokenizer.ggml.pre) of
rules that are written in llama.cpp. Under a wrong name the model reads other tokens than it was tuned on, and
nobody says so (https://github.com/ggml-org/llama.cpp/issues/9927). Its own converter knows names by a
checksum of one text. Here every name is tried, the likeliest first, on seeded texts and special tokens; the
first under which all tokens are equal is taken, and where there is none the export is refused.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import GGUFWriter
from tokenizers.normalizers import NFC
from transformers import PreTrainedTokenizerBase

from tunesmith.errors import ModelError
from tunesmith.export.gguf_tokens import SPACE, Vocabulary, definition_of, parts
from tunesmith.export.llamacpp import LlamaCpp
from tunesmith.export.strings import texts

_SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
_SHORT += r"\s*[\r\n]+|\s+(?!\S)|\s+"
# Rules as tokenizer.json has them -> llama.cpp's name for them; tried first where they stand there.
_LIKELY = {
    _SHORT: "qwen2",
    _SHORT.replace(r"|\p{N}|", r"|\p{N}{1,3}|"): "llama-bpe",
    _SHORT.replace(r"\p{L}+", r"[\p{L}\p{M}]+").replace(
        r"[^\s\p{L}\p{N}]", r"[^\s\p{L}\p{M}\p{N}]"
    ): "qwen35",
}
# One name for each set of rules that llama.cpp has (src/llama-vocab.cpp).
NAMES = (
    "gpt-2", "smollm", "qwen2", "llama-bpe", "smaug-bpe", "qwen35", "tekken", "gpt-4o", "deepseek-llm",
    "deepseek-coder", "deepseek-v3", "falcon", "default", "bloom", "viking", "bailingmoe", "seed-coder",
    "chameleon", "exaone-moe", "youtu", "superbpe",
)  # fmt: skip
_TEXTS, SEED = 5_000, 20_611  # others than the gate's, which reads the file that is written in the end
_PART = 200  # texts that a name must pass before it gets the next ones


@dataclass(frozen=True)
class Found:
    """How llama.cpp is told to tokenise, and in what it differs all the same (`notes`, for people).

    `composes`: the tokenizer brings texts into Unicode's NFC form. `leads`: it puts a space before a text
    that doesn't begin with one of `special`. llama.cpp does neither; `prepare` does both in its place.
    """

    pre: str
    space_prefix: bool | None = None
    composes: bool = False
    leads: bool = False
    special: tuple[str, ...] = ()

    def prepare(self, text: str) -> str:
        """The text for which llama.cpp has the tokens that the tokenizer has for `text`."""
        if self.composes:
            text = str(NFC().normalize_str(text))
        return (
            f" {text}" if self.leads and text and not text.startswith((" ", SPACE, *self.special)) else text
        )

    @property
    def notes(self) -> list[str]:
        """What differs between the tokenizer and llama.cpp on texts as they are."""
        found = []
        if self.composes:
            found.append(
                "The tokenizer brings texts into Unicode's NFC form first, llama.cpp doesn't: they were "
                "compared on texts in that form, and differ on others, which keyboards seldom make."
            )
        if self.leads:
            found.append(
                "The tokenizer puts a space before a text that doesn't begin with a special token, llama.cpp "
                "doesn't. Conversations begin with one; a bare text needs that space written."
            )
        return found


def find_pre(
    tokenizer: PreTrainedTokenizerBase, vocabulary: Vocabulary, *, hint: str | None = None, seed: int = SEED
) -> Found:
    """The way under which llama.cpp gives the tokenizer's own ids on each of 5,000 texts.

    `hint`: the name that the base's GGUF file had. Raises ModelError where no way does, with an example.
    """
    nearest: tuple[int, str] = (0, "")
    for way in _ways(tokenizer, vocabulary, hint):
        wanted = texts(way.special[:64], _TEXTS, seed)
        equal, difference = _equal(tokenizer, vocabulary, way, wanted)
        if equal == len(wanted):
            return way
        if not nearest[1] or equal > nearest[0]:
            nearest = (equal, f"{way.pre}: {difference}")
    raise ModelError(
        "llama.cpp has no pre-tokenizer that cuts texts as this tokenizer does: the model would read other "
        "tokens than it was tuned on.",
        details=[f"nearest was {nearest[1]}"],
        fix="Use --to merged for this model; or ask llama.cpp to add the tokenizer "
        "(https://github.com/ggml-org/llama.cpp/issues).",
    )


def way_of(tokenizer: PreTrainedTokenizerBase, pre: str, space_prefix: bool | None) -> Found:
    """What llama.cpp leaves to do where it was told this of a tokenizer."""
    first = tokenizer.convert_ids_to_tokens(tokenizer("a", add_special_tokens=False)["input_ids"][0])
    return Found(
        pre,
        space_prefix,
        composes="NFC" in {part["type"] for part in parts(definition_of(tokenizer).get("normalizer"))},
        leads=space_prefix is False and first.startswith(SPACE),
        special=tuple(token.content for token in tokenizer.added_tokens_decoder.values()),
    )


def _ways(tokenizer: PreTrainedTokenizerBase, vocabulary: Vocabulary, hint: str | None) -> list[Found]:
    """What can be told to llama.cpp, the likeliest first."""
    if vocabulary.model == "llama":
        return [way_of(tokenizer, "default", prefix) for prefix in (True, False)]
    content = definition_of(tokenizer)
    steps = parts(content.get("pre_tokenizer"))
    patterns = [str((step.get("pattern") or {}).get("Regex", "")) for step in steps]
    likely = [_LIKELY[pattern] for pattern in patterns if pattern in _LIKELY]
    if "llama-bpe" in likely and not content["model"].get("ignore_merges"):
        likely = ["smaug-bpe"]
    if any(step["type"] == "Digits" for step in steps):
        likely.append("smollm")
    names = list(dict.fromkeys([*([hint] if hint in NAMES else []), *likely, *NAMES]))
    return [way_of(tokenizer, name, None) for name in names]


def _equal(
    tokenizer: PreTrainedTokenizerBase, vocabulary: Vocabulary, way: Found, wanted: Sequence[str]
) -> tuple[int, str]:
    """How many texts in a row get equal tokens, and the first that doesn't."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "vocabulary.gguf"
        _write_vocabulary(file, vocabulary, way)
        try:
            with LlamaCpp(file, room=8) as model:
                for start in range(0, len(wanted), _PART):
                    part = list(wanted[start : start + _PART])
                    own = tokenizer(part, add_special_tokens=False, verbose=False)["input_ids"]
                    found = model.token_ids([way.prepare(text) for text in part])
                    for place, (ours, theirs) in enumerate(zip(own, found, strict=True)):
                        if theirs != ours:
                            return start + place, _difference(part[place], ours, theirs)
        except ModelError as error:
            return 0, " ".join((error.what, *error.details[-1:]))
    return len(wanted), ""


def _difference(text: str, ours: Sequence[int], theirs: Sequence[int]) -> str:
    """Where two tokenizers part, in one line."""
    place = next((n for n, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), len(ours))
    shown = json.dumps(text, ensure_ascii=False)
    shown = shown if len(shown) <= 80 else shown[:79] + "…"
    return (
        f"{shown} is {_some(ours, place)} here and {_some(theirs, place)} in llama.cpp, from token {place} on"
    )


def _some(ids: Sequence[int], place: int) -> str:
    return "[" + " ".join(map(str, ids[place : place + 4])) + (" …]" if len(ids) > place + 4 else "]")


def _write_vocabulary(file: Path, vocabulary: Vocabulary, way: Found) -> None:
    """The smallest file that llama.cpp loads: the vocabulary with a model of one layer, all zeros."""
    width = 32
    writer = GGUFWriter(file, "llama")
    writer.add_name(vocabulary.name("vocabulary"))
    writer.add_block_count(1)
    writer.add_context_length(8)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(width)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    vocabulary.write(writer, way.pre, way.space_prefix)
    square = np.zeros((width, width), dtype=np.float16)
    ones = np.ones(width, dtype=np.float32)
    writer.add_tensor("token_embd.weight", np.zeros((len(vocabulary.tokens), width), dtype=np.float16))
    writer.add_tensor("output_norm.weight", ones)
    for name in ("attn_norm", "ffn_norm"):
        writer.add_tensor(f"blk.0.{name}.weight", ones)
    for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
        writer.add_tensor(f"blk.0.{name}.weight", square)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
