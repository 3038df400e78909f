"""How far two models' next-token distributions are apart, exactly, over a whole vocabulary.

    KL(p || q) = sum_v p_v (log p_v - log q_v)      in nats, per position; 0 where both are equal

In double precision and a few positions at a time: a vocabulary of 150,000 in doubles is 1.2 MB a position.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Logits = NDArray[np.float32]
_ROWS = 32


@dataclass(frozen=True)
class Distance:
    """KL divergence in nats, mean and largest, and the share of positions with the same most likely token."""

    positions: int
    mean_kl: float
    max_kl: float
    top1: float

    def to_json(self) -> dict[str, Any]:
        """By name; a KL that isn't finite as None."""
        finite = {
            k: (v if np.isfinite(v) else None)
            for k, v in (("mean_kl", self.mean_kl), ("max_kl", self.max_kl))
        }
        return {"positions": self.positions, **finite, "top1": self.top1}


def distance(reference: Sequence[Logits], other: Sequence[Logits]) -> Distance:
    """How far `other` is from `reference`, both a list of [T, V]; a wider head's further columns don't count.

    NaN in either gives an infinite divergence, which no budget allows.
    """
    kls, same = [], []
    for ours, theirs in zip(reference, other, strict=True):
        if len(ours) != len(theirs) or theirs.shape[1] < ours.shape[1]:
            raise ValueError(f"logits {theirs.shape} where {ours.shape} were wanted")
        for p, q in _pieces(ours, theirs):
            kls.append(np.nan_to_num(_kl(p, q), nan=np.inf))
            same.append(p.argmax(axis=1) == q.argmax(axis=1))
    all_kl, all_same = np.concatenate(kls), np.concatenate(same)
    return Distance(len(all_kl), float(all_kl.mean()), float(all_kl.max()), float(all_same.mean()))


def _pieces(ours: Logits, theirs: Logits) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    for start in range(0, len(ours), _ROWS):
        rows = slice(start, start + _ROWS)
        yield ours[rows].astype(np.float64), theirs[rows, : ours.shape[1]].astype(np.float64)


def _kl(p: NDArray[np.float64], q: NDArray[np.float64]) -> NDArray[np.float64]:
    with np.errstate(invalid="ignore", over="ignore"):
        log_p, log_q = _log_softmax(p), _log_softmax(q)
        weight = np.exp(log_p)
        # 0 · (−inf − …) is 0: what the reference rules out costs nothing.
        terms = np.where(weight > 0, weight * (log_p - log_q), 0.0)
        return np.maximum(terms.sum(axis=1), 0.0) if not np.isnan(weight).any() else np.full(len(p), np.inf)


def _log_softmax(x: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = x - x.max(axis=1, keepdims=True)
    logs: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return logs
