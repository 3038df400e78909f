"""Plans: every row once, within the budgets, the same for the same arguments and for nothing else."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.data.pack import PADDING_TOKENS, Step, padded_tokens, plan_epoch, plan_eval

LENGTHS = st.lists(st.integers(1, 60), max_size=80)
BUDGETS = st.one_of(
    st.fixed_dictionaries({"tokens_per_step": st.integers(1, 300), "rows_per_step": st.none()}),
    st.fixed_dictionaries({"tokens_per_step": st.none(), "rows_per_step": st.integers(1, 20)}),
)
FORWARDS = st.fixed_dictionaries(
    {
        "microbatch_tokens": st.integers(1, 120),
        "microbatch_rows": st.none() | st.integers(1, 8),
        "packing": st.booleans(),
    }
)


def flat(steps: list[Step]) -> list[int]:
    return [row for step in steps for rows in step.microbatches for row in rows]


def plan(lengths: list[int], **changes: Any) -> list[Step]:
    settings = {
        "epoch": 0, "seed": 1, "tokens_per_step": 100, "rows_per_step": None, "microbatch_tokens": 64,
        "microbatch_rows": None, "packing": True,
    }  # fmt: skip
    return plan_epoch(lengths, **(settings | changes))  # type: ignore[arg-type]


@settings(max_examples=300, deadline=None)
@given(LENGTHS, BUDGETS, FORWARDS, st.integers(0, 5), st.integers(0, 99))
def test_every_row_once_and_every_budget_kept(
    lengths: list[int], budget: dict[str, Any], forward: dict[str, Any], epoch: int, seed: int
) -> None:
    steps = plan_epoch(lengths, epoch=epoch, seed=seed, **budget, **forward)
    assert sorted(flat(steps)) == list(range(len(lengths)))
    for number, step in enumerate(steps):
        rows = [row for microbatch in step.microbatches for row in microbatch]
        assert rows
        assert step.rows == len(rows)
        if budget["rows_per_step"]:
            assert len(rows) == budget["rows_per_step"] or number == len(steps) - 1
        else:
            assert len(rows) == 1 or sum(lengths[r] for r in rows) <= budget["tokens_per_step"]
        for microbatch in step.microbatches:
            check_forward([lengths[row] for row in microbatch], **forward)


def check_forward(
    sizes: list[int], microbatch_tokens: int, microbatch_rows: int | None, packing: bool
) -> None:
    assert microbatch_rows is None or len(sizes) <= microbatch_rows
    if packing:
        assert len(sizes) == 1 or sum(sizes) <= microbatch_tokens
    else:
        assert max(sizes) * len(sizes) - sum(sizes) <= PADDING_TOKENS
        assert microbatch_rows or len(sizes) == 1 or max(sizes) * len(sizes) <= microbatch_tokens


@settings(max_examples=100, deadline=None)
@given(LENGTHS, BUDGETS, FORWARDS)
def test_the_same_arguments_give_the_same_plan(
    lengths: list[int], budget: dict[str, Any], forward: dict[str, Any]
) -> None:
    one, two = (plan_epoch(list(lengths), epoch=2, seed=3, **budget, **forward) for _ in range(2))
    assert one == two


@settings(max_examples=100, deadline=None)
@given(LENGTHS, BUDGETS, FORWARDS, FORWARDS)
def test_the_rows_of_a_step_do_not_depend_on_its_forward_passes(
    lengths: list[int], budget: dict[str, Any], one: dict[str, Any], other: dict[str, Any]
) -> None:
    steps = [plan_epoch(lengths, epoch=1, seed=3, **budget, **forward) for forward in (one, other)]
    assert [sorted(flat([step])) for step in steps[0]] == [sorted(flat([step])) for step in steps[1]]


def test_another_epoch_or_seed_is_another_order() -> None:
    lengths = [10] * 50
    orders = [flat(plan(lengths, epoch=e, seed=s, microbatch_tokens=10)) for e, s in ((0, 1), (1, 1), (0, 2))]
    steps = [
        [frozenset(flat([s])) for s in plan(lengths, epoch=e, seed=s_)] for e, s_ in ((0, 1), (1, 1), (0, 2))
    ]
    assert len({tuple(order) for order in orders}) == 3
    assert steps[0] != steps[1]
    assert steps[0] != steps[2]


def test_the_order_is_the_one_this_version_has_always_had() -> None:
    """Golden: a text seed shuffles the same on every machine and Python; a resumed run needs that."""
    assert flat(plan([1] * 8, tokens_per_step=1, seed=42)) == [2, 0, 7, 4, 1, 5, 6, 3]


def test_packs_are_full() -> None:
    lengths = [30, 30, 30, 34, 34, 34, 64]
    [step] = plan(lengths, tokens_per_step=1000)
    assert sorted(sum(lengths[r] for r in rows) for rows in step.microbatches) == [64, 64, 64, 64]
    assert plan_eval(lengths, microbatch_tokens=64, packing=True)[0] == (6,)


def test_packs_of_a_step_are_of_like_size() -> None:
    """The largest of them is what memory goes by, and as many are needed either way."""
    draw = random.Random(4)
    lengths = [draw.randint(100, 600) for _ in range(160)]
    for step in plan(lengths, tokens_per_step=None, rows_per_step=16, microbatch_tokens=4000):
        sizes = sorted(sum(lengths[row] for row in rows) for rows in step.microbatches)
        assert len(sizes) == -(-sum(sizes) // 4000)
        assert sizes[-1] - sizes[0] < 120
    # Where they only fit unlevelled: 6 + 4, 5 + 3 + 2 against 6 + 3 + 2, 5 + 4.
    assert plan_eval([6, 5, 4, 3, 2], microbatch_tokens=10, packing=True) == [(0, 2), (1, 3, 4)]


def test_rows_with_a_common_beginning_are_cut_into_like_parts() -> None:
    rows = [[7] * 77 + [8 + i] * 71 for i in range(45)]
    passes = plan_eval([148] * 45, microbatch_tokens=3072, packing=True, shared=rows)
    assert sorted(map(len, passes)) == [22, 23], "not 42 and 3"
    # Long rows lie together: halves of six rows, but 10 + 6 x 90 tokens don't fit.
    rows = [[7] * 10 + [8 + i] * (90 if i < 6 else 20) for i in range(12)]
    passes = plan_eval([len(row) for row in rows], microbatch_tokens=400, packing=True, shared=rows)
    assert sorted(row for found in passes for row in found) == list(range(12))
    assert all(10 + sum(len(rows[row]) - 10 for row in found) <= 400 for found in passes)


def test_without_packing_similar_lengths_lie_together() -> None:
    lengths = [5, 50, 6, 51, 5, 49]
    [step] = plan(lengths, tokens_per_step=1000, packing=False, microbatch_rows=3)
    assert [sorted(lengths[r] for r in rows) for rows in step.microbatches] == [[49, 50, 51], [5, 5, 6]]


def test_without_packing_little_is_padded_and_the_rows_of_a_step_stay_random() -> None:
    # Lengths like a handbook's answers: 60 to 400 tokens, and 8 or 64 rows a step.
    lengths = [60 + (row * 7919) % 341 for row in range(1024)]
    for rows, most in ((8, 0.12), (64, 0.08)):
        steps = plan(lengths, packing=False, tokens_per_step=None, rows_per_step=rows, microbatch_rows=rows)
        share = 1 - sum(lengths) / padded_tokens(steps, lengths)
        assert share < most
        # As rows came, each step in one pass, as usual trainers do it: a third is padding.
        whole = [Step((tuple(flat([step])),)) for step in steps]
        assert 1 - sum(lengths) / padded_tokens(whole, lengths) > 0.25
        # No step of long rows alone, none of short ones: its mean is that of its rows' order.
        means = [sum(lengths[row] for row in flat([step])) / rows for step in steps]
        assert max(means) - min(means) < 341 * (0.85 if rows == 8 else 0.35)
        assert any(a < b for a, b in pairwise(means))
        assert any(a > b for a, b in pairwise(means))


def test_a_row_longer_than_the_budgets_stands_alone() -> None:
    for packing in (True, False):
        steps = plan([500, 3, 4], packing=packing)
        assert any(step.microbatches == ((0,),) for step in steps)
        assert (0,) in plan_eval([500, 3, 4], microbatch_tokens=64, packing=packing)
