"""The head's loss in C++: nearer to the exact result than torch's, for any shape; and where it is used."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from tests.model.test_linear_native import Counting
from tests.train.test_equality import rows
from tests.train.test_head import MORE, TINY
from tunesmith.data.batch import collate
from tunesmith.device import Device
from tunesmith.model import attention_native, head_native, linear_native
from tunesmith.train import compiling, head
from tunesmith.train.objectives import sft

pytestmark = pytest.mark.skipif(
    not head_native.supported() or compiling.missing() is not None,
    reason="needs Linux, a C++ compiler and a processor with products in bf16",
)
COMPILER = "g++"
SHAPES = {  # label tokens, hidden size, vocabulary
    "one panel": (32, 64, 32),
    "one row": (1, 64, 64),
    "rows left over": (77, 96, 96),
    "several blocks of the vocabulary": (70, 576, 1120),
    "k in chunks, the last short": (40, 1248, 160),
    "few steps": (130, 32, 992),
}
KINDS = {
    "plain": {},
    "scaled": {"scale": 0.3},
    "smoothed": {"smoothing": 0.1, "scale": 2.0},
    "capped": {"cap": 3.0, "scale": 1.5},
}


@pytest.fixture(scope="module")
def library() -> ctypes.CDLL:
    return head_native.build(COMPILER)


def given(n: int, d: int, v: int, size: float = 2.0) -> tuple[Tensor, Tensor, Tensor]:
    """hidden and weight in bf16, logits of about `size`, and targets."""
    draw = torch.Generator().manual_seed(n + d + v)
    hidden, weight = torch.randn(n, d, generator=draw), torch.randn(v, d, generator=draw) * size * d**-0.5
    return hidden.bfloat16(), weight.bfloat16(), torch.randint(0, v, (n,), generator=draw)


def loss_of(
    z: Tensor, targets: Tensor, scale: float = 1.0, cap: float | None = None, smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """What is to be computed, from raw logits."""
    z = z * scale
    log_p = torch.log_softmax(z if cap is None else cap * torch.tanh(z / cap), -1)
    each = -log_p.gather(1, targets[:, None])[:, 0]
    return (1 - smoothing) * each.sum() - smoothing * log_p.mean(-1).sum(), each.detach()


def exact(hidden: Tensor, weight: Tensor, targets: Tensor, **kind: float) -> list[Tensor]:
    """Sum, each label's loss and the gradient of hidden in fp64."""
    h = hidden.double().requires_grad_()
    total, each = loss_of(h @ weight.double().t(), targets, **kind)
    return [total.detach(), each, *torch.autograd.grad(total, h)]


def torchs(hidden: Tensor, weight: Tensor, targets: Tensor, **kind: float) -> list[Tensor]:
    """The same by the way without the library."""
    h = hidden.detach().requires_grad_()
    smoothing = kind.pop("smoothing", 0.0)
    total, each = head.head_loss(h, targets, head.Head(weight, **kind), smoothing)  # type: ignore[arg-type]
    return [total.detach(), each, *torch.autograd.grad(total, h)]


def ours(hidden: Tensor, weight: Tensor, targets: Tensor, **kind: float) -> list[Tensor]:
    total, each, gradient = head_native.head_loss(hidden, weight, targets, **kind)
    assert gradient is not None
    return [total, each, gradient]


def errors(found: list[Tensor], wanted: list[Tensor]) -> list[float]:
    return [float((a.double() - b).norm() / b.norm()) for a, b in zip(found, wanted, strict=True)]


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_nearer_to_the_exact_result_than_torch(
    shape: tuple[int, int, int], kind: dict[str, float], library: ctypes.CDLL
) -> None:
    tensors = given(*shape)
    wanted = exact(*tensors, **kind)
    with head_native.using(library):
        found = errors(ours(*tensors, **kind), wanted)
    assert max(found[:2]) < 3e-6, "sums in fp32, exponentials to 4e-6"
    assert found[2] < 2.5e-3, "rounded to bf16 once: 2^-9 at most"
    assert found[2] < errors(torchs(*tensors, **kind), wanted)[2] * 1.02


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_repeats_bit_by_bit_for_any_number_of_threads(
    threads: int, library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head_native, "_rows", lambda _: 64)  # three chunks, the last short
    before = torch.get_num_threads()
    for vocabulary in (480, 32):  # some threads have nothing to do, where before they had
        tensors = given(150, 96, vocabulary)
        torch.set_num_threads(threads)
        try:
            with head_native.using(library):
                found = [ours(*tensors, smoothing=0.1) for _ in range(3)]
        finally:
            torch.set_num_threads(before)
        for again in found[1:]:
            assert all(torch.equal(a, b) for a, b in zip(found[0], again, strict=True))
        off = errors(found[0], exact(*tensors, smoothing=0.1))
        assert max(off[:2]) < 3e-6
        assert off[2] < 2.5e-3


