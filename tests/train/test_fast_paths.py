"""Whatever is slower than it could be is said, with the reason, in one line; and nothing else is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.families import tiny_model
from tests.model.tuning import prepare
from tests.train.test_equality import rows
from tests.train.test_loop import training
from tests.train.test_run import make_job
from tunesmith.train import fast_paths

OFF = (
    "PEFT's own forward",
    "all labels",
    "Not tuned",
    "by length",
    "balancing",
    "torch's own",
    "for each row",
)


def lines(folder: Path, model: torch.nn.Module, **changes: Any) -> str:
    job = make_job(folder, **changes)
    *_, said = fast_paths.choose(job, model, True)
    said += fast_paths.others_off(job, model)
    assert not any("\n" in line for line in said)
    return "\n".join(said)


def test_with_everything_on_nothing_is_said(tmp_path: Path) -> None:
    assert lines(tmp_path, prepare(tiny_model("qwen2"))) == ""


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"dropout": 0.1}, ("PEFT's own forward", "dropout", "for each row")),
        ({"type": "dora"}, ("PEFT's own forward", "DoRA")),
        ({"rslora": True}, ()),
    ],
)
def test_adapters(tmp_path: Path, values: dict[str, Any], words: tuple[str, ...]) -> None:
    said = lines(tmp_path, prepare(tiny_model("qwen2"), **values), adapter=values)
    assert all(word in said for word in words)
    assert sum(word in said for word in OFF) == sum(word in words for word in OFF)


def test_heads_attention_and_full_tuning(tmp_path: Path) -> None:
    model = tiny_model("qwen2")
    model.config.attention_dropout = 0.1
    said = lines(tmp_path, prepare(model))
    assert "torch's own, at the cost of a pack's square" in said
    assert "10%" in said
    model = tiny_model("qwen2")
    model.config.model_type = "new"
    assert "the head of the new family isn't proved" in "\n".join(
        fast_paths.others_off(make_job(tmp_path), model)
    )
    full = {"type": "full"}
    model = prepare(tiny_model("qwen3_moe"), **full)
    assert lines(tmp_path, model, adapter=full, train={"learning_rate": 1e-4}) == ""


def test_mixtures(tmp_path: Path) -> None:
    model = prepare(tiny_model("qwen3_moe"))
    said = lines(tmp_path, model)
    assert "Not tuned: the experts and their router" in said
    assert "balancing" not in said
    model.config.output_router_logits = True
    assert "balancing term" in lines(tmp_path, model)


def test_packs_whose_square_costs_more_than_padding_are_given_up(tmp_path: Path) -> None:
    model = tiny_model("llama")  # hidden size 48: attention weighs much
    long = rows(400, [120] * 8)
    job = training(tmp_path / "a", model, train=long, segments=False)
    settled, [line] = fast_paths.settle(job, "")
    assert not settled.packing
    assert "padding costs less" in line
    # The same steps, the same rows in each.
    for one, other in zip(job.plans.first, settled.plans.first, strict=True):
        assert sorted(sum(one.microbatches, ())) == sorted(sum(other.microbatches, ()))
    # Short rows of many lengths: padding would cost more.
    short = rows(400, [3, 40, 5, 60, 9, 80, 12, 2])
    model.config.hidden_size = 4096
    job = training(tmp_path / "b", model, train=short, batch_size=8, segments=False)
    assert fast_paths.settle(job, "")[0].packing
    # With our attention there is no square.
    job = training(tmp_path / "c", tiny_model("llama"), train=long, segments=True)
    assert fast_paths.settle(job, "") == (job, [])
