"""A plan's arithmetic against what is there: parameters, tokens, files, memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import save_file

from tests.families import save_tiny, tiny_model
from tests.train.test_run import make_job
from tunesmith import api
from tunesmith.device import Device
from tunesmith.errors import DataError, ModelError, SettingsError, TrainError
from tunesmith.model import known, native
from tunesmith.model.adapters import trainable_count
from tunesmith.model.config import AdapterSettings
from tunesmith.model.describe import describe
from tunesmith.train import cards, checkpoint, dryrun, estimate, trial
from tunesmith.train.run import train

LORA = AdapterSettings.model_validate({"rank": 8})
CPU = Device(torch.device("cpu"), torch.float32, "")


@pytest.mark.parametrize("name", known.names())
def test_known_models_have_the_published_parameters(name: str) -> None:
    config = known.find(name + ("-it" if "gemma" in name else "-Instruct"))
    assert config is not None

    def parameters(layers: int) -> int:
        few = config | {"num_hidden_layers": layers}
        trained, total = trainable_count(dryrun.build(few, LORA, torch.bfloat16))
        return total - trained

    # All layers of these models are of one size.
    one, two = parameters(1), parameters(2)
    assert one + (config["num_hidden_layers"] - 1) * (two - one) == known.published(name)


@pytest.mark.parametrize(
    ("name", "next_smaller"),
    [
        ("Qwen/Qwen2.5-7B-Instruct", "Qwen/Qwen2.5-3B-Instruct"),
        ("meta-llama/Llama-3.1-8B-Instruct", "meta-llama/Llama-3.2-3B-Instruct"),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", None),
        ("someone/unknown", None),
    ],
)
def test_smaller_models_of_a_line(name: str, next_smaller: str | None) -> None:
    assert next(iter(known.smaller(name)), None) == next_smaller


@pytest.mark.parametrize("changes", [{}, {"data": {"packing": False}}, {"data": {"share_prefixes": False}}])
def test_counts_and_file_sizes_are_exact(tmp_path: Path, changes: dict[str, Any]) -> None:
    job = make_job(tmp_path, **changes)
    plan = api.plan(job, probe=False)
    run = train(job, tmp_path / "run")
    facts = run.job()
    assert (plan.sizes.parameters, plan.sizes.trained) == (facts["parameters"], facts["trainable"])
    assert plan.work.steps == facts["steps"]
    assert plan.work.exact
    lines = [line for line in run.metrics() if "loss" in line]
    assert plan.work.tokens == sum(line["tokens"] for line in lines)
    assert plan.work.computed == sum(line["unique_tokens"] for line in lines)
    assert plan.work.labels == sum(line["label_tokens"] for line in lines)
    folders = run.saved_steps()
    assert folders
    for folder in folders:
        taken = sum(file.stat().st_size for file in folder.iterdir())
        assert plan.disk["checkpoint"] == pytest.approx(taken, rel=0.15)
        assert (folder / checkpoint.WEIGHTS).stat().st_size == plan.disk["final"]


def test_the_size_of_a_file_is_exact(tmp_path: Path) -> None:
    shapes = {"b.weight": (3, 5), "a": (7,), "层": (1, 1, 2)}
    save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, tmp_path / "file")
    assert (tmp_path / "file").stat().st_size == estimate.checkpoint_bytes(shapes.items())


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "qwen3_moe"])
def test_families_have_a_plan(tmp_path: Path, family: str) -> None:
    template = {"template": "chatml"} if family == "gpt2" else {}
    plan = api.plan(make_job(tmp_path, family, data=template), probe=False)
    assert plan.fits
    assert plan.parts["activations"] > 0
    assert plan.seconds is not None
    assert json.loads(json.dumps(plan.to_json()))["fits"] is True


def test_a_step_of_shapes_grows_with_tokens_and_shrinks_with_recomputation() -> None:
    model = tiny_model("qwen2")
    config = model.config.to_dict()
    shapes = dryrun.build(config, LORA, torch.float32)
    one, two = (dryrun.run(shapes, tokens, 8, CPU) for tokens in (64, 128))
    again = dryrun.run(shapes, 128, 8, CPU, checkpointing=True)
    assert 0 < one.kept < two.kept < 2.2 * one.kept
    assert again.kept < two.kept / 2
    assert two.peak >= two.kept
    assert all(p.device.type == "meta" for p in shapes.parameters())


@pytest.mark.parametrize("family", ["qwen2", "gemma3"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_few_layers_tell_what_many_hold(family: str, checkpointing: bool) -> None:
    config = tiny_model(family).config.to_dict() | {"num_hidden_layers": 8}
    if "layer_types" in config:
        config["layer_types"] = (config["layer_types"] * 4)[:8]
    whole = dryrun.run(dryrun.build(config, LORA, torch.float32), 128, 8, CPU, checkpointing=checkpointing)
    few = dryrun.held(config, LORA, 128, 8, CPU, checkpointing=checkpointing)
    assert few.kept == pytest.approx(whole.kept, rel=0.01)
    assert few.peak == pytest.approx(whole.peak, rel=0.01)


def test_recomputing_takes_less_memory_and_more_time(tmp_path: Path) -> None:
    plain = api.plan(make_job(tmp_path), probe=False)
    again = api.plan(make_job(tmp_path, train={"checkpoint_activations": True}), probe=False)
    assert again.parts["activations"] < plain.parts["activations"]


@pytest.mark.skipif(not native.supported(), reason="needs a processor with products in bf16")
def test_compiled_layers_hold_less_with_the_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = make_job(tmp_path, train={"compile": True, "dtype": "bf16"})
    ours = api.plan(job, probe=False)
    monkeypatch.setattr(native, "supported", lambda: False)
    torchs = api.plan(job, probe=False)
    share = ours.parts["activations"] / torchs.parts["activations"]
    assert share == pytest.approx(estimate.KERNELS_ACTIVATIONS / estimate.COMPILED_ACTIVATIONS, rel=0.01)
    assert ours.parts["kernels"] == 0 < torchs.parts["kernels"]
    exact = api.plan(make_job(tmp_path, train={"compile": True, "dtype": "fp32"}), probe=False)
    assert exact.parts["activations"] > torchs.parts["activations"], "fp32 has no kernels"


def test_experts_that_a_token_does_not_choose_take_memory_but_no_time() -> None:
    model = tiny_model("qwen3_moe")
    found = estimate.sizes(model, False)
    experts = sum(p.numel() for n, p in model.named_parameters() if ".experts." in n)
    chosen = experts * model.config.num_experts_per_tok // model.config.num_experts
    rest = [m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear)]
    assert found.linear == sum(rest) - found.head + chosen
    assert found.parameters == model.num_parameters()


def test_by_config_alone_lengths_are_guessed(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    folder = tmp_path / "config"
    folder.mkdir()
    (folder / "config.json").write_bytes((tmp_path / "model" / "config.json").read_bytes())
    plan = api.plan(make_job(tmp_path, model=str(folder)))
    assert (plan.origin, plan.work.exact, plan.probe) == ("config.json", False, None)
    assert plan.sizes == api.plan(job, probe=False).sizes
    assert plan.disk["download"] == 2 * plan.sizes.parameters


def test_an_unknown_model_is_named_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="someone/unknown") as told:
        api.plan(make_job(tmp_path, model="someone/unknown"))
    assert "config.json" in told.value.fix


def test_a_7b_model_on_a_card_by_arithmetic_alone(tmp_path: Path) -> None:
    job = make_job(tmp_path, model="Qwen/Qwen2.5-7B-Instruct", train={"dtype": "bf16"})
    plan = api.plan(job, card="4090")
    assert (plan.origin, plan.target.name, plan.fits) == ("built-in table", "RTX 4090", True)
    # 7.6 billion bf16 weights.
    assert plan.parts["weights"] == pytest.approx(2 * 7_615_616_512, rel=0.01)
    assert plan.seconds is not None
    assert api.plan(job, memory="24GB").seconds is None


@pytest.mark.parametrize(
    ("adapter", "words"),
    [
        ({}, ["quantization.type=nf4"]),
        pytest.param({"type": "full"}, ["adapter.type=lora"], marks=pytest.mark.slow),
    ],
)
def test_a_job_that_does_not_fit_comes_with_one_that_does(
    tmp_path: Path, adapter: dict[str, Any], words: list[str]
) -> None:
    card = "4060" if not adapter else "4090"
    changes = {"model": "Qwen/Qwen2.5-7B-Instruct", "adapter": adapter, "train": {"dtype": "bf16"}}
    job = make_job(tmp_path, **changes)
    plan = api.plan(job, card=card)
    assert not plan.fits
    assert plan.fitting is not None
    assert set(words) <= set(plan.fitting)
    changed = [w.partition("=") for w in plan.fitting]
    assert all(found for _, found, _ in changed)
    assert api.plan(job, *plan.fitting, card=card).fits


def test_three_real_steps_replace_the_estimates(tmp_path: Path) -> None:
    told: list[str] = []
    plan = api.plan(make_job(tmp_path), note=told.append)
    assert plan.probe is not None
    assert plan.probe.tokens > 0
    assert psutil.Process().memory_info().rss / 3 < plan.peak < plan.target.memory
    assert plan.seconds is not None
    assert plan.seconds["steps"] == pytest.approx(plan.probe.seconds_per_token * plan.work.laid)
    assert [line for line in told if "step 3 of 3" in line]
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow  # a process that imports torch; the next one is the same without
def test_a_trial_that_fails_says_why(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    (tmp_path / "train.jsonl").unlink()
    with pytest.raises(Exception, match=r"train\.jsonl") as told:
        trial.measure(job, lambda _: None)
    assert told.value.exit_code == DataError("").exit_code


def test_a_trial_that_is_killed_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial.sys, "executable", "/bin/false")
    with pytest.raises(TrainError, match="code 1"):
        trial.measure(make_job(tmp_path), lambda _: None)


def test_cards_by_their_names() -> None:
    assert cards.find("NVIDIA GeForce RTX 4090") == cards.find("4090") == cards.find("rtx_4090")
    with pytest.raises(SettingsError, match="4090"):
        cards.find("4091")
    assert [cards.parse_memory(text) for text in ("24GB", "24 GiB", "24", "512mb")] == [
        24 * 2**30, 24 * 2**30, 24 * 2**30, 512 * 2**20,
    ]  # fmt: skip
    for text in ("", "0", "much", "24 XB"):
        with pytest.raises(SettingsError, match="memory"):
            cards.parse_memory(text)


def test_where_a_model_is_found(tmp_path: Path) -> None:
    here = save_tiny("llama", tmp_path / "llama")
    assert describe(str(here)).origin == "here"
    assert describe("Qwen/Qwen3-8B").origin == "built-in table"
    with pytest.raises(ModelError):
        describe(str(tmp_path / "nothing"))
