"""What a child does before it ends."""

from collections.abc import Callable

AT_END: list[Callable[[], object]] = []
