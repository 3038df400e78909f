"""What was tuned comes back: with plain peft, with plain transformers, merged into its base."""

from __future__ import annotations

import json

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.families import FAMILIES, tiny_tokenizer
from tests.model.tuning import BF16, FP32, logits, prepare, save, trained, trained_names
from tunesmith.errors import ModelError
from tunesmith.model import adapters, saved
from tunesmith.model.load import load_model
from tunesmith.model.source import resolve

# Plain peft asks transformers for a property by its old name; nothing here can change that.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing. is deprecated:FutureWarning")

# DoRA of every family is among the slow tests.
FAMILY_TYPES = [
    *((family, "lora") for family in FAMILIES),
    *(pytest.param(name, "dora", marks=() if name == FAMILIES[0] else pytest.mark.slow) for name in FAMILIES),
]


@pytest.mark.parametrize(("family", "kind"), FAMILY_TYPES)
def test_an_adapter_reloads_with_plain_peft_and_merges_to_the_same_model(
    base, folders, family, kind, tmp_path
):
    tuned = trained(prepare(base(family), type=kind))
    expected, untouched = logits(tuned), logits(base(family))
    assert (expected - untouched).abs().max() > 1e-2  # there is something to lose
    folder = save(tuned, tmp_path / "adapter", family)

    plain = AutoPeftModelForCausalLM.from_pretrained(folder)
    torch.testing.assert_close(logits(plain), expected, atol=1e-5, rtol=0)
    assert plain.peft_config["default"].base_model_name_or_path == str(folders[family])
    torch.testing.assert_close(logits(plain.merge_and_unload()), expected, atol=1e-4, rtol=0)

    again = adapters.attach(base(family), folder)
    assert torch.equal(logits(again), logits(adapters.attach(base(family), tmp_path)))  # a run's folder
    torch.testing.assert_close(logits(again), expected, atol=1e-5, rtol=0)
    assert not again.training
    assert adapters.trainable_count(again)[0] == 0

    # off: the base answers; and on again
    with adapters.adapter_off(again):
        assert torch.equal(logits(again), untouched)
    torch.testing.assert_close(logits(again), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter_in_bf16_comes_back_bit_for_bit(base, family, tmp_path):
    tuned = trained(prepare(base(family, BF16)))
    folder = save(tuned, tmp_path / "adapter", family)
    assert {t.dtype for t in load_file(folder / saved.WEIGHTS).values()} == {torch.float32}
    assert torch.equal(logits(adapters.attach(base(family, BF16), folder)), logits(tuned))


@pytest.mark.parametrize(
    ("family", "init", "rslora"),
    [("llama", "pissa", False), ("qwen2", "pissa_niter_8", True), ("gpt2", "pissa", True)],
)
def test_pissa_is_saved_so_that_it_fits_the_original_base(base, family, init, rslora, tmp_path):
    untouched = logits(base(family))
    tuned = prepare(base(family), init=init, rslora=rslora)
    torch.testing.assert_close(logits(tuned), untouched, atol=2e-5, rtol=0)
    names, state = trained_names(tuned), torch.get_rng_state()
    early = save(tuned, tmp_path / "early", family)
    # saving in the middle of a training leaves the training as it was
    assert trained_names(tuned) == names
    assert torch.equal(torch.get_rng_state(), state)
    trained(tuned)
    expected = logits(tuned)
    assert (expected - untouched).abs().max() > 1e-2

    # the base's answers, although PiSSA has taken a part out of its weights
    with adapters.adapter_off(tuned):
        torch.testing.assert_close(logits(tuned), untouched, atol=2e-5, rtol=0)
    assert torch.equal(logits(tuned), expected)

    folder = save(tuned, tmp_path / "adapter", family)
    plain = AutoPeftModelForCausalLM.from_pretrained(folder)
    torch.testing.assert_close(logits(plain), expected, atol=2e-5, rtol=0)
    torch.testing.assert_close(logits(plain.merge_and_unload()), expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(logits(adapters.attach(base(family), folder)), expected, atol=2e-5, rtol=0)
    torch.testing.assert_close(logits(adapters.attach(base(family), early)), untouched, atol=2e-5, rtol=0)

    assert torch.equal(logits(tuned), expected)
    assert not (folder / "start").exists()


@pytest.mark.parametrize("values", [{"type": "full"}, {"type": "freeze", "last_layers": 1}], ids=str)
@pytest.mark.parametrize("device", [FP32, BF16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_whole_model_reloads_with_plain_transformers(base, family, device, values, tmp_path):
    tuned = trained(prepare(base(family, device), **values))
    folder = save(tuned, tmp_path / "model", family)
    assert not list(folder.glob("*.bin"))
    plain = AutoModelForCausalLM.from_pretrained(folder)
    for name, tensor in tuned.state_dict().items():
        assert torch.equal(plain.state_dict()[name].float(), tensor.float()), name
    tied = tuned.config.tie_word_embeddings
    assert (plain.get_output_embeddings().weight is plain.get_input_embeddings().weight) == tied
    if device is FP32:
        assert torch.equal(logits(plain), logits(tuned))
    ours = load_model(resolve(str(folder)), FP32)
    assert torch.equal(logits(ours), logits(plain.float()))


def test_the_folder_has_what_a_person_needs(base, tmp_path):
    folder = save(trained(prepare(base("qwen2"))), tmp_path / "adapter", "qwen2", adapter={"rank": 3})
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.chat_template == tiny_tokenizer("qwen2").chat_template
    assert json.loads((folder / "tunesmith.json").read_text(encoding="utf-8"))["adapter"] == {"rank": 3}
    assert not (folder / "README.md").exists()
    config = json.loads((folder / saved.CONFIG).read_text(encoding="utf-8"))
    assert config["target_modules"] == sorted(config["target_modules"])
    assert config["task_type"] == "CAUSAL_LM"


def test_a_hub_models_adapter_names_the_hub_and_its_revision(base, tmp_path):
    model = base()
    model.name_or_path = model.config._name_or_path = "org/tiny"  # as load_model does for a hub model
    folder = save(prepare(model), tmp_path / "adapter", kind="hub", revision="abc")
    config = json.loads((folder / saved.CONFIG).read_text(encoding="utf-8"))
    assert (config["base_model_name_or_path"], config["revision"]) == ("org/tiny", "abc")


@pytest.mark.parametrize(
    ("values", "writer", "lost"),
    [
        ({}, "peft.peft_model.safe_save_file", "base_model.model.model.layers.1.mlp.up_proj.lora_A.weight"),
        (
            {"init": "pissa"},
            "peft.peft_model.safe_save_file",
            "base_model.model.model.layers.1.mlp.up_proj.lora_A.weight",
        ),
        ({"type": "full"}, "transformers.modeling_utils.safe_save_file", "model.layers.1.mlp.up_proj.weight"),
    ],
)
@pytest.mark.parametrize("harm", ["differs", "missing"])
def test_a_save_that_went_wrong_is_noticed(base, tmp_path, monkeypatch, values, writer, lost, harm):
    """The writing function is replaced by one that loses or changes one tensor, as a bad disk would."""
    tuned = trained(prepare(base(), **values))

    def write(tensors, file, metadata=None):
        tensors = {name: tensor.clone() for name, tensor in tensors.items()}
        if harm == "differs":
            tensors[lost][0, 0] += 1e-3
        else:
            del tensors[lost]
        save_file(tensors, file, metadata)

    monkeypatch.setattr(writer, write)
    with pytest.raises(ModelError) as caught:
        save(tuned, tmp_path / "tuned")
    assert any(lost in detail for detail in caught.value.details)


def test_sampling_settings_that_transformers_refuses_do_not_end_a_training(base, tmp_path):
    model = base()
    model.generation_config.num_return_sequences = 4  # without sampling or beams: saving this raises
    tuned = prepare(model, type="full")
    with pytest.raises(ValueError):
        model.generation_config.validate(strict=True)
    folder = save(tuned, tmp_path / "model")
    assert "eos_token_id" in json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
