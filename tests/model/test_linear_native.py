"""LoRA's layer in C++: nearer to the exact result than torch's own products, for any shape and layout."""

from __future__ import annotations

import ctypes

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tunesmith.model import fused_lora, linear_native, quantize
from tunesmith.train import compiling

pytestmark = pytest.mark.skipif(
    not linear_native.supported() or compiling.missing() is not None,
    reason="needs Linux, a C++ compiler and a processor with products in bf16",
)
COMPILER = "g++"
SCALE = 2.0
SHAPES = {  # tokens, inputs, outputs, rank
    "wide": (320, 576, 1536, 8),
    "deep": (320, 1536, 576, 8),
    "narrow": (256, 576, 192, 8),
    "rows left over": (333, 64, 96, 8),
    "fewer rows than a tile has": (5, 64, 32, 4),
    "one row": (1, 64, 32, 8),
    "rank 1": (100, 64, 32, 1),
    "rank of two panels": (200, 96, 64, 40),
    "rank of several steps": (130, 64, 128, 96),
    "several blocks of rows": (3001, 608, 32, 16),
    "k in two chunks, the second short": (64, 640, 64, 17),
}


@pytest.fixture(scope="module")
def library() -> ctypes.CDLL:
    return linear_native.build(COMPILER)


def given(tokens: int, inputs: int, outputs: int, rank: int) -> list[Tensor]:
    """x, weight, bias in bf16, a and b in fp32, and a gradient of the result."""
    draw = torch.Generator().manual_seed(tokens + inputs)
    x, weight, bias, a, b, dy = (
        torch.randn(shape, generator=draw) * size
        for shape, size in (
            ((tokens, inputs), 1.0), ((outputs, inputs), inputs**-0.5), ((outputs,), 1.0),
            ((rank, inputs), inputs**-0.5), ((outputs, rank), 0.2), ((tokens, outputs), 1.0),
        )
    )  # fmt: skip
    return [x.bfloat16(), weight.bfloat16(), bias.bfloat16(), a, b, dy.bfloat16()]


def exact(x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, dy: Tensor) -> list[Tensor]:
    """y and the gradients of x, a, b in fp64."""
    x, weight, a, b, dy = (t.double() for t in (x, weight, a, b, dy))
    h, dh = SCALE * x @ a.t(), SCALE * dy @ b
    y = x @ weight.t() + h @ b.t() + (0.0 if bias is None else bias.double())
    return [y, dy @ weight + dh @ a, dh.t() @ x, dy.t() @ h]


def computed(
    layer: object, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, dy: Tensor
) -> list[Tensor]:
    leaves = [x.detach().requires_grad_(), a.clone().requires_grad_(), b.clone().requires_grad_()]
    y = layer(leaves[0], weight, bias, *leaves[1:], SCALE)  # type: ignore[operator]
    return [y.detach(), *torch.autograd.grad(y, leaves, dy)]


def errors(found: list[Tensor], wanted: list[Tensor]) -> list[float]:
    return [float((a.double() - b).norm() / b.norm()) for a, b in zip(found, wanted, strict=True)]


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_results_are_nearer_to_the_exact_ones_than_torchs(
    shape: tuple[int, int, int, int], library: ctypes.CDLL
) -> None:
    tensors = given(*shape)
    wanted = exact(*tensors)
    with linear_native.using(library):
        assert linear_native.fits(tensors[0], tensors[1])
        ours = errors(computed(linear_native.lora_linear, *tensors), wanted)
    theirs = errors(computed(fused_lora.lora_linear, *tensors), wanted)
    assert max(ours) < 4e-3
    # Where two or three roundings are one; a few numbers may fall the other way.
    assert sum(ours) < sum(theirs) * (1.0 if shape[0] > 30 else 1.3)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_any_number_of_threads_gives_the_same_rows(threads: int, library: ctypes.CDLL) -> None:
    tensors = given(1000, 96, 64, 8)
    before = torch.get_num_threads()
    with linear_native.using(library):
        one = computed(linear_native.lora_linear, *tensors)
        torch.set_num_threads(threads)
        try:
            found = [computed(linear_native.lora_linear, *tensors) for _ in range(3)]
        finally:
            torch.set_num_threads(before)
    for again in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], again, strict=True))
    assert torch.equal(found[0][0], one[0])
    assert torch.equal(found[0][1], one[1])
    for a, b in zip(found[0][2:], one[2:], strict=True):  # sums over rows, cut elsewhere
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_layouts(library: ctypes.CDLL) -> None:
    """A weight whose transpose stands in rows (Conv1D), rows with gaps, no bias."""
    x, weight, _, a, b, dy = given(70, 64, 96, 8)
    plain = [x, weight, None, a, b, dy]
    other = [
        F.pad(x, (32, 32))[:, 32:-32], weight.t().contiguous().t(), None, a.t().contiguous().t(), b,
        dy.t().contiguous().t(),
    ]  # fmt: skip
    with linear_native.using(library):
        found = computed(linear_native.lora_linear, *other)
        same = computed(linear_native.lora_linear, *plain)
    assert max(errors(found, exact(*plain))) < 4e-3
    assert all(torch.equal(p, q) for p, q in zip(found, same, strict=True))


