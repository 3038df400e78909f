"""Attention in C++: as close to the fp32 result as bf16 allows, for any tree, heads and strides."""

from __future__ import annotations

import ctypes
import random
import sys

import pytest
import torch
from torch import Tensor

from tests.model.test_attention import DEEP, tensors
from tunesmith.model import attention_kernels, attention_native
from tunesmith.model.attention import attention
from tunesmith.model.segments import plan
from tunesmith.train import compiling

pytestmark = pytest.mark.skipif(
    not attention_native.supported() or compiling.missing() is not None,
    reason="needs Linux, a C++ compiler and a processor with products in bf16",
)
COMPILER = "g++"
# Rounding to bf16 is off by 2^-9 at most; what is left of it in a sum of many is about 2^-8.
TOLERANCE = 6e-3


@pytest.fixture(scope="module")
def library() -> ctypes.CDLL:
    return attention_native.build(COMPILER)


def random_tree(seed: int) -> list[tuple[int, int, int]]:
    draw = random.Random(seed)
    found: list[tuple[int, int, int]] = []
    path: list[int] = []
    at = 0
    for index in range(draw.randint(1, 12)):
        path = path[: draw.randint(0, len(path))]
        length = draw.choice([1, 2, draw.randint(1, 30), 31, 32, 33, 63, 64, 65, draw.randint(60, 200)])
        found.append((at, length, path[-1] if path else -1))
        at += length
        path.append(index)
    return found


TREES = {
    "deep": DEEP,
    "one token": [(0, 1, -1)],
    "a panel": [(0, 32, -1)],
    "two panels": [(0, 64, -1)],
    "a panel and a token": [(0, 33, -1)],
    "a panel seen by all of the next": [(0, 16, -1), (16, 48, 0), (64, 40, 0)],
    "a panel seen by all of it but one": [(0, 16, -1), (16, 47, 0), (63, 40, 0)],
    "rows": [(0, 200, -1), (200, 131, -1), (331, 3, -1)],
    "prefix": [(0, 77, -1), *((77 + 71 * i, 71, 0) for i in range(9))],
    **{f"drawn {seed}": random_tree(seed) for seed in range(12)},
}


def errors(given: list[Tensor], tree: list[tuple[int, int, int]], library: ctypes.CDLL | None) -> list[float]:
    """Relative errors of output, lse and the three gradients, against fp32."""
    *qkv, dout = given
    scale = qkv[0].shape[2] ** -0.5
    segments = torch.tensor(tree)
    blocks = plan(segments, qkv[0].shape[1], qkv[1].shape[1])
    exact = [x.float() for x in qkv]
    out, lse = attention_kernels.forward(*exact, blocks, scale)
    wanted = [out, lse, *attention_kernels.backward(dout.float(), *exact, out, lse, blocks, scale)]
    leaves = [x.detach().requires_grad_() for x in qkv]
    if library is not None and qkv[0].shape[2] % 32 and not library.attention_fits(qkv[0].shape[2]):
        with attention_native.using(library):
            assert not attention_native.fits(leaves[0]), "it would end the process"
        pytest.skip("such heads need torch's own products of panels, which this processor hasn't got")
    with attention_native.using(library):
        assert attention_native.fits(leaves[0]) == (library is not None)
        found_out, found_lse = attention(*leaves, segments, scale, 0, 0.0)
        found = [found_out.detach(), found_lse, *torch.autograd.grad(found_out, leaves, dout)]
    # Gradients of q and k are zero where a token sees but itself: measured against dout.
    floor = float(dout.float().norm()) * 0.1
    return [
        float((a.float() - b).norm()) / max(float(b.norm()), floor if i > 1 else 1e-6)
        for i, (a, b) in enumerate(zip(found, wanted, strict=True))
    ]


@pytest.mark.parametrize("tree", TREES.values(), ids=TREES)
def test_trees(library: ctypes.CDLL, tree: list[tuple[int, int, int]]) -> None:
    given = [x.bfloat16() for x in tensors(sum(n for _, n, _ in tree), 6, 2, 32)]
    assert max(errors(given, tree, library)) < TOLERANCE


