"""A gated block with LoRA in C++: nearer to the exact result than layer by layer, known by what it does."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaMLP

from tests.families import tiny_model
from tests.model.test_linear_native import Counting, errors
from tunesmith.device import Device
from tunesmith.model import fused_gated, fused_lora, gated_native, kernels, linear_native, native, targets
from tunesmith.train import compiling

pytestmark = pytest.mark.skipif(
    not gated_native.supported() or compiling.missing() is not None,
    reason="needs Linux, a C++ compiler and a processor with products in bf16",
)
SCALES = [2.0, 1.0, 0.5]
SHAPES = {  # tokens, size, size between, ranks of gate, up and down
    "as in a small model": (320, 576, 1536, (8, 8, 8)),
    "rows left over": (333, 64, 96, (4, 8, 3)),
    "fewer rows than a tile has": (5, 64, 32, (1, 1, 1)),
    "one row": (1, 64, 32, (8, 20, 40)),
    "several blocks, k in chunks": (1500, 608, 1312, (20, 20, 33)),
    "ranks of one panel and the next": (130, 96, 64, (24, 24, 16)),
}
Block = list[Any]  # x, weights, a, b, dy


@pytest.fixture(scope="module")
def library() -> ctypes.CDLL:
    return gated_native.build("g++")


def given(tokens: int, d: int, e: int, ranks: Sequence[int]) -> Block:
    """x, weights and dy in bf16, a and b in fp32."""
    draw = torch.Generator().manual_seed(tokens + d)

    def some(*shape: int, size: float = 1.0) -> Tensor:
        return torch.randn(shape, generator=draw) * size

    sizes = [(e, d), (e, d), (d, e)]
    return [
        some(tokens, d).bfloat16(),
        [some(*size, size=size[1] ** -0.5).bfloat16() for size in sizes],
        [some(r, size[1], size=size[1] ** -0.5) for r, size in zip(ranks, sizes, strict=True)],
        [some(size[0], r, size=0.2) for r, size in zip(ranks, sizes, strict=True)],
        some(tokens, d).bfloat16(),
    ]


def by_layers(linear: Any, x: Tensor, weights: list[Tensor], a: list[Tensor], b: list[Tensor]) -> Tensor:
    gate, up, down = (
        lambda x, i=i: linear(x, weights[i], None, a[i], b[i], SCALES[i]) for i in range(3)
    )  # fmt: skip
    out: Tensor = down(F.silu(gate(x)) * up(x))
    return out


def in_one(x: Tensor, weights: list[Tensor], a: list[Tensor], b: list[Tensor]) -> Tensor:
    return gated_native.gated(x, weights, a, b, SCALES)


def by_torch(*block: Any) -> Tensor:
    return by_layers(fused_lora.lora_linear, *block)


def exactly(*block: Any) -> Tensor:
    def linear(x: Tensor, weight: Tensor, _: None, a: Tensor, b: Tensor, scale: float) -> Tensor:
        return x @ weight.t() + scale * (x @ a.t()) @ b.t()

    return by_layers(linear, *block)


def computed(function: Any, x: Tensor, weights: list[Tensor], a: Any, b: Any, dy: Tensor) -> list[Tensor]:
    """y and the gradients of x, the a's and the b's."""
    leaves = [t.detach().clone().requires_grad_() for t in (x, *a, *b)]
    y = function(leaves[0], weights, leaves[1:4], leaves[4:])
    return [y.detach(), *torch.autograd.grad(y, leaves, dy)]


def exact(block: Block) -> list[Tensor]:
    return computed(
        exactly, *([t.double() for t in part] if isinstance(part, list) else part.double() for part in block)
    )


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_results_are_nearer_to_the_exact_ones_than_layer_by_layer(
    shape: tuple[int, int, int, tuple[int, ...]], library: ctypes.CDLL
) -> None:
    block = given(*shape)
    wanted = exact(block)
    with gated_native.using(library):
        assert gated_native.fits(block[0], block[1], [8, 8, 8])
        ours = errors(computed(in_one, *block), wanted)
    theirs = errors(computed(by_torch, *block), wanted)
    few = shape[0] < 30  # of which a rounding that falls the other way is a larger share
    assert max(ours) < (2e-2 if few else 7e-3)
    assert sum(ours) < sum(theirs) * (1.3 if few else 1.0)


def test_any_number_of_threads_gives_the_same_rows(library: ctypes.CDLL) -> None:
    block = given(700, 96, 64, (8, 8, 8))
    before, found = torch.get_num_threads(), {}
    with gated_native.using(library):
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            try:
                found[threads], again = (computed(in_one, *block) for _ in range(2))
            finally:
                torch.set_num_threads(before)
            assert all(torch.equal(p, q) for p, q in zip(found[threads], again, strict=True))
    for threads in (2, 5):
        assert torch.equal(found[threads][0], found[1][0])
        assert torch.equal(found[threads][1], found[1][1])
        for p, q in zip(found[threads][2:], found[1][2:], strict=True):  # sums over rows, cut elsewhere
            torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-4)


def test_layouts(library: ctypes.CDLL) -> None:
    """Weights whose transposes stand in rows, rows with gaps, small matrices in other formats."""
    x, weights, a, b, dy = given(70, 64, 96, (8, 8, 8))
    a = [t.bfloat16() for t in a]
    turned = [w.t().contiguous().t() for w in weights]
    wide = F.pad(x, (32, 32))[:, 32:-32]
    with gated_native.using(library):
        same = computed(in_one, x, weights, a, b, dy)
        found = computed(
            in_one, wide, turned, [t.t().contiguous().t() for t in a], b, dy.t().contiguous().t()
        )
    assert all(torch.equal(p, q) for p, q in zip(found, same, strict=True))
    assert [t.dtype for t in found[2:]] == [torch.bfloat16] * 3 + [torch.float32] * 3


def test_large_numbers_give_numbers(library: ctypes.CDLL) -> None:
    """A gate far from zero: silu is the number itself, or nothing; no infinity on the way."""
    x, weights, a, b, dy = given(64, 64, 64, (8, 8, 8))
    block = [x * 1000, weights, a, b, dy]
    with gated_native.using(library):
        found = computed(in_one, *block)
    assert all(bool(t.isfinite().all()) for t in found)
    # A gate that a rounding moves across zero is another gate.
    assert max(errors(found, exact(block))) < 1.3 * max(errors(computed(by_torch, *block), exact(block)))


def test_no_rows(library: ctypes.CDLL) -> None:
    with gated_native.using(library):
        y, dx, *small = computed(in_one, *given(0, 64, 32, (8, 8, 8)))
    assert y.shape == dx.shape == (0, 64)
    assert not any(t.any() for t in small)


def test_what_it_does_not_compute(library: ctypes.CDLL) -> None:
    x, weights, *_ = given(4, 64, 96, (8, 8, 8))

    def fits(x: Tensor, weights: Sequence[Tensor], ranks: Sequence[int] = (8, 8, 8)) -> bool:
        return gated_native.fits(x, weights, ranks)

    assert not fits(x, weights)
    with gated_native.using(library):
        assert fits(x, weights)
        assert fits(x, weights, [gated_native.HIGHEST_RANK] * 3)
        assert not fits(x, weights, [8, gated_native.HIGHEST_RANK + 1, 8])
        assert not fits(x.float(), [w.float() for w in weights])
        assert not fits(x, [weights[0], weights[1][:64], weights[2]])
        assert not fits(x[:, :32], weights)
        assert not fits(x, [w[:80] if len(w) > 80 else w[:, :80] for w in weights])
        wide = torch.empty(gated_native.WIDEST + 32, 64, dtype=torch.bfloat16)
        assert not fits(x, [wide, wide, wide.t()])
    assert not fits(x, weights)


@pytest.fixture
def tuned() -> PeftModel:
    config = LlamaConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, vocab_size=40,
    )  # fmt: skip
    torch.manual_seed(0)
    model = get_peft_model(
        LlamaForCausalLM(config).bfloat16(), LoraConfig(target_modules="all-linear", init_lora_weights=False)
    )
    for name, p in model.named_parameters():
        p.data = p.data.float() if "lora_" in name else p.data
    return model


def gradients(model: torch.nn.Module) -> list[Tensor]:
    ids = torch.arange(36).view(1, 36)
    model.zero_grad()
    model(input_ids=ids, labels=ids).loss.backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def test_training_compiles_the_model_over_it(
    tuned: PeftModel, library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the setting to the call: a model of PEFT's, its layers compiled as a job's are."""
    wanted = gradients(tuned)
    fused_lora.fuse(tuned)
    fused_gated.fuse(tuned)
    counted = Counting(library)
    monkeypatch.setattr(gated_native, "build", lambda _: counted)
    layers = Counting(linear_native.build("g++"))
    monkeypatch.setattr(linear_native, "build", lambda _: layers)
    device = Device(torch.device("cpu"), torch.bfloat16, "this processor")
    compiled = compiling.start(
        True, lambda: targets.decoder_layers(tuned), lambda: gradients(tuned), lambda _: None, earns=True,
        device=device,
    )  # fmt: skip
    assert set(compiled.kernels.libraries) == set(kernels.KERNELS)
    assert compiled.kernels.described == f"{native.products()}: {', '.join(kernels.KERNELS)}"
    counted.calls.clear()
    layers.calls.clear()
    with compiled.on():
        found = gradients(tuned)
    assert sorted(counted.calls) == ["gated_backward"] * 2 + ["gated_forward"] * 2
    # Of each block's seven LoRA layers, three are in the gated block.
    assert layers.calls.count("linear_forward") == layers.calls.count("linear_backward") == 2 * 4
    gradients(tuned)
    assert len(counted.calls) == 4, "outside it is plain torch"
    assert len(layers.calls) == 4 * 4, "there too"
    apart = sum(float((p - q).square().sum()) for p, q in zip(found, wanted, strict=True))
    assert (apart / sum(float(q.square().sum()) for q in wanted)) ** 0.5 < 0.02


