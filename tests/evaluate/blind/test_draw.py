"""The draw: every row once, sides balanced, repeats late and swapped, everything by the seed alone."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.evaluate.blind.draw import chosen_rows, laid_out


@given(pairs=st.integers(1, 80), repeats=st.floats(0, 0.5), seed=st.text(max_size=8))
def test_the_layout_is_what_was_promised(pairs: int, repeats: float, seed: str) -> None:
    places = laid_out(pairs, repeats, seed)
    assert places == laid_out(pairs, repeats, seed)
    first = [place for place in places if not place.repeat]
    assert sorted(place.pair for place in first) == list(range(pairs))
    left = Counter(place.left for place in first)
    assert abs(left["a"] - left["b"]) <= 1
    seen: dict[int, int] = {}
    for at, place in enumerate(places):
        if place.repeat:
            assert place.left != places[seen[place.pair]].left
            assert at - seen[place.pair] > pairs / 3 - 1
        else:
            seen[place.pair] = at
    wanted = min(round(pairs * repeats), (pairs + 1) // 2)
    assert len(places) - pairs == wanted


def test_ten_percent_of_fifty_are_five() -> None:
    assert len(laid_out(50, 0.1, "x")) == 55


def test_seeds_give_other_orders_and_sides() -> None:
    layouts = [laid_out(40, 0.1, str(seed)) for seed in range(20)]
    assert len({tuple(layout) for layout in layouts}) == 20
    # On one side of the same pair about as often as on the other: 6 to 34 of 40 seeds, p < 1e-5 beyond.
    lefts = sum(laid_out(9, 0, str(seed))[0].left == "a" for seed in range(40))
    assert 6 <= lefts <= 34


@pytest.mark.parametrize(("rows", "items"), [(10, 4), (10, 10), (3, 50), (1, 1)])
def test_rows_are_drawn_without_repeats_in_the_files_order(rows: int, items: int) -> None:
    numbers = chosen_rows(rows, items, "seed")
    assert numbers == sorted(set(numbers))
    assert len(numbers) == min(rows, items)
    assert set(numbers) <= set(range(rows))
