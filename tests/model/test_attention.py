"""Attention by segments against a dense softmax that is told, pair by pair, which tokens see which."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.families import tiny_model
from tunesmith.model import attention_kernels, segments
from tunesmith.model.attention import attention, can_segment, can_share, segment_attention
from tunesmith.model.families import SEGMENTS

# Two rows on a prefix that hangs on another one, a row beside them, and a row of one token.
DEEP = [(0, 7, -1), (7, 3, 0), (10, 9, 1), (19, 4, 1), (23, 5, 0), (28, 11, -1), (39, 1, -1)]


def tensors(
    tokens: int, heads: int, kv_heads: int, size: int, seed: int = 0, scale: float = 1.5
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [
        (tokens, heads, size),
        (tokens, kv_heads, size),
        (tokens, kv_heads, size),
        (tokens, heads, size),
    ]
    return [torch.randn(shape, generator=generator) * scale for shape in shapes]


def dense(
    q: Tensor, k: Tensor, v: Tensor, tree: list[Any], scale: float, window: int, softcap: float
) -> Tensor:
    """[T, H, D]: the plain formula in fp64."""
    owner, position = [], []
    for i, (_, length, parent) in enumerate(tree):
        begin = 0
        while parent >= 0:
            begin, parent = begin + tree[parent][1], tree[parent][2]
        owner += [i] * length
        position += range(begin, begin + length)

    def sees(row: int, key: int) -> bool:
        at = owner[row]
        while at >= 0 and at != owner[key]:
            at = tree[at][2]
        distance = position[row] - position[key]
        return at >= 0 and distance >= 0 and (not window or distance < window)

    seen = torch.tensor([[sees(row, key) for key in range(len(owner))] for row in range(len(owner))])
    groups = q.shape[1] // k.shape[1]
    q, k, v = q.double(), k.double().repeat_interleave(groups, 1), v.double().repeat_interleave(groups, 1)
    scores = torch.einsum("rhd,khd->hrk", q, k) * scale
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    return torch.einsum("hrk,khd->rhd", scores.masked_fill(~seen, float("-inf")).softmax(-1), v)


def errors(
    tree: list[Any],
    *,
    heads: int = 6,
    kv_heads: int = 2,
    size: int = 10,
    scale: float = 0.3,
    window: int = 0,
    softcap: float = 0.0,
    dtype: torch.dtype = torch.float32,
    spread: float = 1.5,
) -> list[float]:
    """Relative errors of the output and the three gradients."""
    *qkv, dout = (
        x.to(dtype) for x in tensors(sum(n for _, n, _ in tree), heads, kv_heads, size, scale=spread)
    )
    ours, plain = ([x.clone().requires_grad_() for x in qkv] for _ in range(2))
    out, _ = attention(*ours, torch.tensor(tree), scale, window, softcap)
    wanted = dense(*plain, tree, scale, window, softcap)
    assert out.dtype is dtype
    grads = torch.autograd.grad(out, ours, dout)
    wanted_grads = torch.autograd.grad(wanted, plain, dout.double())
    pairs = zip((out.detach(), *grads), (wanted.detach(), *wanted_grads), strict=True)
    # Some gradients are zero: a token that sees but itself has no choice.
    floor = float(dout.double().norm())
    return [float((a.double() - b).norm()) / max(float(b.norm()), floor) for a, b in pairs]


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Bounds that tiny packs exceed: chains, pieces, padded groups."""
    monkeypatch.setattr(segments, "LONGEST_OWN", 4)
    monkeypatch.setattr(segments, "BLOCK_SCORES", 150)
    monkeypatch.setattr(segments, "PADDING_SCORES", 60)
    monkeypatch.setattr(attention_kernels, "FORWARD_ROWS", 3)
    segments._plan.cache_clear()
    yield
    segments._plan.cache_clear()


@pytest.mark.parametrize("window", [0, 1, 4, 9, 40])
@pytest.mark.parametrize("softcap", [0.0, 1.5])
@pytest.mark.parametrize(("heads", "kv_heads"), [(6, 2), (3, 3), (4, 1)])
def test_a_tree_of_segments_equals_the_dense_formula(window, softcap, heads, kv_heads):
    found = errors(DEEP, heads=heads, kv_heads=kv_heads, window=window, softcap=softcap)
    assert max(found) < 2e-6


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("window", [0, 6])
def test_small_blocks_change_nothing(window):
    assert max(errors(DEEP, window=window)) < 2e-6
    assert len(segments.plan(torch.tensor(DEEP), 6, 2).pieces) > 8


@st.composite
def trees(draw: st.DrawFn) -> list[tuple[int, int, int]]:
    made: list[tuple[int, int, int]] = []
    path: list[int] = []
    at = 0
    for _ in range(draw(st.integers(1, 9))):
        depth = draw(st.integers(0, len(path)))
        path = path[:depth]
        length = draw(st.integers(1, 12))
        made.append((at, length, path[-1] if path else -1))
        path.append(len(made) - 1)
        at += length
    return made