@pytest.mark.parametrize("tree", [DEEP, TREES["rows"]], ids=["deep", "rows"])
@pytest.mark.parametrize(("heads", "kv_heads", "size"), [(9, 3, 64), (2, 2, 128), (4, 1, 16), (3, 3, 80)])
def test_as_close_as_bf16_allows(
    library: ctypes.CDLL, tree: list[tuple[int, int, int]], heads: int, kv_heads: int, size: int
) -> None:
    given = [x.bfloat16() for x in tensors(sum(n for _, n, _ in tree), heads, kv_heads, size)]
    found = errors(given, tree, library)
    assert max(found) < TOLERANCE, found
    assert max(found) <= 1.05 * max(errors(given, tree, None)), "less exact than the kernel in Python"


@pytest.mark.parametrize("threads", [1, 2, 16])
def test_tasks_of_one_head_or_of_all_that_share_a_key(
    library: ctypes.CDLL, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = TREES["rows"]
    given = [x.bfloat16() for x in tensors(334, 6, 2, 32)]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        monkeypatch.setattr(attention_native, "TASKS_PER_THREAD", 0)
        together = errors(given, tree, library)
        monkeypatch.setattr(attention_native, "TASKS_PER_THREAD", 1000)
        apart = errors(given, tree, library)
    finally:
        torch.set_num_threads(before)
    assert max(together) < TOLERANCE
    assert max(apart) < TOLERANCE


def test_heads_first_and_strides_of_a_projection_are_taken(library: ctypes.CDLL) -> None:
    wide = torch.randn(90, 5, 32, generator=torch.Generator().manual_seed(1)).bfloat16()
    q, k, v = wide[:, :3], wide[:, 3:4], wide[:, 4:]
    dout = torch.randn(3, 90, 32, generator=torch.Generator().manual_seed(2)).bfloat16().transpose(0, 1)
    assert max(errors([q, k, v, dout], [(0, 50, -1), (50, 40, 0)], library)) < TOLERANCE


def test_a_row_is_not_touched_by_the_others(library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_native, "TASKS_PER_THREAD", 0)  # sums over heads in one order
    q, k, v, dout = (x.bfloat16() for x in tensors(331, 6, 2, 32))
    both, one = torch.tensor(TREES["rows"][:2]), torch.tensor([(0, 131, -1)])
    alone = [x[200:331].clone() for x in (q, k, v, dout)]
    for x in (k, v):
        x[:200] = float("nan")  # whoever looks at them is caught
    with attention_native.using(library):
        out, lse = attention(q, k, v, both, 0.2, 0, 0.0)
        wanted, norm = attention(*alone[:3], one, 0.2, 0, 0.0)
        grads = attention_native.backward(dout, q, k, v, out, lse, both, 0.2)
        by_itself = attention_native.backward(alone[3], *alone[:3], wanted, norm, one, 0.2)
    assert torch.equal(out[200:331], wanted)
    assert torch.equal(lse[200:331], norm)
    assert all(torch.equal(a[200:331], b) for a, b in zip(grads, by_itself, strict=True))


def test_it_repeats_bit_by_bit(library: ctypes.CDLL) -> None:
    given = [x.bfloat16() for x in tensors(sum(n for _, n, _ in TREES["prefix"]), 6, 2, 32)]
    runs = []
    with attention_native.using(library):
        for _ in range(3):
            leaves = [x.detach().requires_grad_() for x in given[:3]]
            out, _ = attention(*leaves, torch.tensor(TREES["prefix"]), 0.2, 0, 0.0)
            runs.append([out.detach(), *torch.autograd.grad(out, leaves, given[3])])
    assert all(torch.equal(a, b) for run in runs[1:] for a, b in zip(run, runs[0], strict=True))


def test_what_it_does_not_compute_is_left_to_others(library: ctypes.CDLL) -> None:
    with attention_native.using(library):
        assert attention_native.fits(torch.zeros(2, 1, 64, dtype=torch.bfloat16))
        assert not attention_native.fits(torch.zeros(2, 1, 64))
        assert not attention_native.fits(torch.zeros(2, 1, 24, dtype=torch.bfloat16))
        assert not attention_native.fits(torch.zeros(2, 1, 512, dtype=torch.bfloat16))
    assert not attention_native.fits(torch.zeros(2, 1, 64, dtype=torch.bfloat16))


def test_loading_it_leaves_subnormal_numbers() -> None:
    """-ffast-math would flush them to zero in all of the process, from then on."""
    attention_native.build(COMPILER)
    assert sys.float_info.min / 2 > 0
    assert torch.full((64,), 1e-40).mul(2).min() > 0
