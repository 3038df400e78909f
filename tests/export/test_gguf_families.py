"""Every family through llama.cpp and back: the same scores, or the mistake is seen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFReader
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GPT2Config, PretrainedConfig

from tests.export.gguf_models import DIMENSIONS, reference, save_gguf_tiny, write
from tests.infer.made_run import CPU
from tunesmith.errors import ModelError, RunError
from tunesmith.export import gguf_families, gguf_pre, gguf_write
from tunesmith.export.figures import Distance, distance
from tunesmith.export.gguf_families import FAMILIES, family_of
from tunesmith.export.llamacpp import LlamaCpp
from tunesmith.model.load import load_model, load_tokenizer
from tunesmith.model.source import resolve

NAMES = {"gemma3": "gemma3_text"}
STEP = {"f32": 2**-8, "q8_0": 1 / 127, "q5_1": 1 / 31, "q5_0": 1 / 15, "q4_1": 1 / 15, "q4_0": 1 / 7}
"""The largest error of a number, as a part of the largest in its block; bf16 is what it's read back as."""


@pytest.fixture(autouse=True)
def few_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_pre, "_TEXTS", 200)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("tiny")
    return {family: save_gguf_tiny(family, place / family) for family in DIMENSIONS}


def drift(folder: Path, file: Path) -> Distance:
    """llama.cpp's scores against transformers'."""
    _, ids, wanted = reference(folder)
    with LlamaCpp(file, room=128) as model:
        return distance(wanted, [model.logits(one) for one in ids])


@pytest.mark.parametrize("family", DIMENSIONS)
def test_llamacpp_computes_what_transformers_computes(
    folders: dict[str, Path], family: str, tmp_path: Path
) -> None:
    written = write(folders[family], tmp_path / "a.gguf")
    assert written.bytes == (tmp_path / "a.gguf").stat().st_size
    found = drift(folders[family], tmp_path / "a.gguf")
    assert found.mean_kl < 1e-5
    assert found.top1 > 0.98


MISTAKES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("q and k as they are", {"change": FAMILIES["qwen2"].change}),
    "qwen2": ("q and k reordered", {"change": FAMILIES["llama"].change}),
    "qwen3": ("q and k reordered", {"change": FAMILIES["llama"].change}),
    "gemma2": ("norms as they are", {"change": FAMILIES["qwen2"].change}),
    "gemma3": ("norms as they are", {"change": FAMILIES["qwen2"].change}),
    "phi3": ("norms plus one", {"change": FAMILIES["gemma2"].change}),
}


@pytest.mark.parametrize("family", MISTAKES)
def test_a_wrong_tensor_is_over_the_budget(
    folders: dict[str, Path], family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = NAMES.get(family, family)
    monkeypatch.setitem(FAMILIES, name, replace(FAMILIES[name], **MISTAKES[family][1]))
    write(folders[family], tmp_path / "a.gguf")
    assert drift(folders[family], tmp_path / "a.gguf").mean_kl > 5e-3


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_a_wrong_rope_base_is_over_the_budget(
    folders: dict[str, Path], family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = gguf_families.rope_of
    monkeypatch.setattr(
        gguf_families,
        "rope_of",
        lambda config: right(config) | {"rope_theta": right(config)["rope_theta"] / 50},
    )
    write(folders[family], tmp_path / "a.gguf")
    assert drift(folders[family], tmp_path / "a.gguf").mean_kl > 1e-3


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "linear", "factor": 3.0, "rope_theta": 5000.0},
        {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
         "original_max_position_embeddings": 24, "rope_theta": 700.0},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 700.0},
    ],
    ids=lambda rope: str(rope["rope_type"]),
)  # fmt: skip
def test_scaled_positions(rope: dict[str, Any], tmp_path: Path) -> None:
    folder = save_gguf_tiny("llama", tmp_path / "model", rope_parameters=rope, head_dim=32)
    write(folder, tmp_path / "a.gguf")
    assert drift(folder, tmp_path / "a.gguf").mean_kl < 1e-5


def test_biases_and_an_output_of_its_own(tmp_path: Path) -> None:
    folder = save_gguf_tiny("llama", tmp_path / "model", attention_bias=True, mlp_bias=True)
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.5, generator=torch.Generator().manual_seed(1))
    model.save_pretrained(folder)
    write(folder, tmp_path / "a.gguf")
    assert drift(folder, tmp_path / "a.gguf").mean_kl < 1e-5