@pytest.mark.parametrize(
    ("size", "kind"), [(300.0, {}), (300.0, {"smoothing": 0.1}), (2000.0, {"cap": 400.0})]
)
def test_logits_far_above_the_labels_own(size: float, kind: dict[str, float], library: ctypes.CDLL) -> None:
    """Exponentials beyond fp32, in one of three chunks' rows."""
    hidden, weight, targets = given(70, 64, 96, size)
    hidden[:40] /= 1000
    wanted = exact(hidden, weight, targets, **kind)
    assert float(wanted[1].max()) > 300
    with head_native.using(library):
        found = ours(hidden, weight, targets, **kind)
    assert all(bool(torch.isfinite(x).all()) for x in found)
    torch.testing.assert_close(found[1].double(), wanted[1], rtol=1e-5, atol=1e-4)
    for some in (slice(40), slice(40, None)):  # of very different sizes
        assert errors([found[2][some]], [wanted[2][some]])[0] < 5e-3


def test_what_a_model_is_sure_of_keeps_its_small_gradient(library: ctypes.CDLL) -> None:
    """p - 1 and a loss of 1e-6: rounded logits have no such thing."""
    hidden, weight, _ = given(64, 64, 64, 1.0)
    weight[:] = torch.eye(64)
    hidden = (torch.eye(64) * 18).bfloat16()
    targets = torch.arange(64)
    wanted = exact(hidden, weight, targets)
    assert 1e-7 < float(wanted[1].max()) < 1e-5
    with head_native.using(library):
        found = ours(hidden, weight, targets)
    assert max(errors(found, wanted)) < 2.5e-3
    assert errors(torchs(hidden, weight, targets), wanted)[2] > 2.5e-3


def test_a_logit_that_is_no_number_is_no_number_in_the_loss(library: ctypes.CDLL) -> None:
    hidden, weight, targets = given(40, 64, 96)
    with head_native.using(library):
        for bad in (float("nan"), float("inf")):
            other = hidden.clone()
            other[3, 5] = bad
            total, each, gradient = head_native.head_loss(other, weight, targets)
            assert gradient is not None
            assert not torch.isfinite(total)
            assert torch.isfinite(each).tolist() == [i != 3 for i in range(40)]
            assert gradient.isfinite().all(-1).tolist() == [i != 3 for i in range(40)]


def test_a_label_whose_own_logit_overflows_is_no_sure_answer(library: ctypes.CDLL) -> None:
    hidden, weight, targets = given(40, 64, 96)
    targets[3] = 7
    assert 7 not in [*targets[:3].tolist(), *targets[4:].tolist()]
    hidden[3], hidden[:, 0], hidden[3, 0] = 0, 0, 1e20
    weight[7], weight[7, 0] = 0, 1e20
    with head_native.using(library):
        for smoothing in (0.0, 0.1):
            total, each, gradient = head_native.head_loss(hidden, weight, targets, smoothing=smoothing)
            assert gradient is not None
            assert not torch.isfinite(total)
            assert torch.isfinite(each).tolist() == [i != 3 for i in range(40)]
            assert gradient.isfinite().all(-1).tolist() == [i != 3 for i in range(40)]


def test_rows_with_gaps_and_no_gradient(library: ctypes.CDLL) -> None:
    hidden, weight, targets = given(50, 64, 96)
    with head_native.using(library):
        plain = ours(hidden, weight, targets)
        wide, tall = torch.full((50, 96), float("nan")), torch.full((96, 128), float("nan"))
        wide, tall = wide.bfloat16(), tall.bfloat16()
        wide[:, 16:80], tall[:, :64] = hidden, weight
        gaps = ours(wide[:, 16:80], tall[:, :64], targets.to(torch.int32))
        other = ours(hidden.t().contiguous().t(), weight, targets)
        total, each, gradient = head_native.head_loss(hidden, weight, targets, wanted=False)
    for found in (gaps, other):
        assert all(torch.equal(a, b) for a, b in zip(found, plain, strict=True))
    assert gradient is None
    assert torch.equal(total, plain[0])
    assert torch.equal(each, plain[1])


