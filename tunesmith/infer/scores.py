"""Log-probabilities of generated tokens, as files and the API give them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tunesmith.records import TokenScore

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DIGITS = 5

# Byte-level BPE writes each byte as a character: printable ones as themselves, the others from U+0100 on
# (bytes_to_unicode of GPT-2's encoder.py).
_PRINTED = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
_OTHERS = [byte for byte in range(0x100) if byte not in _PRINTED]
_BYTES = {chr(byte): byte for byte in _PRINTED} | {chr(0x100 + n): byte for n, byte in enumerate(_OTHERS)}


def logprobs(tokenizer: PreTrainedTokenizerBase, scores: Sequence[TokenScore]) -> list[dict[str, Any]]:
    """For each token its text, bytes, id and natural logarithm of probability, and those of the likeliest.

    The text of a token that is only a part of a character holds U+FFFD; `bytes` joined give whole texts.
    """
    pieces = _Pieces(tokenizer)
    return [
        {
            **pieces.described(score.token, score.logprob),
            "top_logprobs": [pieces.described(token, value) for token, value in score.likeliest],
        }
        for score in scores
    ]


class _Pieces:
    """What the tokens of a tokenizer write."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._added = tokenizer.added_tokens_decoder
        decoder = getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None)
        kind = decoder.__getstate__() if decoder is not None else b""
        self._byte_level, self._byte_fallback = b'"ByteLevel"' in kind, b'"ByteFallback"' in kind

    def described(self, token: int, value: float) -> dict[str, Any]:
        text = self._tokenizer.decode([token], clean_up_tokenization_spaces=False)
        logprob = round(value, DIGITS)
        return {"token": text, "bytes": self._bytes(token, text), "id": token, "logprob": logprob}

    def _bytes(self, token: int, text: str) -> list[int] | None:
        """A token's bytes, as OpenAI's `bytes`; None where a part of a character can't be had of its text."""
        piece = self._tokenizer.convert_ids_to_tokens(token)
        if token not in self._added and isinstance(piece, str):
            if self._byte_level and all(character in _BYTES for character in piece):
                return [_BYTES[character] for character in piece]
            if self._byte_fallback:
                byte = re.fullmatch(r"<0x([0-9A-F]{2})>", piece)
                return [int(byte[1], 16)] if byte else list(piece.replace("▁", " ").encode())
        return None if "\ufffd" in text else list(text.encode())
