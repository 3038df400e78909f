"""Adapters that are refused with every reason, and those that are trained further."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from tests.families import save_tiny, tiny_model
from tests.model.tuning import logits, prepare, save, trained, trained_names
from tunesmith.errors import ModelError
from tunesmith.model import adapters, saved
from tunesmith.model.load import fingerprint
from tunesmith.model.source import resolve

# Plain peft asks transformers for a property by its old name; nothing here can change that.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing. is deprecated:FutureWarning")


def change_config(folder: Path, **values: Any) -> None:
    config = json.loads((folder / saved.CONFIG).read_text(encoding="utf-8"))
    (folder / saved.CONFIG).write_text(json.dumps({**config, **values}), encoding="utf-8")


def refused(model: PreTrainedModel, folder: Path, **values: Any) -> ModelError:
    with pytest.raises(ModelError) as caught:
        adapters.attach(model, folder, **values)
    assert caught.value.fix
    return caught.value


def test_another_base_lists_every_tensor_that_does_not_fit(base, tmp_path):
    folder = save(prepare(base("llama"), targets=["q_proj", "down_proj"]), tmp_path / "adapter")
    error = refused(base("mistral"), folder)
    assert "belongs to another base" in error.what
    # widths 48 -> 72 and 88 -> 100; q: 48 inputs and outputs, down: 88 inputs and 48 outputs
    assert len(error.details) == 3 * 4
    assert "model.layers.0.self_attn.q_proj: 48 inputs in the adapter, 72 in the base" in error.details
    assert "model.layers.2.mlp.down_proj: 48 outputs in the adapter, 72 in the base" in error.details
    assert "llama" in error.fix
    error = refused(base("gpt2"), folder)
    assert "model.layers.0.self_attn.q_proj: the base has no such layer" in error.details
    assert not isinstance(base("gpt2"), PeftModel)


def test_another_base_of_the_same_shape_is_told_by_its_fingerprint(base, folders, tmp_path):
    mark = fingerprint(resolve(str(folders["llama"])))
    folder = save(prepare(base()), tmp_path / "adapter", base_fingerprint=mark)
    other = fingerprint(resolve(str(save_tiny("llama", tmp_path / "other", seed=1))))
    error = refused(base(), folder, base_fingerprint=other)
    assert mark[:12] in error.what
    assert other[:12] in error.what
    adapters.attach(base(), folder, base_fingerprint=mark)


def test_folders_without_an_adapter(base, tmp_path, folders):
    assert "doesn't exist" in refused(base(), tmp_path / "nowhere").what
    (tmp_path / "empty").mkdir()
    assert "has no adapter_config.json" in refused(base(), tmp_path / "empty").what
    assert "it is a whole model" in refused(base(), folders["llama"]).what
    folder = save(prepare(base()), tmp_path / "adapter")
    (folder / saved.WEIGHTS).rename(folder / "adapter_model.bin")
    assert "only pickled weights (adapter_model.bin)" in refused(base(), folder).what
    (folder / "adapter_model.bin").unlink()
    assert "has no adapter_model.safetensors" in refused(base(), folder).what


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"peft_type": "IA3"}, "type 'IA3'"),
        ({"peft_type": None}, "type None"),
        ({"megatron_config": {}, "megatron_core": "os"}, "Megatron"),
        ({"r": "three"}, "can't be read"),
    ],
)
def test_configs_that_are_refused(base, tmp_path, change, words):
    folder = save(prepare(base()), tmp_path / "adapter")
    change_config(folder, **change)
    assert words in str(refused(base(), folder))


def test_a_damaged_config_and_damaged_weights(base, tmp_path):
    folder = save(prepare(base()), tmp_path / "adapter")
    weights = (folder / saved.WEIGHTS).read_bytes()
    (folder / saved.WEIGHTS).write_bytes(weights[:-10])
    assert "cut off" in str(refused(base(), folder))
    tensors = load_file(save(prepare(base()), tmp_path / "whole") / saved.WEIGHTS)
    lost = sorted(tensors)[0]
    del tensors[lost]
    save_file(tensors, folder / saved.WEIGHTS)
    assert refused(base(), folder).details == (f"{lost}: missing in the file",)
    (folder / saved.CONFIG).write_text("{", encoding="utf-8")
    assert "can't be read" in str(refused(base(), folder))


def test_training_goes_on_with_an_earlier_adapter(base, tmp_path):
    tuned = trained(prepare(base()))
    run = tmp_path / "run"
    run.mkdir()
    save(tuned, run / "adapter")
    change_config(run / "adapter", base_model_name_or_path="/another/machine", revision="old")
    for place in (run, run / "adapter"):
        again = prepare(base(), continue_from=str(place), dropout=0.5)
        assert trained_names(again) == trained_names(tuned)
        assert torch.equal(logits(again.eval()), logits(tuned))
        assert again.base_model.model.model.layers[0].mlp.up_proj.lora_dropout["default"].p == 0.5
    before = {n: p.detach().clone() for n, p in again.named_parameters() if p.requires_grad}
    trained(again)
    assert not any(torch.equal(p, before[n]) for n, p in again.named_parameters() if n in before)
    folder = save(again, tmp_path / "second")
    torch.testing.assert_close(
        logits(AutoPeftModelForCausalLM.from_pretrained(folder)), logits(again), atol=1e-5, rtol=0
    )
    # a small step is kept: the adapter is fp32
    assert {t.dtype for t in load_file(folder / saved.WEIGHTS).values()} == {torch.float32}


def test_a_job_that_differs_from_the_adapter_is_refused_with_every_difference(base, tmp_path):
    folder = save(prepare(base(), targets=["q_proj", "v_proj"], rslora=True), tmp_path / "adapter")
    with pytest.raises(ModelError) as caught:
        prepare(base(), continue_from=str(folder), rank=4, alpha=8, type="dora", targets=["q_proj"])
    assert caught.value.details == (
        "type: the adapter has lora, the job dora",
        "rank: the adapter has 3, the job 4",
        "alpha: the adapter has 5, the job 8",
        "rslora: the adapter has true, the job false",
        "targets: the adapter has [q_proj,v_proj], the job [q_proj]",
    )
    assert (
        "adapter.rank=3, adapter.alpha=5, adapter.rslora=true, adapter.targets=[q_proj,v_proj]"
        in caught.value.fix
    )


def test_a_pissa_adapter_is_continued_as_the_lora_that_it_is_kept_as(base, tmp_path):
    settings = {"init": "pissa", "rank": 3, "alpha": 5}
    folder = save(trained(prepare(base(), **settings)), tmp_path / "adapter")
    meta = json.loads((folder / saved.META).read_text(encoding="utf-8"))
    (folder / saved.META).write_text(json.dumps({**meta, "adapter": settings}), encoding="utf-8")
    with pytest.raises(ModelError, match=r"trained with init=pissa, rank 3, alpha 5.*plain LoRA") as caught:
        prepare(base(), continue_from=str(folder), **settings)
    assert "adapter.rank=6, adapter.alpha=10, adapter.init=default" in caught.value.fix
    prepare(base(), continue_from=str(folder), rank=6, alpha=10)


def test_continuing_on_another_base_is_refused_by_fingerprint_and_by_shape(base, tmp_path):
    folder = save(prepare(base()), tmp_path / "adapter")
    with pytest.raises(ModelError, match="trained on another base: llama"):
        prepare(base(), mark="e" * 64, continue_from=str(folder))
    (folder / saved.META).unlink()  # an adapter of plain peft has no fingerprint
    prepare(base(), mark="e" * 64, continue_from=str(folder))
    with pytest.raises(ModelError, match="belongs to another base") as caught:
        prepare(tiny_model("phi3"), continue_from=str(folder))
    assert "model.layers.0.self_attn.q_proj: the base has no such layer" in caught.value.details


@pytest.mark.parametrize("kind", [{"type": "full"}, {"type": "freeze", "last_layers": 1}], ids=str)
def test_full_does_not_continue_an_adapter(base, kind):
    with pytest.raises(ModelError, match="goes with lora and dora"):
        prepare(base(), continue_from="runs/earlier", **kind)


def test_a_pissa_adapter_is_continued_as_the_lora_it_was_saved_as(base, tmp_path):
    tuned = trained(prepare(base(), init="pissa"))
    folder = save(tuned, tmp_path / "adapter")
    with pytest.raises(ModelError, match="differs from the job") as caught:
        prepare(base(), init="pissa", continue_from=str(folder))
    assert caught.value.details == (
        "rank: the adapter has 6, the job 3",
        "alpha: the adapter has 10, the job 5",
        "init: the adapter has default, the job pissa",
    )
    again = prepare(base(), rank=6, alpha=10, continue_from=str(folder))
    torch.testing.assert_close(logits(again.eval()), logits(tuned), atol=2e-5, rtol=0)


@pytest.mark.parametrize("bias", ["lora_only", "all"])
def test_an_adapter_with_biases_is_refused_for_that_reason(base, tmp_path, bias):
    model = get_peft_model(base("qwen2"), LoraConfig(r=2, bias=bias, target_modules=["q_proj"]))
    model.save_pretrained(tmp_path / "adapter")
    error = refused(base("qwen2"), tmp_path / "adapter")
    assert f"bias: {bias}" in error.what
    with pytest.raises(ModelError, match=f"bias: {bias}"):
        prepare(base("qwen2"), continue_from=str(tmp_path / "adapter"), rank=2)
