"""Nested states (of optimizers, of generators) as JSON beside tensors, and back, types and bits unchanged.

    {"state": {0: {"exp_avg": tensor}}, "betas": (0.9, 0.999)}
    -> {"map": {"state": {"ints": {"0": {"map": {"exp_avg": {"tensor": "state.0.exp_avg"}}}}},
                "betas": {"tuple": [0.9, 0.999]}}}

A plain mapping is written as {"map": …}, so that a key of its own can't be taken for one of these words.
Python writes floats so that they are read back to the last bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def flatten(tree: Any) -> tuple[Any, dict[str, Tensor]]:
    """(what JSON takes, the tensors by name). Raises TypeError for values that neither can hold."""
    tensors: dict[str, Tensor] = {}

    def walk(node: Any, name: str) -> Any:
        if isinstance(node, Tensor):
            if name in tensors:
                raise TypeError(f"two tensors are called {name}")
            tensors[name] = node
            return {"tensor": name}
        if isinstance(node, Mapping):
            ints = bool(node) and all(type(key) is int for key in node)
            if not ints and not all(isinstance(key, str) for key in node):
                raise TypeError(f"keys of {name or 'the state'} are neither all text nor all whole numbers")
            inner = {str(key): walk(value, _below(name, key)) for key, value in node.items()}
            return {"ints" if ints else "map": inner}
        if isinstance(node, list | tuple):
            items = [walk(value, _below(name, number)) for number, value in enumerate(node)]
            return {"tuple": items} if isinstance(node, tuple) else items
        if node is None or isinstance(node, bool | int | float | str):
            return node
        raise TypeError(f"{name} is a {type(node).__name__}, which a checkpoint can't hold")

    return walk(tree, ""), tensors


def unflatten(node: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The tree that `flatten` was given. Raises KeyError where a tensor is missing."""
    if isinstance(node, list):
        return [unflatten(value, tensors) for value in node]
    if not isinstance(node, Mapping):
        return node
    ((kind, value),) = node.items()
    if kind == "tensor":
        return tensors[value]
    if kind == "tuple":
        return tuple(unflatten(item, tensors) for item in value)
    inner = {key: unflatten(item, tensors) for key, item in value.items()}
    return {int(key): item for key, item in inner.items()} if kind == "ints" else inner


def _below(name: str, key: object) -> str:
    return f"{name}.{key}" if name else str(key)
