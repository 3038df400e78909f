"""Losses return (sum, count); a step divides once, by the count over all its microbatches and ranks.

Why: with a mean per microbatch, a row in a microbatch with few label tokens weighs more than one among many
(transformers#34191). With sums, 1 x 8 rows and 8 x 1 rows have the same gradient.

Shapes: N label tokens, V vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def label_loss(logits: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> tuple[Tensor, int]:
    """Cross-entropy summed over label tokens, in nats, with the number of them.

    logits [N, V] in any float format (computed in fp32), targets [N] int64. With smoothing e the target
    distribution is (1 - e) on the label plus e / V on every token (Szegedy et al. 2016, section 7).
    """
    return label_losses(logits, targets, label_smoothing)[0], targets.shape[0]


def label_losses(logits: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
    """The sum of `label_loss`, and each label token's own loss [N], not smoothed and without a gradient."""
    log_p = F.log_softmax(logits.float(), -1)
    each = -log_p.gather(1, targets[:, None])[:, 0]
    total = each.sum()
    if label_smoothing:
        total = (1 - label_smoothing) * total - label_smoothing / logits.shape[-1] * log_p.sum()
    return total, each.detach()


def row_losses(logits: Tensor, targets: Tensor, rows: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Summed loss and label count of each of `count` rows; rows [N] is the row of each label token."""
    losses = F.cross_entropy(logits.float(), targets, reduction="none").double()
    sums = torch.zeros(count, dtype=torch.float64, device=losses.device).index_add_(0, rows, losses)
    return sums, torch.bincount(rows, minlength=count)
