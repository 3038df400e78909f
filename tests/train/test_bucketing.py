"""Families that can't be packed: batched by length, with the gradients of single rows, whatever is padded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from tests.families import tiny_tokenizer
from tests.model.tuning import prepare
from tests.train.test_equality import alone, assert_same, gradients, rows
from tests.train.test_run import make_job
from tests.train.test_sharing import Notes
from tunesmith.data.batch import Batch, collate
from tunesmith.data.pack import plan_epoch
from tunesmith.model.families import can_pack
from tunesmith.train.objectives import sft
from tunesmith.train.run import train

TINY = {
    "hidden_size": 48, "intermediate_size": 72, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 205, "max_position_embeddings": 512, "initializer_range": 0.1,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
MIXED = {"head_dim": 16, "layer_types": ["linear_attention", "full_attention"]}
FAMILIES: dict[str, dict[str, Any]] = {
    "mamba": {"state_size": 5},
    "qwen3_5_text": MIXED,
    "lfm2": {"layer_types": ["conv", "full_attention"]},
}
MORE: dict[str, dict[str, Any]] = {
    "mamba2": {"num_heads": 12, "head_dim": 8, "n_groups": 2, "state_size": 6, "chunk_size": 16},
    "falcon_mamba": {"state_size": 5},
    "recurrent_gemma": {"lru_width": 48, "head_dim": 12, "num_hidden_layers": 4},
    "granitemoehybrid": {
        "layer_types": ["mamba", "attention"], "mamba_n_heads": 12, "mamba_d_head": 8, "mamba_d_state": 6,
        "mamba_n_groups": 1, "num_local_experts": 0, "num_experts_per_tok": 0, "shared_intermediate_size": 40,
    },
    "qwen3_next": {
        **MIXED, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
        "shared_expert_intermediate_size": 24,
    },
}  # fmt: skip


def build(family: str, **changes: Any) -> PreTrainedModel:
    config = AutoConfig.for_model(family, **{**TINY, **{**FAMILIES, **MORE}[family], **changes})
    torch.manual_seed(1)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).train()


def widened(batch: Batch, extra: int) -> Batch:
    """The same rows with more padding on the right."""
    width = batch.input_ids.shape[1]
    assert batch.attention_mask is not None
    return replace(
        batch,
        input_ids=F.pad(batch.input_ids, (0, extra), value=3),
        position_ids=F.pad(batch.position_ids, (0, extra)),
        attention_mask=F.pad(batch.attention_mask, (0, extra)),
        keep=batch.keep // width * (width + extra) + batch.keep % width,
    )


@pytest.mark.parametrize(
    "family", [*FAMILIES, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE)]
)
def test_rows_batched_by_length_equal_single_rows(family: str) -> None:
    model = build(family)
    possible, why = can_pack(model.config)
    assert not possible
    assert family in why
    examples = rows(205, (5, 23, 11, 40, 9))
    wanted = alone(model, examples)
    [step] = plan_epoch(
        [len(e.input_ids) for e in examples], epoch=0, seed=1, tokens_per_step=None, rows_per_step=5,
        microbatch_tokens=64, microbatch_rows=None, packing=False,
    )  # fmt: skip
    groups = [[examples[row] for row in part] for part in step.microbatches]
    assert 1 < len(groups) < 5
    assert_same(gradients(model, groups, packing=False, pad_id=3), wanted)
    # All in one, and 17 tokens of padding beyond the longest: nothing changes.
    model.zero_grad(set_to_none=True)
    loss, count = sft().loss(model, widened(collate(examples, packing=False, pad_id=0), 17))
    (loss / count).backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    assert_same((float(loss.detach()) / count, found), wanted)


def test_lora_on_all_layers_of_mamba_leaves_the_one_that_its_kernels_read() -> None:
    tuned = prepare(build("mamba"))
    names = {
        n.partition(".lora_")[0].rpartition(".")[2] for n, p in tuned.named_parameters() if p.requires_grad
    }
    assert names == {"in_proj", "x_proj", "dt_proj"}


def test_a_training_says_that_and_why_rows_are_batched_by_length(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer("qwen2")
    folder = tmp_path / "model"
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    build("mamba", vocab_size=len(tokenizer), bos_token_id=None, **ends).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    # make_job writes rows only with a model of its own.
    (tmp_path / "rows").mkdir()
    job = make_job(tmp_path / "rows").model_copy(update={"model": str(folder)})
    notes = Notes()
    run = train(job, tmp_path / "run", listener=notes)
    steps = [line for line in run.metrics() if "loss" in line]
    assert len(steps) == 3
    [line] = [note for note in notes.notes if "batched by length" in note]
    assert "mamba" in line
    assert "% of the tokens are padding" in line
    assert any("out_proj" in note for note in notes.notes)
    assert any("head of the mamba family" in note for note in notes.notes)
