"""Tiny models whose rows are multiples of 32, as blocks of numbers want them, and tokenizers of each kind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    AddedToken,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from tests.families import save_tiny, tiny_model, tiny_tokenizer
from tunesmith.export.gguf_pre import find_pre
from tunesmith.export.gguf_tokens import vocabulary_of
from tunesmith.export.gguf_write import Written, embedding_rows, write_gguf
from tunesmith.model.load import end_ids
from tunesmith.model.source import resolve

_GROUPED = {"hidden_size": 96, "intermediate_size": 160, "num_attention_heads": 6, "num_key_value_heads": 2}
_WIDE = {"hidden_size": 96, "intermediate_size": 160, "num_attention_heads": 4, "num_key_value_heads": 2}
DIMENSIONS: dict[str, dict[str, Any]] = {
    "llama": _GROUPED,
    "mistral": _GROUPED,
    "qwen2": _GROUPED,
    # transformers 5.23 reads no head size of a qwen3 from GGUF, and takes that of all real ones.
    "qwen3": {**_WIDE, "head_dim": 128},
    "gemma2": {**_WIDE, "head_dim": 32, "query_pre_attn_scalar": 32},
    "gemma3": {**_WIDE, "head_dim": 32, "query_pre_attn_scalar": 32},
    "phi3": _GROUPED,
}
TEXTS = (
    "The library opens at eight, 图书馆每天早上八点开门。",
    "床前明月光，疑是地上霜。 How do I ask for leave?",
)


def save_gguf_tiny(family: str, folder: Path, **dimensions: Any) -> Path:
    """A tiny model that can be written in every type; returns its folder."""
    dimensions = {**DIMENSIONS[family], **dimensions}
    if family not in ("phi3", "gemma2", "gemma3"):
        return save_tiny(family, folder, **dimensions)
    # As the real ones: transformers and llama.cpp look for <unk>, and a phi3's </s> strips what follows.
    tokenizer = tiny_tokenizer(family)
    tokenizer.add_special_tokens({"unk_token": "<unk>"})
    if family == "phi3":
        strips = AddedToken("</s>", rstrip=True, normalized=False, special=True)
        tokenizer.add_tokens([strips], special_tokens=True)
    model = tiny_model(family, **dimensions)
    model.resize_token_embeddings(len(tokenizer) + 1, mean_resizing=False)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write(folder: Path, file: Path, kind: str = "f32", name: str = "tiny") -> Written:
    """The model of a folder as a GGUF file, as an export writes it."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    vocabulary = vocabulary_of(
        tokenizer, embedding_rows(folder), end_ids(resolve(str(folder))), tokenizer.chat_template
    )
    return write_gguf(folder, file, kind, vocabulary, find_pre(tokenizer, vocabulary), name=name)


def reference(folder: Path) -> tuple[PreTrainedModel, list[list[int]], list[NDArray[np.float32]]]:
    """The model in fp32, token ids of TEXTS, and its logits after each."""
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    ids = [AutoTokenizer.from_pretrained(folder)(text)["input_ids"] for text in TEXTS]
    with torch.no_grad():
        return model, ids, [model(torch.tensor([one])).logits[0].numpy() for one in ids]


def bytes_tokenizer(pre: pre_tokenizers.PreTokenizer, **bpe: Any) -> PreTrainedTokenizerBase:
    """A BPE of bytes that cuts texts as told, trained on words that make wrong cuts visible."""
    backend = Tokenizer(models.BPE(**bpe))
    backend.pre_tokenizer = pre
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(
        _WORDS * 4,
        trainers.BpeTrainer(
            vocab_size=900, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
        ),
    )
    backend.add_special_tokens(["<|end|>"])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>")


def split(pattern: str) -> pre_tokenizers.PreTokenizer:
    """Cuts by a pattern, then bytes, as tokenizer.json mostly has it."""
    cut = pre_tokenizers.Split(Regex(pattern), "isolated")
    return pre_tokenizers.Sequence([cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def pieces_tokenizer(prepend: str) -> PreTrainedTokenizerBase:
    """A BPE with ▁ for spaces and bytes to fall back on; `prepend`: first, always or never."""
    specials = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    # Trained by words, used without cutting: so are SentencePiece's.
    cutting = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    cutting.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    cutting.train_from_iterator(
        _WORDS * 4, trainers.BpeTrainer(vocab_size=900, special_tokens=specials, show_progress=False)
    )
    merges = [tuple(pair) for pair in json.loads(cutting.to_str())["model"]["merges"]]
    whole = Tokenizer(
        models.BPE(cutting.get_vocab(), merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True)
    )
    if prepend == "always":  # as Llama 2 has it: a second space even where there is one
        whole.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        whole.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend, split=False)
    whole.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    whole.add_special_tokens(["<unk>", "<s>", "</s>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=whole, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


_WORDS = [
    "The students' library opens at 8:30, 12345 times 2024 is 25,  1,234,567 and 3.14159; they'll see.",
    "it's IT'S don't DON'T I'll I'LL we're\n\n\nline one\r\n  line two\t\ttabs    four spaces  two.  End",
    "学生请假需要提前三天向辅导员提交申请。2024年10月15日，共1234人。图书馆每天早上八点开门，晚上十点关门。",
    "def f(x):\n    return x ** 2  # 12345\n\n\n    print('hello', x!=3, [1,2,3])\n",
    "Привет мир, Ελληνικά, العربية 123, ไทย, 한국어 한국어. 🚀🚀 !!! ... ??? --- === ___",
]
