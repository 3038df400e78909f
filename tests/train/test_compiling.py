"""Compiled = eager within 1e-4; and where compilation can't be, the run goes on and says so in one line."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from tests.families import FAMILIES, tiny_model
from tests.model.tuning import prepare, trained
from tests.train.test_equality import rows
from tests.train.test_loop import CPU, training
from tunesmith.data.batch import collate
from tunesmith.errors import ModelError
from tunesmith.model.attention import segment_attention
from tunesmith.model.targets import decoder_layers
from tunesmith.train import compiling
from tunesmith.train.loop import run_loop
from tunesmith.train.objectives import sft

needs_compiler = pytest.mark.skipif(compiling.missing() is not None, reason=str(compiling.missing()))


def step(model: torch.nn.Module, *, fused: bool) -> dict[str, torch.Tensor]:
    model.zero_grad(set_to_none=True)
    examples = rows(200, (5, 23, 11, 40))
    first, second = examples[1], examples[3]
    # The same beginning, so that a segment hangs on another.
    second = replace(second, input_ids=[*first.input_ids[:9], *second.input_ids[9:]])
    batch = collate([*examples[:3], second], packing=True, pad_id=0, sharing=True)
    assert batch.unique_tokens < batch.tokens
    with segment_attention(model, True):
        loss, _ = sft(0.1, fused=fused).loss(model, batch)
        loss.backward()
    assert batch.label_losses is not None
    torch.testing.assert_close(
        batch.label_losses.mean(), loss.detach() / len(batch.targets), rtol=0.2, atol=0
    )
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return {**gradients, "label losses": batch.label_losses}


def test_frozen_layers_below_trained_ones_take_no_gradient() -> None:
    """The first layer's input is made to want one only where that layer is trained."""
    layers = [torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)]
    for frozen in (True, False):
        layers[0].requires_grad_(not frozen)
        compiled = compiling.Compiled(layers)
        for layer in layers:  # stands for torch's compiler, which takes seconds
            layer.compile = lambda layer=layer, **_: setattr(layer, "_compiled_call_impl", layer._call_impl)
        compiled.build(lambda: None)
        with compiled.on():
            x = torch.zeros(1, 4)
            wanting = layers[0](x).requires_grad
        assert wanting is not frozen
        assert not x.requires_grad
        assert layers[1]._compiled_call_impl is None


