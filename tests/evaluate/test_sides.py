"""Sides that stand on one base are answered from one load, exactly as from loads of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.evaluate.conftest import questions
from tests.families import save_tiny, tiny_tokenizer
from tunesmith.errors import UsageError
from tunesmith.evaluate import sides
from tunesmith.evaluate.answerers import Base
from tunesmith.evaluate.perplexity import answer_loss
from tunesmith.evaluate.sides import Sides, sides_of
from tunesmith.infer.config import Sampling
from tunesmith.infer.local import LocalModel, load
from tunesmith.model import native
from tunesmith.model.decode_native import why_not
from tunesmith.model.load import load_model
from tunesmith.model.peft_parts import LoraConfig, get_peft_model
from tunesmith.model.source import Source
from tunesmith.records import Completer, Completion

SCORED = Sampling(max_new_tokens=12, logprobs=1)
IN_CPP = native.supported() and native.compiler() is not None
# Ranks, layers and kinds that differ; no layer is tuned by all.
ADAPTERS: dict[str, dict[str, Any]] = {
    "attention": {"r": 3, "target_modules": ["q_proj", "v_proj"]},
    "all": {"r": 8, "lora_alpha": 4, "target_modules": "all-linear"},
    "inner": {"r": 5, "target_modules": ["down_proj"], "layers_to_transform": [1], "use_rslora": True},
    "directions": {"r": 4, "target_modules": ["o_proj", "up_proj"], "use_dora": True},
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base/, a llama that steps in C++ know, four adapters on it, and another/, which is none of them."""
    root = tmp_path_factory.mktemp("models")
    tokenizer = tiny_tokenizer("qwen2")
    config = LlamaConfig(
        vocab_size=len(tokenizer) + 3, hidden_size=64, intermediate_size=96, num_hidden_layers=2, head_dim=32,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.1,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(3)
        LlamaForCausalLM(config).save_pretrained(root / "base")
        tokenizer.save_pretrained(root / "base")
        for name, values in ADAPTERS.items():
            base = LlamaForCausalLM.from_pretrained(root / "base")
            tuned = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **values))
            for key, parameter in tuned.named_parameters():
                if "lora_B" in key:
                    parameter.data.normal_(std=0.2)
            tuned.save_pretrained(root / name)
    save_tiny("qwen2", root / "another")
    return root


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The folders whose weights were read."""
    found: list[str] = []

    def counted(base: Source, *words: Any, **more: Any) -> object:
        found.append(base.path.name)
        return load_model(base, *words, **more)

    monkeypatch.setattr(sides, "load_model", counted)
    return found


def of(models: Path, *names: str, dtype: str = "fp32", with_base: bool = False) -> Sides:
    paths = [str(models / name) for name in names]
    return sides_of(paths, {}, with_base=with_base, dtype=dtype, template=None, sampling=SCORED)


def said(side: Completer) -> tuple[list[Completion], list[float]]:
    """Its answers, each token with its log-probability, and the losses of the given ones."""
    rows = questions(5)
    answers = [replace(one[0], seconds=0.0) for one in side.complete([row.prompt for row in rows])]
    if isinstance(side, Base):
        with side.tuned.base():
            return answers, [loss.nll_sum for loss in answer_loss(side.tuned, rows)]
    assert isinstance(side, LocalModel)
    return answers, [loss.nll_sum for loss in answer_loss(side, rows)]


def in_turn(found: Sides) -> list[tuple[list[Completion], list[float]]]:
    """What everybody says, asked in the order of loads, by place."""
    by_place = {}
    for at in found.order:
        side = found.sides[at]
        by_place[at] = said(side() if callable(side) else side)
    return [by_place[at] for at in range(len(found.sides))]


@pytest.mark.parametrize(
    "dtype",
    ["fp32", pytest.param("bf16", marks=pytest.mark.skipif(not IN_CPP, reason="no steps in C++ here"))],
)
def test_one_load_answers_as_loads_of_their_own(models: Path, loads: list[str], dtype: str) -> None:
    names = ("attention", "base", "all", "inner", "directions")
    together = in_turn(of(models, *names, dtype=dtype))
    assert loads == ["base"]
    apart = [load(str(models / name), dtype=dtype, sampling=SCORED) for name in names]
    if dtype == "bf16":
        steps = [why_not(one.model.get_base_model() if one.adapter else one.model) for one in apart]
        assert [why is None for why in steps] == [True, True, True, True, False], "DoRA alone isn't for C++"
    assert together == [said(one) for one in apart]
    assert len({tuple(answer.text for answer in answers) for answers, _ in together}) == 5


def test_steps_in_cpp_are_taken_where_only_other_adapters_have_matrices(models: Path) -> None:
    if not IN_CPP:
        pytest.skip("no steps in C++ here")
    found = of(models, "attention", "all", dtype="bf16")
    side: Any = found.sides[0]
    assert why_not(side().model.get_base_model()) is None


def test_others_are_loaded_one_after_the_other(models: Path, loads: list[str]) -> None:
    found = of(models, "attention", "another", "base", "all")
    assert found.order == (0, 2, 3, 1)
    assert loads == [], "nothing is read before its turn"
    texts = [[answer.text for answer in answers] for answers, _ in in_turn(found)]
    assert loads == ["base", "another"]
    other = load(str(models / "another"), dtype="fp32", sampling=SCORED)
    assert texts[1] == [answer.text for answer in said(other)[0]]


def test_the_base_of_several_is_the_first_side(models: Path, loads: list[str]) -> None:
    found = of(models, "all", "inner", with_base=True)
    assert [Path(name).name for name in found.names] == ["base", "all", "inner"]
    answers = in_turn(found)
    assert loads == ["base"]
    base = load(str(models / "base"), dtype="fp32", sampling=SCORED)
    assert answers[0] == said(base)


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (("base", "another"), "None of these is a run"),
        (("all", "base"), "is the base itself"),
        (("all", "foreign"), "tuned from different bases"),
    ],
)
def test_a_base_that_cant_be_had(models: Path, names: Sequence[str], told: str) -> None:
    if "foreign" in names and not (models / "foreign").exists():
        base = load_model(Source("x", "folder", models / "another"), load(str(models / "another")).device)
        get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=2)).save_pretrained(models / "foreign")
    with pytest.raises(UsageError, match=told) as refused:
        of(models, *names, with_base=True)
    assert refused.value.fix


def test_an_adapter_with_more_than_matrices_gets_a_base_of_its_own(models: Path) -> None:
    if not (models / "special").exists():
        base = LlamaForCausalLM.from_pretrained(models / "base")
        config = LoraConfig(
            task_type="CAUSAL_LM", r=2, target_modules=["q_proj"], modules_to_save=["lm_head"]
        )
        get_peft_model(base, config).save_pretrained(models / "special")
    assert of(models, "all", "special", "inner").order == (0, 2, 1)
