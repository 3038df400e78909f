"""What happens to an example that is longer than `max_length`: the policies of `data.too_long`.

error           nothing is cut; encode lists the rows
drop            the example goes
truncate_left   [bos] … [header][reply, end]   the oldest context goes, the last reply stays whole; an earlier
                                               one is a label only with its whole header
truncate_right  [bos][context] …               the end goes, end token included
split           [0..L) [L..2L) …               consecutive windows
"""

from __future__ import annotations

from dataclasses import dataclass

from tunesmith.data.config import TooLong
from tunesmith.data.labels import Encoded


@dataclass(frozen=True, slots=True)
class Window:
    """The part of an example that is kept: positions in its `input_ids`, and the mask at those positions."""

    positions: list[int]
    label_mask: list[bool]


def fit(encoded: Encoded, max_length: int, too_long: TooLong) -> tuple[list[Window], str]:
    """The windows of an example that are trained on, and why there are fewer than expected ("" if not).

    Windows without a label are left out. `too_long` error is the caller's business: here it drops.
    """
    size = len(encoded.input_ids)
    if size <= max_length:
        windows = [Window(list(range(size)), encoded.label_mask)]
    elif too_long in ("error", "drop"):
        return [], f"longer than {max_length} tokens"
    elif too_long == "truncate_left":
        windows = _truncate_left(encoded, max_length)
        if not windows:
            return [], f"its last reply alone is longer than {max_length} tokens"
    elif too_long == "truncate_right":
        windows = [_window(encoded, range(max_length))]
    else:
        starts = range(0, size, max_length)
        windows = [_window(encoded, range(start, min(start + max_length, size))) for start in starts]
    kept = [window for window in windows if any(window.label_mask)]
    if len(kept) == len(windows):
        return kept, ""
    if not kept:
        return [], "no label is left" if size > max_length else "it has no label"
    return kept, "windows without a label left out"


def _truncate_left(encoded: Encoded, max_length: int) -> list[Window]:
    bos = [0] if encoded.bos else []
    last = encoded.replies[-1] if encoded.replies else None
    # White space after the last end token teaches nothing, so it goes first.
    stop = last.stop if last else len(encoded.input_ids)
    cut = max(len(bos), stop - (max_length - len(bos)))
    if last and cut > last.header:
        return []
    window = _window(encoded, [*bos, *range(cut, stop)])
    if cut > len(bos):
        # The token after the gap would be predicted from nothing; so would a reply that is cut in two, or
        # without the whole header that asks for it.
        headless = (r.stop for r in encoded.replies[:-1] if min(r.header + 1, r.start) <= cut < r.stop)
        begun = next(headless, cut + 1)
        for place, position in enumerate(window.positions):
            if cut <= position < begun:
                window.label_mask[place] = False
    return [window]


def _window(encoded: Encoded, positions: range | list[int]) -> Window:
    mask = [encoded.label_mask[p] for p in positions]
    mask[0] = False
    return Window(list(positions), mask)
