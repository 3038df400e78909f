"""A tokenizer of transformers as the lists and keys of a GGUF file.

Two kinds are known, both BPE as tokenizer.json holds it: of bytes (GPT-2's letters for them), which llama.cpp
calls gpt2, and of text with ▁ for spaces and bytes to fall back on (SentencePiece's), which it calls llama.

What a file can say is less than what a tokenizer.json can. So a vocabulary alone proves nothing; see
gguf_pre.py for how the rest is found out.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from gguf import GGUFWriter, TokenType
from transformers import PreTrainedTokenizerBase

from tunesmith.errors import ModelError

SPACE = "▁"  # of SentencePiece
_NEVER_MERGED = -1e6  # the score of a piece that no merge makes
_ADDED = -1000.0


@dataclass(frozen=True)
class Vocabulary:
    """What a GGUF file says of a tokenizer; `model` is llama.cpp's name of its kind."""

    model: str
    tokens: list[str]
    types: list[int]
    merges: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    ids: dict[str, int] = field(default_factory=dict)  # bos, eos, eot, unk, pad
    adds_bos: bool = False
    adds_eos: bool = False
    template: str | None = None
    padded: int = 0
    strips: bool = False  # special tokens swallow the white space after them

    def name(self, name: str) -> str:
        """The model's name as the file has it: llama.cpp strips white space after tokens of a phi3 only."""
        known = "phi3" in name.lower() or "phi-3" in name.lower()
        return f"phi3 {name}" if self.strips and not known else name

    def write(self, writer: GGUFWriter, pre: str, space_prefix: bool | None) -> None:
        """Write the keys; `pre` names the pre-tokenizer, `space_prefix` the space before a text."""
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(pre)
        writer.add_token_list(self.tokens)
        if self.scores:
            writer.add_token_scores(self.scores)
        writer.add_token_types(self.types)
        if self.merges:
            writer.add_token_merges(self.merges)
        if space_prefix is not None:
            writer.add_add_space_prefix(space_prefix)
        for role, token in self.ids.items():
            getattr(writer, f"add_{role}_token_id")(token)
        writer.add_add_bos_token(self.adds_bos)
        writer.add_add_eos_token(self.adds_eos)
        if self.template is not None:
            writer.add_chat_template(self.template)


def vocabulary_of(
    tokenizer: PreTrainedTokenizerBase, rows: int, ends: set[int], template: str | None
) -> Vocabulary:
    """The vocabulary for a model with `rows` embeddings whose answers end with any of `ends`.

    `template` is the text of the chat template that the model was tuned with.

    Raises ModelError for a tokenizer of another kind, or one with more tokens than the model.
    """
    content = definition_of(tokenizer)
    model = content["model"]
    byte_level = "ByteLevel" in _kinds(content.get("pre_tokenizer"))
    if model["type"] != "BPE" or not (byte_level or model.get("byte_fallback")):
        raise ModelError(
            f"This tokenizer ({type(tokenizer).__name__}, {model['type']}) can't be written as GGUF.",
            fix="BPE tokenizers can: of bytes, or with ▁ for spaces and <0x00>… to fall back on. "
            "Use --to merged for this model.",
        )
    names = {number: token for token, number in tokenizer.get_vocab().items()}
    if names and max(names) >= rows:
        raise ModelError(
            f"The tokenizer has tokens up to number {max(names)}, but the model has only {rows} embeddings.",
            fix="Use the tokenizer that belongs to the model, or resize the embeddings before training.",
        )
    tokens = [names.get(number, f"[PAD{number}]") for number in range(rows)]
    types = [int(TokenType.NORMAL if number in names else TokenType.UNUSED) for number in range(rows)]
    if not byte_level:
        for number, token in enumerate(tokens):
            if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
                types[number] = int(TokenType.BYTE)
    unknown = tokenizer.unk_token_id
    for number, token in tokenizer.added_tokens_decoder.items():
        control = token.special or _looks_special(token.content)
        types[number] = int(TokenType.CONTROL if control else TokenType.USER_DEFINED)
        # llama.cpp looks for these in the text as it was written.
        tokens[number] = token.content if control or byte_level else token.content.replace(SPACE, " ")
    pairs = [tuple(m) if isinstance(m, list) else tuple(m.split(" ", 1)) for m in model["merges"]]
    if not byte_level and unknown is not None:
        types[unknown] = int(TokenType.UNKNOWN)
    before, after = _added_around(tokenizer)
    return Vocabulary(
        model="gpt2" if byte_level else "llama",
        tokens=tokens,
        types=types,
        merges=[" ".join(pair) for pair in pairs] if byte_level else [],
        scores=[] if byte_level else _scores(tokens, types, ["".join(pair) for pair in pairs]),
        ids=_special_ids(tokenizer, ends),
        adds_bos=before,
        adds_eos=after,
        template=template or None,
        padded=rows - len(names),
        # llama.cpp looks for these four in any phi3, and refuses a file that lacks one.
        strips=any(t.special and t.rstrip for t in tokenizer.added_tokens_decoder.values())
        and {"</s>", "<unk>", "<s>", "<|endoftext|>"} <= set(names.values()),
    )