def hooked(part: torch.nn.Module, kind: str) -> None:
    getattr(part, f"register_{kind}")(lambda *_: None)


def bias(block: Any) -> None:
    block.up_proj.get_base_layer().bias = torch.nn.Parameter(torch.zeros(96).bfloat16(), requires_grad=False)


AWAY: dict[str, Callable[[PeftModel, Any], Any]] = {
    "disabled": lambda model, _: model.base_model.disable_adapter_layers(),
    "several adapters": lambda model, _: (
        model.add_adapter("second", LoraConfig(target_modules="all-linear")),
        model.base_model.set_adapter(["default", "second"]),
    ),
    "merged": lambda model, _: model.merge_adapter(),
    "merged for good": lambda model, _: model.merge_and_unload(),
    "taken out": lambda model, _: model.unload(),
    "a trained base": lambda _, block: block.down_proj.get_base_layer().weight.requires_grad_(),
    "a bias": lambda _, block: bias(block),
    "dropout": lambda _, block: block.up_proj.lora_dropout.update({"default": torch.nn.Dropout(0.5)}),
    "another gate": lambda _, block: setattr(block, "act_fn", torch.nn.GELU()),
    "a hook on a layer": lambda _, block: hooked(block.gate_proj, "forward_hook"),
    "a hook before a base": lambda _, block: hooked(block.up_proj.get_base_layer(), "forward_pre_hook"),
    "a hook on the way back": lambda _, block: hooked(block.down_proj, "full_backward_hook"),
    "a hook on the gate": lambda _, block: hooked(block.act_fn, "full_backward_pre_hook"),
    "unfused": lambda model, _: fused_gated.unfuse(model),
}


