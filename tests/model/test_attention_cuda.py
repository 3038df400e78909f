"""Attention on a GPU: choice, mask and FlexAttention's forward anywhere, the rest where a GPU is."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from tests.families import tiny_model
from tests.model.test_attention import DEEP, dense, tensors
from tunesmith.model import attention as module
from tunesmith.model import attention_cuda
from tunesmith.model.attention import attention, can_segment, describe
from tunesmith.model.attention_cuda import BLOCK, Machine, block_mask, choose, layout, mask_mod

AMPERE = Machine((8, 0), triton=True)
ROWS = [(0, 7, -1), (7, 30, -1), (37, 1, -1), (38, 9, -1)]
# Several blocks of 128 tokens: a prefix of two, children beyond it, and rows beside.
LONG = [(0, 200, -1), (200, 90, 0), (290, 40, 1), (330, 130, 1), (460, 25, 0), (485, 150, -1), (635, 2, -1)]


@pytest.mark.parametrize(
    ("machine", "dtype", "size", "more", "kind", "word"),
    [
        (AMPERE, torch.bfloat16, 64, {}, "flash", ""),
        (AMPERE, torch.float16, 256, {}, "flash", ""),
        (AMPERE, torch.bfloat16, 64, {"shared": True}, "flex", "shared beginnings"),
        (AMPERE, torch.bfloat16, 64, {"softcap": 50.0}, "flex", "capped"),
        (AMPERE, torch.float32, 64, {}, "flex", "float32"),
        (AMPERE, torch.bfloat16, 60, {}, "flex", "head size of 60"),
        (AMPERE, torch.bfloat16, 512, {}, "flex", "head size of 512"),
        (Machine((7, 5), triton=True), torch.float16, 64, {}, "flex", "Ampere"),
        (Machine((9, 0), triton=True, nvidia=False), torch.bfloat16, 64, {}, "flex", "NVIDIA"),
        (Machine((8, 0), triton=False), torch.bfloat16, 64, {}, "flash", ""),
        (Machine((8, 0), triton=False), torch.bfloat16, 64, {"shared": True}, "dense", "Triton"),
        (Machine((8, 0), triton=False), torch.bfloat16, 64, {"softcap": 50.0}, None, "Triton"),
    ],
)
def test_the_choice_and_its_reason(machine, dtype, size, more, kind, word):
    chosen, why = choose(machine, dtype, size, **more)
    assert chosen == kind
    assert word in why
    if kind:
        line = attention_cuda.describe(kind, why)
        assert word in line
        assert "\n" not in line


def test_at_load_a_model_on_a_gpu_is_told_its_kernel(monkeypatch):
    monkeypatch.setattr(attention_cuda, "machine", lambda _index: AMPERE)
    gpu = SimpleNamespace(device=torch.device("cuda", 0))
    lines = {}
    for family, sharing in (("llama", False), ("llama", True), ("gemma2", False), ("gpt2", False)):
        model = tiny_model(family)
        assert describe(model, torch.bfloat16, sharing=sharing) is None  # on the CPU there is but one
        monkeypatch.setattr(model, "parameters", lambda: iter([gpu]))
        assert can_segment(model) == (True, "")
        lines[family, sharing] = describe(model, torch.bfloat16, sharing=sharing)
    assert "flash kernels" not in lines["llama", False]  # its heads have 12 numbers
    assert "head size of 12" in lines["llama", False]
    assert "shared beginnings" in lines["llama", True]
    assert "capped" in lines["gemma2", False]
    monkeypatch.setattr(attention_cuda, "machine", lambda _index: Machine((8, 0), triton=False))
    model = tiny_model("gemma2")
    monkeypatch.setattr(model, "parameters", lambda: iter([gpu]))
    assert can_segment(model) == (False, "capped scores need Triton here")


@pytest.mark.parametrize("tree", [DEEP, ROWS, LONG], ids=["deep", "rows", "long"])
@pytest.mark.parametrize("window", [0, 1, 4, 70])
def test_the_mask_is_the_tree(tree, window):
    pack = layout(torch.tensor(tree))
    tokens = len(pack.until)
    at = torch.arange(tokens)
    seen = mask_mod(pack, window)(0, 0, at[:, None], at)
    # The dense formula sees through a softmax of equal scores: weight is where it sees.
    zero, one = torch.zeros(tokens, 1, 1), torch.eye(tokens)[:, None]
    assert torch.equal(seen, dense(zero, zero, one, tree, 1.0, window, 0.0)[:, 0] > 0)
    # No block that holds anything seen is left out, and most others are.
    wanted = torch.nn.functional.pad(seen, (0, -tokens % BLOCK, 0, -tokens % BLOCK))
    blocks = len(wanted) // BLOCK
    wanted = wanted.view(blocks, BLOCK, blocks, BLOCK).any(3).any(1)
    found = block_mask(pack, window).to_dense()[0, 0].bool()
    assert not bool((wanted & ~found).any())
    if tree is LONG:
        assert int(found.sum()) < (15 if window != 1 else 10) <= blocks**2


@pytest.mark.parametrize("window", [0, 5, 70])
@pytest.mark.parametrize("softcap", [0.0, 1.5])
@pytest.mark.parametrize(("tree", "heads", "kv_heads"), [(DEEP, 6, 2), (LONG, 2, 1), (ROWS, 3, 3)])
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_equals_ours_forward(tree, heads, kv_heads, softcap, window):
    q, k, v, _ = tensors(sum(n for _, n, _ in tree), heads, kv_heads, 16)
    pack = layout(torch.tensor(tree))
    ours, _ = attention(q, k, v, torch.tensor(tree), 0.3, window, softcap)
    with torch.no_grad():
        found = attention_cuda.flex(q, k, v, pack, 0.3, window, softcap)
        torch.testing.assert_close(found, ours, atol=1e-5, rtol=1e-5)
        if not softcap:
            found = attention_cuda.dense(q, k, v, pack, 0.3, window)
            torch.testing.assert_close(found, ours, atol=1e-5, rtol=1e-5)


def test_flash_is_given_the_rows(monkeypatch):
    given = {}

    def varlen(q, _k, _v, cu_q, cu_k, longest_q, longest_k, **options):
        given.update(options, cu=cu_q.tolist(), same=cu_q is cu_k, longest=(longest_q, longest_k))
        return q

    monkeypatch.setattr(attention_cuda, "varlen_attn", varlen)
    q, k, v, _ = tensors(47, 6, 2, 16)
    attention_cuda.flash(q, k, v, layout(torch.tensor(ROWS)), 0.3, 5)
    assert given == {
        "cu": [0, 7, 37, 38, 47], "same": True, "longest": (30, 30),
        "scale": 0.3, "window_size": (4, 0), "enable_gqa": True,
    }  # fmt: skip
    attention_cuda.flash(q, k, v, layout(torch.tensor(ROWS)), 0.3, 0)
    assert given["window_size"] == (-1, 0)  # causal, by its documentation


def test_a_layout_is_made_once_for_all_layers_of_a_pass(monkeypatch):
    made = []
    own = attention_cuda.layout
    monkeypatch.setattr(attention_cuda, "layout", lambda s: made.append(1) or own(s))
    one, other = (torch.tensor(tree)[None, None] for tree in (ROWS, DEEP))
    first = attention_cuda._kept_layout(one)
    assert attention_cuda._kept_layout(one) is first
    assert len(made) == 1
    assert attention_cuda._kept_layout(other).shared
    assert not attention_cuda._kept_layout(one).shared


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mixed_formats_under_autocast_become_one(dtype):
    # Trained fp32 norms leave queries and keys in fp32 beside bf16 values.
    q, k, v, _ = (x.transpose(0, 1)[None] for x in tensors(40, 6, 2, 10))
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
        out, _ = module._attend(None, q, k, v.to(dtype), torch.tensor(DEEP)[None, None])
    assert out.dtype is dtype


@pytest.mark.gpu
@pytest.mark.parametrize("tree", [ROWS, DEEP, LONG], ids=["rows", "deep", "long"])
@pytest.mark.parametrize(
    ("dtype", "window", "softcap"),
    [
        (torch.bfloat16, 0, 0.0),
        (torch.bfloat16, 5, 0.0),
        (torch.float32, 0, 0.0),
        (torch.float32, 70, 0.0),
        (torch.float32, 5, 1.5),
    ],
)
def test_on_a_gpu_output_and_gradients_equal_the_cpus(tree, dtype, window, softcap):
    *qkv, dout = (x.to(dtype) for x in tensors(sum(n for _, n, _ in tree), 6, 2, 64, scale=1.0))
    results = []
    for device in ("cpu", "cuda"):
        inputs = [x.to(device).requires_grad_() for x in qkv]
        if device == "cpu":
            out, _ = attention(*inputs, torch.tensor(tree), 0.125, window, softcap)
        else:
            segments = torch.tensor(tree, device=device)[None, None]
            out = attention_cuda.attend(*inputs, segments, 0.125, window, softcap)
        results.append([out, *torch.autograd.grad(out, inputs, dout.to(device))])
    for one, other in zip(*results, strict=True):
        gap = (one.double() - other.cpu().double()).norm() / one.double().norm()
        assert float(gap) < (0.02 if dtype is torch.bfloat16 else 1e-3)
