"""Batches: labels never cross rows, padding is never one, and the pad token's id doesn't matter."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.data.batch import collate
from tunesmith.data.encode import Example
from tunesmith.records import Origin

ORIGIN = Origin("a.jsonl", 1, 0)


def example(ids: list[int], mask: list[bool] | None = None) -> Example:
    return Example(ids, mask if mask is not None else [False] + [True] * (len(ids) - 1), ORIGIN, 0)


ROWS = st.lists(
    st.lists(st.tuples(st.integers(0, 9), st.booleans()), min_size=1, max_size=12), min_size=1, max_size=6
)


@settings(max_examples=200, deadline=None)
@given(ROWS, st.booleans(), st.integers(0, 9))
def test_keep_and_targets_are_each_rows_own_next_tokens(
    rows: list[list[tuple[int, bool]]], packing: bool, pad_id: int
) -> None:
    examples = [example([i for i, _ in row], [label for _, label in row]) for row in rows]
    batch = collate(examples, packing=packing, pad_id=pad_id)
    width = batch.input_ids.shape[1]
    flat = batch.input_ids.flatten()
    wanted, start = [], 0
    for number, row in enumerate(rows):
        start = start if packing else number * width
        # Whatever the mask says: a row's first token is predicted by nothing.
        wanted += [(start + t - 1, row[t][0]) for t in range(1, len(row)) if row[t][1]]
        assert flat[start : start + len(row)].tolist() == [i for i, _ in row]
        assert batch.position_ids.flatten()[start : start + len(row)].tolist() == list(range(len(row)))
        start += len(row)
    assert list(zip(batch.keep.tolist(), batch.targets.tolist(), strict=True)) == wanted
    assert batch.label_tokens == len(wanted) == len(batch.keep)
    assert batch.tokens == sum(map(len, rows))
    assert batch.rows == len(rows)
    assert batch.cu_seqlens.tolist()[1:] == torch.tensor([len(r) for r in rows]).cumsum(0).tolist()
    assert torch.equal(flat[batch.keep + 1], batch.targets)
    if packing:
        assert batch.attention_mask is None
        assert batch.input_ids.shape == (1, batch.tokens)
    else:
        assert batch.attention_mask is not None
        assert batch.attention_mask.sum(1).tolist() == [len(row) for row in rows]


def test_pad_equal_to_end_token_stays_a_label() -> None:
    end = 2
    batch = collate([example([5, 6, end]), example([7, end])], packing=False, pad_id=end)
    assert batch.targets.tolist() == [6, end, end]
    assert batch.keep.tolist() == [0, 1, 3]
    assert batch.attention_mask is not None
    assert batch.attention_mask.tolist() == [[1, 1, 1], [1, 1, 0]]


@pytest.mark.parametrize("packing", [True, False])
def test_the_pad_id_is_irrelevant(packing: bool) -> None:
    examples = [example([5, 6, 2]), example([7])]
    one, two = (collate(examples, packing=packing, pad_id=pad) for pad in (0, 2))
    assert torch.equal(one.keep, two.keep)
    assert torch.equal(one.targets, two.targets)
    real = torch.ones_like(one.input_ids) if one.attention_mask is None else one.attention_mask
    assert torch.equal(one.input_ids * real, two.input_ids * real)


def test_types_and_moving() -> None:
    batch = collate([example([1, 2, 3])], packing=True, pad_id=0).to("meta")
    assert batch.input_ids.device.type == batch.targets.device.type == "meta"
    assert batch.attention_mask is None
    assert {t.dtype for t in (batch.input_ids, batch.position_ids, batch.keep, batch.targets)} == {
        torch.int64
    }
    assert batch.cu_seqlens.dtype == torch.int32
    assert (batch.tokens, batch.label_tokens, batch.rows) == (3, 2, 1)