@pytest.mark.parametrize("way", ["library", "torch"])
def test_an_update_smaller_than_half_a_step_of_bf16_still_moves_the_result(
    library: ctypes.CDLL, way: str
) -> None:
    """Added to a result that is already rounded it would be lost."""
    x, weight, _, a, b, _ = given(512, 576, 576, 8)
    small = b * 1e-3
    base = F.linear(x.double(), weight.double())
    update = SCALE * x.double() @ a.double().t() @ small.double().t()

    def kept(y: Tensor) -> float:
        """The share of the update that the result has, by projection."""
        return float(((y.double() - base) * update).sum() / update.square().sum())

    with linear_native.using(library):
        one = linear_native if way == "library" else fused_lora
        assert kept(one.lora_linear(x, weight, None, a, small, SCALE)) == pytest.approx(1.0, abs=0.1)
    low = x @ a.bfloat16().t()
    assert kept(F.linear(x, weight).addmm_(low, small.bfloat16().t(), alpha=SCALE)) < 0.7


def test_rows_are_taken_as_they_are_in_a_compiled_function(library: ctypes.CDLL) -> None:
    x, weight, bias, a, b, dy = given(96, 64, 64, 8)

    def layer(x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
        one = linear_native if linear_native.fits(x, weight) else fused_lora
        return F.silu(one.lora_linear(x, weight, bias, a, b, scale))

    counted = Counting(library)
    with linear_native.using(counted):  # type: ignore[arg-type]
        eager = computed(layer, x, weight, bias, a, b, dy)
        calls = len(counted.calls)
        compiled = computed(torch.compile(layer, dynamic=True), x, weight, bias, a, b, dy)
    assert calls == 2
    assert counted.calls == ["linear_forward", "linear_backward"] * 2
    assert max(errors(compiled, [t.double() for t in eager])) < 6e-3


def test_no_gradient_is_made_for_an_input_that_needs_none(library: ctypes.CDLL) -> None:
    x, weight, bias, a, b, dy = given(40, 64, 64, 8)
    leaves = [a.requires_grad_(), b.requires_grad_()]
    with linear_native.using(library):
        y = linear_native.lora_linear(x, weight, bias, *leaves, SCALE)
        found = torch.autograd.grad(y, leaves, dy)
    assert max(errors([*found], exact(x, weight, bias, a.detach(), b.detach(), dy)[2:])) < 4e-3


def test_a_quantised_base_goes_the_same_way(library: ctypes.CDLL) -> None:
    x, _, bias, a, b, dy = given(70, 64, 96, 8)
    codes = torch.randint(-127, 128, (96, 64), generator=torch.Generator().manual_seed(1)).to(torch.int8)
    pieces = (codes, torch.full((96,), 0.3))
    layout = quantize.Layout("int8", (96, 64), torch.bfloat16)

    def layer(x: Tensor, _: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
        found: Tensor = quantize._LoRAProduct.apply(x, bias, a, b, scale, layout, *pieces)  # type: ignore[no-untyped-call]
        return found

    counted = Counting(library)
    weight = quantize.unpack(layout, pieces)
    with linear_native.using(counted):  # type: ignore[arg-type]
        found = computed(layer, x, weight, bias, a, b, dy)
    assert counted.calls == ["linear_forward", "linear_backward"]
    assert max(errors(found, exact(x, weight, bias, a, b, dy))) < 4e-3


def test_small_matrices_and_biases_in_any_format(library: ctypes.CDLL) -> None:
    x, weight, bias, a, b, dy = given(40, 64, 96, 8)
    others = [x, weight, F.pad(bias.float()[:, None], (0, 1))[:, 0], a.bfloat16(), b.bfloat16(), dy]
    with linear_native.using(library):
        found = computed(linear_native.lora_linear, *others)
        same = computed(
            linear_native.lora_linear, x, weight, bias, a.bfloat16().float(), b.bfloat16().float(), dy
        )
    assert [t.dtype for t in found] == [torch.bfloat16] * 4
    assert all(torch.equal(p, q.to(p.dtype)) for p, q in zip(found, same, strict=True))


def test_no_rows(library: ctypes.CDLL) -> None:
    tensors = given(0, 64, 32, 8)
    with linear_native.using(library):
        y, dx, da, db = computed(linear_native.lora_linear, *tensors)
    assert (y.shape, dx.shape) == ((0, 32), (0, 64))
    assert not da.any()
    assert not db.any()


def test_what_it_does_not_compute(library: ctypes.CDLL) -> None:
    x, weight = torch.zeros(4, 64, dtype=torch.bfloat16), torch.zeros(32, 64, dtype=torch.bfloat16)
    assert not linear_native.fits(x, weight)
    with linear_native.using(library):
        assert linear_native.fits(x, weight)
        with linear_native.using(None):
            assert linear_native.fits(x, weight)
        assert not linear_native.fits(x.float(), weight.float())
        assert not linear_native.fits(x[:, :48], weight[:, :48])
        assert not linear_native.fits(x, weight[:20])
        assert not linear_native.fits(x[:, :32], weight[:, ::2])
    assert not linear_native.fits(x, weight)


class Counting:
    """A library that keeps the names of what is called."""

    def __init__(self, library: ctypes.CDLL, **instead: object) -> None:
        self.library, self.instead, self.calls = library, instead, list[str]()

    def __getattr__(self, name: str) -> object:
        self.calls.append(name)
        return self.instead.get(name) or getattr(self.library, name)