@pytest.mark.parametrize("n", [1, 33, 70])
def test_nothing_is_read_or_written_beside_what_was_given(n: int, library: ctypes.CDLL) -> None:
    """Each tensor ends where the next page may not be touched."""
    tensors = given(n, 64, 96)
    pages = [Guarded(t) for t in (*tensors, torch.empty(()), torch.empty(n), torch.empty_like(tensors[0]))]
    for kind in KINDS.values():
        call(library, *(page.tensor for page in pages), **kind)
        with head_native.using(library):
            wanted = ours(*tensors, **kind)
        assert all(torch.equal(p.tensor, t) for p, t in zip(pages[3:], wanted, strict=True))


def test_a_target_out_of_the_vocabulary(library: ctypes.CDLL) -> None:
    hidden, weight, targets = given(8, 64, 96)
    with head_native.using(library):
        for wrong in (-100, 96):
            targets[5] = wrong
            with pytest.raises(IndexError, match="vocabulary of 96"):
                head_native.head_loss(hidden, weight, targets)


def test_what_it_does_not_compute(library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight = torch.zeros(4, 64, dtype=torch.bfloat16), torch.zeros(32, 64, dtype=torch.bfloat16)
    assert not head_native.fits(hidden, weight, None, 0.0)
    with head_native.using(library):
        with head_native.using(None):
            assert head_native.fits(hidden, weight, None, 0.0)
        assert head_native.fits(hidden, weight, 3.0, 0.0)
        assert head_native.fits(hidden, weight, None, 0.1)
        assert not head_native.fits(hidden, weight, 3.0, 0.1)
        assert not head_native.fits(hidden.float(), weight.float(), None, 0.0)
        assert not head_native.fits(hidden[:0], weight, None, 0.0)
        assert not head_native.fits(hidden[:, :48], weight[:, :48], None, 0.0)
        assert not head_native.fits(hidden, weight[:20], None, 0.0)
        assert not head_native.fits(hidden.repeat(1, 33), weight.repeat(1, 33), None, 0.0), "too wide"
        assert not head_native.fits(hidden[:, :32], weight[:, ::2], None, 0.0)
        monkeypatch.setattr(torch, "get_num_threads", lambda: 2000)
        assert not head_native.fits(hidden, weight, None, 0.0), "sums of all threads take too much memory"
    assert not head_native.fits(hidden, weight, None, 0.0)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_training_takes_it_and_compiles_no_loop(
    library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch, smoothing: float
) -> None:
    """From the setting to the call: a job's objective on a model of PEFT's, in bf16."""
    config = LlamaConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, vocab_size=224, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = get_peft_model(LlamaForCausalLM(config).bfloat16(), LoraConfig(target_modules="all-linear"))
    batch = collate(rows(200, (5, 23, 40)), packing=True, pad_id=0)

    def step(objective: object = sft(smoothing, fused=True)) -> tuple[float, list[Tensor]]:
        model.zero_grad()
        loss, _ = objective.loss(model, batch)  # type: ignore[attr-defined]
        (loss * 0.37).backward()
        return float(loss.detach()), [p.grad.clone() for p in model.parameters() if p.grad is not None]

    wanted = step(sft(smoothing))
    counted = Counting(library)
    monkeypatch.setattr(head_native, "build", lambda _: counted)
    for other in (attention_native, linear_native):  # needn't be built for this
        monkeypatch.setattr(other, "supported", lambda: False)
    monkeypatch.setattr(head, "_compiled", lambda: pytest.fail("the loop isn't needed"))
    device = Device(torch.device("cpu"), torch.bfloat16, "this processor")
    notes: list[str] = []
    compiled = compiling.start(
        True, lambda: [torch.nn.Linear(2, 2)], step, notes.append, earns=True, device=device
    )
    assert notes[-1].startswith("Layers compiled"), notes
    assert compiled.kernels.libraries["The head"] is counted
    counted.calls.clear()
    with compiled.on():
        found = step()
    assert counted.calls == ["head_loss"]
    assert found[0] == pytest.approx(wanted[0], rel=1e-3)
    apart = sum(float((p - q).square().sum()) for p, q in zip(found[1], wanted[1], strict=True))
    assert (apart / sum(float(q.square().sum()) for q in wanted[1])) ** 0.5 < 0.02
    step(sft(smoothing))
    assert counted.calls == ["head_loss"], "outside it is plain torch"


@pytest.mark.parametrize("family", ["granite", "cohere", "gemma2", "qwen2"])
def test_families_with_factors_and_caps(family: str, library: ctypes.CDLL) -> None:
    """As near to the model's own loss in fp32 as its own logits in bf16 are."""
    config = AutoConfig.for_model(
        family, **{**TINY, **MORE.get(family, {}), "hidden_size": 64, "vocab_size": 224}
    )
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")
    states = (torch.randn(40, 64) * 3).bfloat16()
    weight = model.get_output_embeddings().weight.data.bfloat16()
    found = head.head_of(model)
    assert found is not None
    one, targets = replace(found[1], weight=weight), torch.arange(40)
    assert (one.scale, one.cap) != (1.0, None) or family == "qwen2"

    def gradient(loss: Callable[[Tensor], tuple[Tensor, Tensor]], x: Tensor) -> list[Tensor]:
        x = x.detach().requires_grad_()
        total, each = loss(x)
        return [total.detach(), each, *torch.autograd.grad(total, x)]

    wanted = gradient(
        lambda x: loss_of(x @ weight.double().t(), targets, one.scale, one.cap), states.double()
    )
    counted = Counting(library)
    with head_native.using(counted):  # type: ignore[arg-type]
        native = gradient(lambda x: head.head_loss(x, targets, one), states)
    torchs = gradient(lambda x: head.head_loss(x, targets, one), states)
    assert counted.calls == ["head_loss"]
    assert max(errors(native, wanted)) < 2.5e-3
    assert errors(native, wanted)[2] < errors(torchs, wanted)[2]


@pytest.mark.parametrize("what", ["bias", "lora", "trained", "fp32"])
def test_other_heads_go_the_other_way(what: str, library: ctypes.CDLL) -> None:
    hidden, weight, targets = given(40, 64, 96)
    parts = {
        "bias": {"bias": torch.ones(96).bfloat16()},
        "lora": {"a": torch.ones(4, 64).bfloat16(), "b": torch.ones(96, 4).bfloat16(), "lora_scale": 2.0},
    }.get(what, {})
    if what == "fp32":
        hidden, weight = hidden.float(), weight.float()
    one = head.Head(weight.requires_grad_(what == "trained"), **parts)  # type: ignore[arg-type]
    wanted = head.head_loss(hidden, targets, one)[0]
    counted = Counting(library)
    with head_native.using(counted):  # type: ignore[arg-type]
        found = head.head_loss(hidden, targets, one)[0]
        assert counted.calls == []
        assert torch.equal(found, wanted)
        head.head_loss(hidden.bfloat16(), targets, head.Head(weight.detach().bfloat16()))
    assert counted.calls == ["head_loss"]


class Guarded:
    """A copy of a tensor between two pages that may be neither read nor written."""

    def __init__(self, tensor: Tensor) -> None:
        size = tensor.numel() * tensor.element_size()
        inside = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        self.memory = mmap.mmap(-1, inside + 2 * mmap.PAGESIZE)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        protect = ctypes.CDLL(None).mprotect
        for page in (start, start + mmap.PAGESIZE + inside):
            assert protect(ctypes.c_void_p(page), ctypes.c_size_t(mmap.PAGESIZE), 0) == 0
        at = mmap.PAGESIZE + inside - size
        self.tensor = torch.frombuffer(self.memory, dtype=tensor.dtype, count=tensor.numel(), offset=at)
        self.tensor = self.tensor.view(tensor.shape).copy_(tensor)


def call(
    library: ctypes.CDLL, hidden: Tensor, weight: Tensor, targets: Tensor, *out: Tensor, **kind: float
) -> None:
    """`head_native.head_loss` into tensors that are given."""
    plain = {"scale": 1.0, "cap": 0.0, "smoothing": 0.0}
    numbers = [ctypes.c_float(number) for number in {**plain, **kind}.values()]
    library.head_loss(
        *head_native.pointers(hidden, weight, targets),
        *head_native.sizes(*hidden.stride()[:1], *weight.stride()[:1], *hidden.shape, len(weight)), *numbers,
        *head_native.sizes(64, torch.get_num_threads()), *head_native.pointers(*out),
    )  # fmt: skip