class Normed(torch.nn.Module):
    """What a product reads is a norm's output, which can be had again from x."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear = LlamaRMSNorm(32), torch.nn.Linear(32, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.linear(self.norm(x))


@needs_compiler
def test_a_norms_output_is_not_kept_for_the_way_back(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(64, 32, requires_grad=True)

    def kept() -> int:
        torch._dynamo.reset()
        compiled = compiling.Compiled([layer := Normed()])
        compiled.build(lambda: None)
        storages: dict[int, int] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with compiled.on(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            layer(x).sum().backward()
        return sum(storages.values())

    found = kept()
    monkeypatch.setattr(compiling, "_recomputing", nullcontext)
    assert kept() - found == x.nbytes


@needs_compiler
@pytest.mark.parametrize(
    "family", ["llama", *(pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES[1:])]
)
def test_gradients_equal_those_without(family: str) -> None:
    model = trained(prepare(tiny_model(family))).train()
    expected = step(model, fused=False)
    compiled = compiling.Compiled(decoder_layers(model))
    compiled.build(lambda: None)
    torch._dynamo.utils.counters.clear()
    with compiled.on():
        found = step(model, fused=True)
    counters = torch._dynamo.utils.counters
    # One for the loss, one for all layers of a kind, whether the first one's input wants a gradient or not.
    kinds = 2 if family == "qwen3_moe" else 1
    assert counters["stats"]["unique_graphs"] == 1 + kinds
    assert not counters["graph_break"]
    gap = sum(((g - expected[n]) ** 2).sum() for n, g in found.items())
    assert float(torch.sqrt(gap / sum((g**2).sum() for g in expected.values()))) < 1e-4
    before = counters["stats"]["unique_graphs"]
    step(model.eval(), fused=False)  # plain again outside: nothing more is compiled
    assert counters["stats"]["unique_graphs"] == before


def start(wanted: Any = True, **changes: Any) -> tuple[compiling.Compiled, list[str], list[str]]:
    said: list[str] = []
    tried: list[str] = []
    given = {
        "layers": lambda: [torch.nn.Linear(2, 2)],
        "trial": lambda: tried.append("x"),
        "earns": True,
        **changes,
    }
    compiled = compiling.start(wanted, given["layers"], given["trial"], said.append, earns=given["earns"])
    return compiled, said, tried


def test_when_it_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "missing", lambda: None)
    assert start(False)[1:] == ([], [])
    assert start("auto", earns=False)[1:] == ([], [])
    for wanted, earns in ((True, False), ("auto", True)):
        compiled, said, tried = start(wanted, earns=earns)
        assert compiled.active
        assert tried == ["x"]
        assert len(said) == 1
        assert said[0].startswith("Layers compiled in ")


def test_without_a_compiler_one_line_says_what_it_costs_and_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def none(*_: Any) -> str:
        raise torch._inductor.exc.InvalidCxxCompiler

    monkeypatch.setattr(torch._inductor.cpp_builder, "get_cpp_compiler", none)
    monkeypatch.setattr(compiling.sysconfig, "get_paths", lambda: {"include": "/nowhere"})
    compiled, said, tried = start()
    assert not compiled.active
    assert not tried
    assert len(said) == 1
    assert "slower" in said[0]
    assert "apt install g++" in said[0]
    assert "python3-dev" in said[0]


@pytest.mark.parametrize(
    "error", [RuntimeError("no luck\nand more"), ModelError("The layers weren't found.")]
)
def test_a_failure_leaves_everything_as_it_was(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    monkeypatch.setattr(compiling, "missing", lambda: None)
    layer = torch.nn.Linear(2, 2)

    def fail() -> None:
        assert layer._compiled_call_impl is not None
        raise error

    compiled, said, _ = start(trial=fail, layers=lambda: [layer])
    assert not compiled.active
    with compiled.on():
        assert layer._compiled_call_impl is None
    assert len(said) == 1
    assert "\n" not in said[0]
    assert "slower" in said[0]

    def no_layers() -> list[torch.nn.Module]:
        raise error

    assert not start(layers=no_layers)[0].active


def test_only_long_runs_earn_it() -> None:
    # 135M parameters: 4,000 rows of 148 tokens are minutes of training, 100 rows are seconds.
    assert compiling.worthwhile(135_000_000, 4000 * 148, CPU)
    assert not compiling.worthwhile(135_000_000, 100 * 148, CPU)


def test_the_trial_leaves_nothing_behind(tmp_path: Path) -> None:
    lines = []
    for name in ("with", "without"):
        torch.manual_seed(3)
        job = training(tmp_path / name, tiny_model("llama"))
        if name == "with":
            state = torch.random.get_rng_state()
            job.trial_pass()
            assert torch.equal(torch.random.get_rng_state(), state)
            assert all(p.grad is None for p in job.model.parameters())
        run_loop(job)
        lines.append([line["loss"] for line in job.run.metrics()])
    assert lines[0] == lines[1]


def test_compiled_layers_are_used_in_steps_alone(tmp_path: Path) -> None:
    job = training(tmp_path, valid=rows(400, (6, 12)))
    layers = list(decoder_layers(job.model))
    calls: list[bool] = []

    def watched(layer: torch.nn.Module) -> Any:
        return lambda *args, **kwargs: (
            calls.append(torch.is_grad_enabled()) or layer._call_impl(*args, **kwargs)
        )

    job.compiled = compiling.Compiled(layers)
    job.compiled._calls = [watched(layer) for layer in layers]
    run_loop(job)
    assert len(calls) == len(layers) * sum(len(step.microbatches) for plan in job.plans for step in plan)
    assert all(calls)  # never in validation