@pytest.mark.parametrize("away", AWAY)
def test_its_own_forward_runs_where_it_is_not_exactly_that(
    away: str, tuned: PeftModel, library: ctypes.CDLL
) -> None:
    fused_lora.fuse(tuned)
    fused_gated.fuse(tuned)
    block: Any = tuned.get_base_model().model.layers[0].mlp  # type: ignore[union-attr]
    counted: Any = Counting(library)
    x = torch.randn(3, 64).bfloat16()
    with gated_native.using(counted):
        block(x)
        assert counted.calls == ["gated_forward"]
        counted.calls.clear()
        with fused_lora.only_for(torch.tensor([1, 0, 1])):
            block(x)
        AWAY[away](tuned, block)
        block(x)
    assert not counted.calls


class Turned(LlamaMLP):
    """The same names in another order."""

    def forward(self, x: Tensor) -> Tensor:
        down_proj: Tensor = self.down_proj(self.up_proj(x) * self.act_fn(self.gate_proj(x)))
        return down_proj


def test_a_block_is_known_by_its_operations(tuned: PeftModel) -> None:
    layers: Any = tuned.get_base_model().model.layers  # type: ignore[union-attr]
    layers[1].mlp.__class__ = Turned
    fused_lora.fuse(tuned)
    fused_gated.fuse(tuned)
    assert [isinstance(layer.mlp, fused_gated.FusedGated) for layer in layers] == [True, False]


@pytest.mark.parametrize(
    ("family", "gated"),
    [("llama", True), ("qwen2", True), ("qwen3", True), ("mistral", True), ("gemma2", False), ("phi3", False)
],
)  # fmt: skip
def test_which_families_have_such_blocks(family: str, gated: bool) -> None:
    model = get_peft_model(tiny_model(family), LoraConfig(target_modules="all-linear"))
    fused_lora.fuse(model)
    fused_gated.fuse(model)
    assert any(isinstance(module, fused_gated.FusedGated) for module in model.modules()) is gated
