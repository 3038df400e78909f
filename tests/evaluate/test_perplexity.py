"""The loss of an evaluation is the loss of training, row by row."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import mean, stdev

import pytest
import torch

from tests.evaluate.conftest import questions
from tests.families import tiny_model, tiny_tokenizer
from tunesmith.data.template import Renderer
from tunesmith.device import pick
from tunesmith.errors import DataError, GenerateError
from tunesmith.evaluate.perplexity import RowLoss, answer_loss, intervals, total
from tunesmith.infer.local import LocalModel, load
from tunesmith.records import Conversation, Message
from tunesmith.rundir import open_run


@pytest.fixture(scope="module")
def tuned(place: Path) -> LocalModel:
    return load(str(place / "runs/lora"), dtype="fp32")


def by_hand(model: LocalModel, row: Conversation) -> tuple[float, int]:
    """One row alone, without packing: full text, full logits, every token after the prompt up to the end."""
    answered = Conversation((*row.messages, Message("assistant", row.references[0])), row.origin)
    messages = [m.as_dict() for m in answered.messages]
    full = model.renderer.tokenizer.apply_chat_template(messages, return_dict=False)
    prompt = model.renderer.prompt_ids(row)
    assert full[: len(prompt)] == prompt
    end = max(i for i, token in enumerate(full) if token in model.renderer.stop_ids)
    with torch.no_grad():
        logits = model.model(input_ids=torch.tensor([full])).logits[0].double().log_softmax(-1)
    picked = [-logits[t - 1, full[t]].item() for t in range(len(prompt), end + 1)]
    return sum(picked), len(picked)


def test_rows_are_what_a_plain_forward_pass_gives(tuned: LocalModel) -> None:
    rows = questions(7)
    for row, loss in zip(rows, answer_loss(tuned, rows), strict=True):
        nll, tokens = by_hand(tuned, row)
        assert loss.tokens == tokens
        assert loss.nll_sum == pytest.approx(nll, rel=1e-5)
        assert loss.bytes == len(row.references[0].encode())


def test_losses_that_are_no_numbers_are_an_error() -> None:
    model, renderer = tiny_model("llama"), Renderer(tiny_tokenizer("llama"))
    model.get_output_embeddings().weight.data[3] = float("nan")
    broken = LocalModel("broken", model, renderer, pick("fp32"))
    with pytest.raises(GenerateError, match="aren't numbers"):
        answer_loss(broken, questions(2))


def test_the_base_is_the_same_load_with_the_adapter_off(tuned: LocalModel, place: Path) -> None:
    rows = questions(5)
    alone = answer_loss(load(str(place / "qwen2"), dtype="fp32"), rows)
    with tuned.base():
        base = answer_loss(tuned, rows)
    assert [row.nll_sum for row in base] == pytest.approx([row.nll_sum for row in alone], rel=1e-6)
    after = answer_loss(tuned, rows)
    assert sum(row.nll_sum for row in after) < sum(row.nll_sum for row in base)


def test_it_is_the_trainings_own_validation_loss(tuned: LocalModel, place: Path) -> None:
    losses = [line["valid_loss"] for line in open_run(place / "runs/lora").metrics() if "valid_loss" in line]
    with tuned.base():
        assert total(answer_loss(tuned, questions(8))).loss == pytest.approx(losses[0], rel=1e-5)
    assert total(answer_loss(tuned, questions(8))).loss == pytest.approx(min(losses[1:]), rel=1e-5)


def test_perplexity_is_of_the_sum_and_never_a_mean_of_perplexities() -> None:
    rows = [RowLoss(1.0, 1, 3), RowLoss(30.0, 10, 30)]
    result = total(rows)
    assert result.loss == pytest.approx(31 / 11)
    assert result.perplexity == pytest.approx(math.exp(31 / 11))  # 16.7; the mean of both would be 11.4
    assert result.bits_per_byte == pytest.approx(31 / math.log(2) / 33)
    assert result.tokens == 11


def test_intervals_of_losses() -> None:
    rows = [RowLoss(nll, 10, 30) for nll in (10.0, 12.0, 15.0, 20.0, 11.0, 13.0, 18.0, 14.0)]
    found = intervals(rows)
    losses = [row.nll_sum / 10 for row in rows]
    # With answers of one length the ratio of sums is a mean: about 1.96 standard errors to each side.
    half = 1.96 * stdev(losses) / math.sqrt(len(losses))
    assert found["loss"].value == pytest.approx(mean(losses))
    assert found["loss"].high - found["loss"].low == pytest.approx(2 * half, rel=0.15)
    assert found["perplexity"].high == pytest.approx(math.exp(found["loss"].high))
    assert found["bits_per_byte"].low == pytest.approx(found["loss"].low * 10 / math.log(2) / 30)
    assert intervals(rows[:1]) == {}
    assert intervals([RowLoss(0.1, 1, 1), RowLoss(9.0, 1, 1)])["loss"].low == 0.0


def test_order_and_company_of_rows_change_nothing(tuned: LocalModel) -> None:
    rows = questions(6)
    together = answer_loss(tuned, rows)
    backwards = answer_loss(tuned, rows[::-1])[::-1]
    alone = [answer_loss(tuned, [row])[0] for row in rows]
    for other in (backwards, alone):
        assert [row.nll_sum for row in other] == pytest.approx([row.nll_sum for row in together], rel=1e-5)


def test_a_row_longer_than_the_model_reads_is_named(tuned: LocalModel) -> None:
    long = Conversation(questions(1)[0].messages, questions(3)[2].origin, references=("長" * 5000,))
    with pytest.raises(DataError, match=r"valid\.jsonl:3") as refused:
        answer_loss(tuned, [*questions(2), long])
    assert f"1 row is longer than {tuned.name} reads: {tuned.context} tokens" in refused.value.what
    assert "data." not in refused.value.fix, "no setting of a training helps here"
