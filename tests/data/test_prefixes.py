"""Shared beginnings: expanding the segments gives back every row, its positions and its labels."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.test_batch import example
from tunesmith.data import pack
from tunesmith.data.batch import collate
from tunesmith.data.pack import computed_tokens, plan_epoch, plan_eval
from tunesmith.data.prefixes import MIN_SHARED, Order, families, share, sort_rows, unique_tokens


@st.composite
def related_rows(draw: st.DrawFn) -> list[list[int]]:
    """Rows that grow from each other's beginnings, with few different tokens, some of them equal."""
    rows = [draw(st.lists(st.integers(0, 2), min_size=1, max_size=30))]
    for _ in range(draw(st.integers(0, 9))):
        parent = draw(st.sampled_from(rows))
        begin = parent[: draw(st.integers(0, len(parent)))]
        own = draw(st.lists(st.integers(0, 2), min_size=0 if begin else 1, max_size=20))
        rows.append(begin + own)
    return rows


@settings(max_examples=300, deadline=None)
@given(related_rows())
def test_each_chain_of_segments_is_its_row(rows: list[list[int]]) -> None:
    order = sort_rows(rows)
    segments, last = share(order, [len(row) for row in rows])
    users: Counter[int] = Counter()
    for row, segment in zip(order.rows, last, strict=True):
        chain: list[int] = []
        depth = len(rows[row])
        while segment >= 0:
            piece = segments[segment]
            assert piece.end == depth  # positions: each begins where its parent ends
            chain = rows[piece.row][piece.begin : piece.end] + chain
            depth = piece.begin
            users[segment] += 1
            segment = piece.parent
        assert depth == 0
        assert chain == rows[row]
    for number, piece in enumerate(segments):
        assert piece.parent < number
        assert piece.end > piece.begin
        assert users[number] > 0
        # Only what pays: with more than one user, and long enough.
        assert users[number] == 1 or piece.end - piece.begin >= MIN_SHARED
    assert unique_tokens(order, [len(row) for row in rows]) <= sum(map(len, rows))


@settings(max_examples=200, deadline=None)
@given(related_rows(), st.data())
def test_a_shared_batch_has_every_row_s_labels(rows: list[list[int]], data: st.DataObject) -> None:
    masks = [data.draw(st.lists(st.booleans(), min_size=len(row), max_size=len(row))) for row in rows]
    examples = [example(row, mask) for row, mask in zip(rows, masks, strict=True)]
    shared, plain = (collate(examples, packing=True, pad_id=0, sharing=sharing) for sharing in (True, False))
    # Labels in shared tokens count for every row, in the order of the rows.
    assert shared.targets.tolist() == plain.targets.tolist()
    assert shared.position_ids[0, shared.keep].tolist() == plain.position_ids[0, plain.keep].tolist()
    assert (shared.tokens, shared.label_tokens, shared.rows) == (plain.tokens, plain.label_tokens, plain.rows)
    assert shared.unique_tokens == shared.input_ids.shape[1] <= plain.unique_tokens == plain.tokens
    # What a token can see: walking up from it gives the beginning of its row.
    tree, ids = shared.segments.tolist(), shared.input_ids[0].tolist()
    labels = iter(shared.keep.tolist())
    for row, mask in zip(rows, masks, strict=True):
        for t in range(1, len(row)):
            if mask[t]:
                assert seen(next(labels), tree, ids) == row[:t]


def seen(place: int, tree: list[list[int]], ids: list[int]) -> list[int]:
    at = next(i for i, (start, length, _) in enumerate(tree) if start <= place < start + length)
    found = ids[tree[at][0] : place + 1]
    while (at := tree[at][2]) >= 0:
        start, length, _ = tree[at]
        found = ids[start : start + length] + found
    return found