def definition_of(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The content of its tokenizer.json. Raises ModelError for a tokenizer written in Python."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ModelError(
            f"{type(tokenizer).__name__} isn't a tokenizer of the tokenizers library.",
            fix="Use a model folder with a tokenizer.json.",
        )
    content: dict[str, Any] = json.loads(backend.to_str())
    return content


def parts(definition: dict[str, Any] | None) -> list[dict[str, Any]]:
    """A normalizer or pre-tokenizer as the list of its steps."""
    if definition is None:
        return []
    inner = definition.get("pretokenizers") or definition.get("normalizers")
    return [step for part in inner for step in parts(part)] if inner else [definition]


def _kinds(definition: dict[str, Any] | None) -> set[str]:
    return {part["type"] for part in parts(definition)}


def _looks_special(token: str) -> bool:
    # As llama.cpp's converter has it: some models forget to say so of their own control tokens.
    return (token.startswith("<|") and token.endswith("|>")) or token in ("<pad>", "<mask>")


def _scores(tokens: list[str], types: list[int], merged: list[str]) -> list[float]:
    """What SentencePiece would have as scores: the earlier a merge, the higher that of its result."""
    ranks: dict[str, int] = {}
    for rank, piece in enumerate(merged):
        ranks.setdefault(piece, rank)
    scores = []
    for token, kind in zip(tokens, types, strict=True):
        if kind in (TokenType.CONTROL, TokenType.USER_DEFINED):
            scores.append(_ADDED)
        elif token in ranks:
            scores.append(-1.0 - ranks[token])
        else:
            scores.append(0.0 if len(token) == 1 or kind == TokenType.BYTE else _NEVER_MERGED)
    return scores


def _special_ids(tokenizer: PreTrainedTokenizerBase, ends: set[int]) -> dict[str, int]:
    roles = ("bos", "eos", "unk", "pad")
    found = {role: getattr(tokenizer, f"{role}_token_id", None) for role in roles}
    ids = {role: int(token) for role, token in found.items() if token is not None}
    # A second token that ends answers, such as <|eot_id|> beside <|end_of_text|>; a third is llama.cpp's EOM.
    others = sorted(ends - {ids.get("eos", -1)})
    if "eos" not in ids and others:
        ids["eos"] = others.pop(0)
    ids.update(zip(("eot", "eom"), others, strict=False))
    return ids


def _added_around(tokenizer: PreTrainedTokenizerBase) -> tuple[bool, bool]:
    """Whether BOS and EOS are put around a text: what the tokenizer does, not what its flags say."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a")["input_ids"]
    extra = len(full) - len(bare)
    start = next((n for n in range(extra + 1) if full[n : n + len(bare)] == bare), 0)
    before, after = full[:start], full[start + len(bare) :]
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    if before not in ([], [bos]) or after not in ([], [eos]):
        raise ModelError(
            f"The tokenizer puts {tokenizer.decode(before)!r} before and {tokenizer.decode(after)!r} after a "
            "text; a GGUF file can only ask for one BOS and one EOS.",
            fix="Use --to merged for this model.",
        )
    return bool(before), bool(after)