@pytest.mark.parametrize("family", DIMENSIONS)
def test_chat_reads_back_what_was_written(
    folders: dict[str, Path], family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _read_back(folders[family], "q8_0", tmp_path, monkeypatch)


@pytest.mark.parametrize("kind", ["q4_0", "q4_1", "q5_0", "q5_1", "f16", "bf16", "f32"])
def test_every_type_is_within_its_rounding(
    folders: dict[str, Path], kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _read_back(folders["qwen2"], kind, tmp_path, monkeypatch)


def _read_back(folder: Path, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESMITH_HOME", str(tmp_path / "home"))
    file = tmp_path / "alone" / "mistral-tiny.gguf"
    file.parent.mkdir()
    write(folder, file, kind, name="mistral-tiny")
    source = resolve(str(file))
    wanted = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()
    found = load_model(source, CPU).state_dict()
    assert wanted.keys() == found.keys()
    for name, tensor in wanted.items():
        # A block of 32 lies in a row, which may have been reordered with its heads, but not mixed.
        largest = tensor.abs().amax(dim=-1, keepdim=True)
        allowed = STEP.get(kind, 2**-8) * largest + tensor.abs() * 2**-7 + 1e-6
        assert ((found[name] - tensor).abs() <= allowed).all(), name
    tokenizer, own = load_tokenizer(source), AutoTokenizer.from_pretrained(folder)
    assert tokenizer.chat_template == own.chat_template
    if folder.name.startswith("gemma"):
        return  # transformers builds SentencePiece's rules for any gemma; these tiny ones have bytes
    text = "图书馆 opens at 8:30" + "".join(own.all_special_tokens)
    assert tokenizer(text)["input_ids"] == own(text)["input_ids"]


def test_what_stays_wide(folders: dict[str, Path], tmp_path: Path) -> None:
    write(folders["llama"], tmp_path / "own.gguf", "q4_0")
    write(folders["qwen2"], tmp_path / "tied.gguf", "q4_0")
    own, tied = _types(tmp_path / "own.gguf"), _types(tmp_path / "tied.gguf")
    assert own["output.weight"] == "Q8_0"
    assert own["token_embd.weight"] == "Q4_0"
    assert "output.weight" not in tied
    assert tied["token_embd.weight"] == "Q8_0"
    assert {own[f"blk.0.{name}.weight"] for name in ("attn_q", "ffn_down")} == {"Q4_0"}
    assert {own["output_norm.weight"], tied["blk.1.attn_q.bias"], tied["blk.0.ffn_norm.weight"]} == {"F32"}


def test_rows_that_are_no_multiple_of_32_are_named(tmp_path: Path) -> None:
    folder = save_gguf_tiny("llama", tmp_path / "model", intermediate_size=100)
    written = write(folder, tmp_path / "a.gguf", "q8_0")
    assert _types(tmp_path / "a.gguf")["blk.1.ffn_down.weight"] == "F16"
    assert any("3 matrices are written as F16" in note and "blk.0.ffn_down" in note for note in written.notes)
    assert drift(folder, tmp_path / "a.gguf").mean_kl < 5e-3


def test_a_matrix_is_written_in_parts_as_whole(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(folders["phi3"], tmp_path / "whole.gguf", "q5_1")
    monkeypatch.setattr(gguf_write, "_ROWS_BYTES", 1)
    write(folders["phi3"], tmp_path / "parts.gguf", "q5_1")
    assert (tmp_path / "whole.gguf").read_bytes() == (tmp_path / "parts.gguf").read_bytes()


@pytest.mark.parametrize(
    ("family", "change", "why"),
    [
        (
            "llama",
            {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
            "'dynamic'",
        ),
        ("llama", {"hidden_act": "relu"}, "'relu'"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "rope_theta": 1e4, "beta_fast": 16}},
            "beta_fast",
        ),
        ("gemma3", {"layer_types": ["full_attention"] * 3}, "takes for granted"),
        ("gemma2", {"query_pre_attn_scalar": 10}, "scales scores"),
        (
            "gemma3",
            {"layer_types": ["full_attention", "sliding_attention", "full_attention"]},
            "isn't regular",
        ),
        ("qwen2", {"layer_types": ["sliding_attention"] * 3, "sliding_window": 4}, "sliding window"),
    ],
)
def test_what_llamacpp_computes_otherwise_is_refused(
    folders: dict[str, Path], family: str, change: dict[str, Any], why: str
) -> None:
    config = AutoConfig.from_pretrained(folders[family])
    for name, value in change.items():
        setattr(config, name, value)
    with pytest.raises(ModelError) as refused:
        family_of(config)
    assert why in str(refused.value)


def test_another_family_is_refused_with_those_there_are() -> None:
    config: PretrainedConfig = GPT2Config()
    with pytest.raises(ModelError, match="gpt2") as refused:
        family_of(config)
    assert all(family in refused.value.what for family in FAMILIES)


def test_a_short_window_is_the_context_that_is_promised(tmp_path: Path) -> None:
    folder = save_gguf_tiny("mistral", tmp_path / "model", sliding_window=64)
    written = write(folder, tmp_path / "a.gguf")
    assert any("context is given as 64" in note for note in written.notes)
    with LlamaCpp(tmp_path / "a.gguf", room=8) as model:
        assert model.metadata["llama.context_length"] == "64"


@pytest.mark.parametrize("value", [float("nan"), 1e6])
def test_numbers_that_a_type_can_t_hold_are_refused(tmp_path: Path, value: float) -> None:
    folder = save_gguf_tiny("llama", tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 4] = value
    model.save_pretrained(folder)
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.up_proj"):
        write(folder, tmp_path / "a.gguf", "f16")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_full_disk_is_told_first(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf_write, "free_space", lambda _: 2**20)
    with pytest.raises(RunError, match=r"needs .* GiB, but 0.00 GiB are free"):
        write(folders["llama"], tmp_path / "a.gguf")
    assert not list(tmp_path.iterdir())


def test_a_damaged_file_ends_in_a_message(folders: dict[str, Path], tmp_path: Path) -> None:
    file = tmp_path / "a.gguf"
    write(folders["llama"], file)
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])
    with pytest.raises(ModelError, match="can't load the file") as refused, LlamaCpp(file):
        pass
    assert refused.value.details


def _types(file: Path) -> dict[str, str]:
    return {tensor.name: tensor.tensor_type.name for tensor in GGUFReader(file).tensors}