def test_three_levels_and_an_equal_row() -> None:
    a, b, c = list(range(10)), list(range(20, 30)), list(range(40, 50))
    rows = [a + b + [1], a + c, a + b + [2, 3], a, [9, 9], a + b + [2, 3]]
    batch = collate([example(row) for row in rows], packing=True, pad_id=0, sharing=True)
    assert batch.segments.tolist() == [
        [0, 10, -1], [10, 10, 0], [20, 1, 1], [21, 2, 1], [23, 2, 1], [25, 10, 0], [35, 2, -1],
    ]  # fmt: skip
    assert batch.unique_tokens == 37
    assert batch.tokens == sum(map(len, rows))


def test_a_short_common_beginning_is_left_alone() -> None:
    rows = [[1] * (MIN_SHARED - 1) + [2], [1] * (MIN_SHARED - 1) + [3]]
    batch = collate([example(row) for row in rows], packing=True, pad_id=0, sharing=True)
    assert batch.segments[:, 2].tolist() == [-1, -1]
    assert [order.rows for order in families(sort_rows(rows))] == [[0], [1]]


@settings(max_examples=100, deadline=None)
@given(related_rows(), st.integers(5, 60), st.integers(0, 9))
def test_plans_keep_their_budget_in_tokens_that_are_computed(
    rows: list[list[int]], budget: int, seed: int
) -> None:
    lengths = [len(row) for row in rows]
    plans = [
        plan_epoch(
            lengths, epoch=0, seed=seed, tokens_per_step=90, rows_per_step=None, microbatch_tokens=budget,
            microbatch_rows=None, packing=True, shared=shared,
        )
        for shared in (None, rows)
    ]  # fmt: skip
    # Sharing changes no step, only how it is laid out.
    steps = [[sorted(row for pack in step.microbatches for row in pack) for step in plan] for plan in plans]
    assert steps[0] == steps[1]
    packs = [pack for step in plans[1] for pack in step.microbatches]
    sizes = [unique_tokens(sort_rows(rows, pack), lengths) for pack in packs]
    assert all(size <= budget or len(pack) == 1 for size, pack in zip(sizes, packs, strict=True))
    assert computed_tokens(plans[1], rows) == sum(sizes)
    evaluated = plan_eval(lengths, microbatch_tokens=budget, packing=True, shared=rows)
    assert sorted(row for pack in evaluated for row in pack) == list(range(len(rows)))


def test_rows_of_one_family_meet_in_one_pack() -> None:
    families_of = [[[*range(10 * f, 10 * f + 10), i, i] for i in range(4)] for f in range(3)]
    rows = [family[i] for i in range(4) for family in families_of]
    lengths = [len(row) for row in rows]
    assert sum(lengths) == 144
    [step] = plan_epoch(
        lengths, epoch=0, seed=1, tokens_per_step=200, rows_per_step=None, microbatch_tokens=20,
        microbatch_rows=None, packing=True, shared=rows,
    )  # fmt: skip
    assert computed_tokens([step], rows) == 3 * (10 + 4 * 2)


def test_planning_goes_by_the_rows_not_by_their_square(monkeypatch: pytest.MonkeyPatch) -> None:
    # Validation: all rows are one family. Rows that were looked at, for each row: the same for any number.
    prefix, looked = list(range(60)), 0

    def counted(order: Order, lengths: Sequence[int]) -> int:
        nonlocal looked
        looked += len(order.rows)
        return unique_tokens(order, lengths)

    monkeypatch.setattr(pack, "unique_tokens", counted)
    shares = []
    for count in (400, 1600):
        looked = 0
        rows = [[*prefix, 1000 + i, *range(30)] for i in range(count)]
        plan = plan_eval([len(row) for row in rows], microbatch_tokens=512, packing=True, shared=rows)
        assert len(plan) == math.ceil(count / 14)  # 60 + 14 x 31 = 494 tokens
        shares.append(looked / count)
    assert shares[1] == pytest.approx(shares[0], rel=0.05)
    assert shares[1] < 10