@pytest.mark.usefixtures("small_blocks")
@settings(max_examples=40, deadline=None)
@given(trees(), st.sampled_from([0, 5]), st.sampled_from([(6, 2), (3, 3)]))
def test_any_tree_equals_the_dense_formula(tree, window, heads):
    assert max(errors(tree, window=window, heads=heads[0], kv_heads=heads[1])) < 3e-6


def test_a_long_row_is_cut_into_chains_and_its_memory_is_linear():
    assert max(errors([(0, 1100, -1)], heads=2, kv_heads=1, size=8)) < 3e-6
    attention_kernels._local.__dict__.clear()
    q, k, v, dout = tensors(8192, 4, 2, 16)
    attended, lse = attention(q, k, v, torch.tensor([(0, 8192, -1)]), 0.25, 0, 0.0)
    torch.ops.tunesmith.attention_backward(
        dout, q, k, v, attended, lse, torch.tensor([(0, 8192, -1)]), 0.25, 0, 0.0
    )
    held = sum(x.numel() for x in attention_kernels._local.buffers.values())
    assert held < 8192**2 / 8  # all scores of one head would be 8192**2


@pytest.mark.parametrize(("scale", "size"), [(0.25, 16), (0.3, 10)])
def test_bf16_is_as_close_as_its_own_rounding(scale, size):
    # The second line: scores in the hundreds, where rounding them to bf16 would be wrong by 100 %.
    for spread, bound in ((1.0, 0.012), (9.0, 0.04)):
        found = errors(DEEP, scale=scale, size=size, dtype=torch.bfloat16, spread=spread)
        assert max(found) < bound, (spread, found)
    found = errors(DEEP, window=5, softcap=4.0, dtype=torch.bfloat16, spread=1.0)
    assert max(found) < 0.012


def test_a_future_key_with_a_huge_score_overflows_nothing():
    q, k, v, dout = tensors(6, 2, 1, 4)
    k[5] = 500 * q[0, 0]
    q.requires_grad_()
    out, _ = attention(q, k, v, torch.tensor([(0, 6, -1)]), 1.0, 0, 0.0)
    (grad,) = torch.autograd.grad(out, q, dout)
    assert bool(torch.isfinite(grad).all())


@pytest.mark.parametrize(("window", "softcap"), [(0, 0.0), (5, 0.0), (0, 2.0)])
def test_registered_as_torch_asks(window, softcap):
    q, k, v, dout = tensors(40, 6, 2, 10)
    tree = torch.tensor(DEEP)
    q, k, v = (x.requires_grad_() for x in (q, k, v))
    torch.library.opcheck(attention, (q, k, v, tree, 0.3, window, softcap))
    with torch.no_grad():
        out, lse = attention(q, k, v, tree, 0.3, window, softcap)
    plain = (dout, q.detach(), k.detach(), v.detach(), out, lse, tree, 0.3, window, softcap)
    torch.library.opcheck(torch.ops.tunesmith.attention_backward, plain)


def test_compiles_into_one_graph():
    def layer(q: Tensor, k: Tensor, v: Tensor, tree: Tensor) -> Tensor:
        return attention(q * 2, k, v, tree, 0.3, 0, 0.0)[0].sin()

    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
    for tree in (DEEP, DEEP[:4]):
        q, k, v, _ = tensors(sum(n for _, n, _ in tree), 6, 2, 10)
        results = []
        for function in (layer, compiled):
            inputs = [x.clone().requires_grad_() for x in (q, k, v)]
            out = function(*inputs, torch.tensor(tree))
            results.append((out, *torch.autograd.grad(out.sum(), inputs)))
        for one, other in zip(*results, strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    "tree",
    [[(0, 3, -1), (4, 2, -1)], [(0, 3, -1), (3, 2, -1), (5, 1, 0)], [(0, 0, -1)], [(0, 2, 0)]],
    ids=["gap", "closed parent", "empty", "its own parent"],
)
def test_a_tree_laid_out_otherwise_is_refused(tree):
    with pytest.raises(ValueError, match="depth first"):
        segments.tree(tree)


def test_the_model_is_itself_again_afterwards():
    model = tiny_model("llama")
    with segment_attention(model):
        assert model.config._attn_implementation == SEGMENTS
    assert model.config._attn_implementation == "sdpa"
    with segment_attention(model, on=False):
        assert model.config._attn_implementation == "sdpa"


def test_what_is_not_supported_says_why():
    model = tiny_model("llama")
    assert can_segment(model) == (True, "")
    assert can_share(model) == (True, "")
    model.lm_head = torch.nn.Sequential(torch.nn.Dropout(0.1), model.lm_head)
    assert can_segment(model)[0]
    assert "noise" in can_share(model)[1]
    model = tiny_model("gpt2")
    model.config.resid_pdrop = 0.1
    assert "noise" in can_share(model)[1]
    model.config.attn_pdrop = 0.25
    assert "25%" in can_segment(model)[1]
    model = tiny_model("llama")
    model.config.model_type = "mamba"
    assert "mamba" in can_segment(model)[1]
