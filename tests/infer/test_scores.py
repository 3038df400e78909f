"""Log-probabilities in a file of answers: a figure for every token, and what was likely beside it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from tests.infer.test_generate import asked, setup
from tunesmith.device import pick
from tunesmith.infer.config import Sampling
from tunesmith.infer.local import LocalModel
from tunesmith.infer.predictions import write_predictions
from tunesmith.infer.scores import logprobs
from tunesmith.records import TokenScore
from tunesmith.settings import build


def test_the_output_has_log_probabilities_where_they_were_asked_for(tmp_path: Path) -> None:
    inner, renderer = setup("qwen2")
    settings = {"max_new_tokens": 5, "logprobs": 2, "temperature": 1.0, "seed": 1, "num_return_sequences": 2}
    model = LocalModel("tiny", inner, renderer, pick("fp32"), sampling=build(Sampling, settings))
    write_predictions(model, asked(["Hi", "白日"]), tmp_path / "a.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text(encoding="utf-8").splitlines()]
    for line, conversation in zip(lines, asked(["Hi", "白日"]), strict=True):
        assert line["logprobs"] == line["predictions"][0]["logprobs"]
        for answer in line["predictions"]:
            found = answer["logprobs"]
            assert len(found) == answer["tokens"]
            prompt = renderer.prompt_ids(conversation)
            whole = torch.tensor([[*prompt, *(one["id"] for one in found)]])
            with torch.no_grad():
                wanted = torch.log_softmax(inner(whole).logits[0, len(prompt) - 1 : -1].float(), dim=-1)
            for one, row in zip(found, wanted, strict=True):
                assert one["logprob"] == pytest.approx(float(row[one["id"]]), abs=1e-4)
                assert [t["id"] for t in one["top_logprobs"]] == row.topk(2).indices.tolist()
                assert one["token"] == renderer.tokenizer.decode([one["id"]])
                assert math.exp(one["logprob"]) <= 1
    plain = LocalModel("tiny", inner, renderer, pick("fp32"), sampling=build(Sampling, {"max_new_tokens": 2}))
    write_predictions(plain, asked(["Hi"]), tmp_path / "b.jsonl")
    assert "logprobs" not in json.loads((tmp_path / "b.jsonl").read_text(encoding="utf-8"))


def scored(ids: list[int]) -> list[TokenScore]:
    return [TokenScore(token, -1.0, ((token, -1.0),)) for token in ids]


def test_the_bytes_of_the_tokens_are_those_of_the_text() -> None:
    tokenizer = setup("qwen2")[1].tokenizer
    text = "白日依山 hi\n😀<|im_end|>"
    found = logprobs(tokenizer, scored(tokenizer.encode(text, add_special_tokens=False)))
    assert bytes(byte for one in found for byte in one["bytes"]).decode() == text
    assert any("\ufffd" in one["token"] for one in found), "characters are cut over tokens"
    assert all(one["top_logprobs"][0]["bytes"] == one["bytes"] for one in found)


def test_bytes_of_a_tokenizer_that_falls_back_on_them() -> None:
    # As of Llama 2: "▁" is a space, what isn't in the vocabulary is bytes. 白 is e7 99 bd.
    names = ["<unk>", "▁hi", "日", "<0xE7>", "<0x99>", "<0xBD>"]
    inner = Tokenizer(models.BPE({name: n for n, name in enumerate(names)}, [], byte_fallback=True))
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    inner.decoder = decoders.Sequence(parts)
    found = logprobs(PreTrainedTokenizerFast(tokenizer_object=inner), scored([1, 2, 3, 4, 5]))
    assert bytes(byte for one in found for byte in one["bytes"]).decode() == " hi日白"
    assert found[2]["bytes"] == [0xE7]
    assert found[2]["token"] == "\ufffd"
    # Of a decoder of another kind whole texts are known.
    inner.decoder = decoders.WordPiece()
    (whole,) = logprobs(PreTrainedTokenizerFast(tokenizer_object=inner), scored([2]))
    assert whole["bytes"] == list("日".encode())
