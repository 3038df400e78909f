"""Losses: sums and counts, against values that can be checked by hand."""

from __future__ import annotations

import math

import pytest
import torch

from tunesmith.train.losses import label_loss, label_losses, row_losses


def test_uniform_logits_cost_log_of_the_vocabulary() -> None:
    # With equal logits every token has probability 1/7: each of the 3 labels costs ln 7.
    loss, count = label_loss(torch.zeros(3, 7), torch.tensor([0, 3, 6]))
    assert count == 3
    assert float(loss) == pytest.approx(3 * math.log(7), rel=1e-6)


def test_two_tokens_by_hand() -> None:
    # logits (ln 3, 0): probabilities 3/4 and 1/4; labels 0 and 1 cost ln(4/3) + ln 4.
    logits = torch.tensor([[math.log(3.0), 0.0]] * 2)
    loss, _ = label_loss(logits, torch.tensor([0, 1]))
    assert float(loss) == pytest.approx(math.log(4 / 3) + math.log(4), rel=1e-6)


def test_label_smoothing_by_its_definition() -> None:
    # e = 0.2 over V = 2: target (0.9, 0.1). Cost = 0.9 ln(4/3) + 0.1 ln 4.
    logits = torch.tensor([[math.log(3.0), 0.0]])
    loss, _ = label_loss(logits, torch.tensor([0]), label_smoothing=0.2)
    assert float(loss) == pytest.approx(0.9 * math.log(4 / 3) + 0.1 * math.log(4), rel=1e-6)


def test_half_precision_logits_are_summed_in_fp32() -> None:
    # 5,000 labels of about 9 nats: a bf16 sum would be off by whole units.
    logits = torch.zeros(5000, 8192, dtype=torch.bfloat16)
    loss, count = label_loss(logits, torch.zeros(5000, dtype=torch.long))
    assert loss.dtype == torch.float32
    assert float(loss) / count == pytest.approx(math.log(8192), rel=1e-5)


def test_each_label_token_by_itself_has_no_smoothing() -> None:
    logits = torch.tensor([[math.log(3.0), 0.0]] * 2, requires_grad=True)
    total, each = label_losses(logits, torch.tensor([0, 1]), label_smoothing=0.2)
    assert each.tolist() == pytest.approx([math.log(4 / 3), math.log(4)], rel=1e-6)
    assert total.item() == pytest.approx(math.log(4 / 3) + math.log(4), rel=1e-6)  # (0.9 + 0.1) of each
    assert total.requires_grad
    assert not each.requires_grad


def test_rows_add_up_to_the_whole() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(11, 5, generator=generator)
    targets = torch.randint(0, 5, (11,), generator=generator)
    rows = torch.tensor([0, 0, 0, 2, 2, 2, 2, 2, 3, 3, 3])
    sums, counts = row_losses(logits, targets, rows, 4)
    total, _ = label_loss(logits, targets)
    assert counts.tolist() == [3, 0, 5, 3]
    assert float(sums.sum()) == pytest.approx(float(total), rel=1e-6)
    assert float(sums[0]) == pytest.approx(float(label_loss(logits[:3], targets[:3])[0]), rel=1e-6)
