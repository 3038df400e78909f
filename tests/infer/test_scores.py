"""Log-probabilities in a file of answers: a figure for every token, and what was likely beside it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from tests.infer.test_generate import asked, setup
from tunesmith.device import pick
from tunesmith.infer.config import Sampling
from tunesmith.infer.local import LocalModel
from tunesmith.infer.predictions import write_predictions
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
