"""Which model families can train on packed rows, and how a batch is handed to a model to keep them apart.

Packed: several rows lie one behind the other in one sequence [1, T], and none may see another. transformers
5.23 (masking_utils.py) builds the block-diagonal mask only when three things hold at once:

- `attention_mask` is None,
- no cache is built (`use_cache=False`; a model's config says True),
- `position_ids` jump between rows, as they do when each row restarts at 0.

If one is missing, rows see each other and no error is raised. `packed_inputs` is therefore the one place that
makes the keyword arguments, and refuses a model that isn't proved. With our own attention
(model/attention.py) the segments of the pack take the mask's place.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import nn

from tunesmith.errors import ModelError

# Mixtures of experts: rows of a pack that choose the same expert lie in one product, whose kernel may go by
# their number. What another row does to this one is then rounding (below 1e-6 in fp32), not zero.
MIXTURES = ("qwen3_moe", "olmoe")

# Proved by tests/model/test_packing.py: a change in one row leaves the others bit-identical (mixtures: within
# 1e-6), logits and gradients equal those of single rows.
PROVED = (
    "llama", "qwen2", "qwen3", "gemma3_text", "mistral", "phi3", "gpt2",
    "gemma2", "smollm3", "olmo2", "granite", "starcoder2", "glm4", "phi", "gpt_neox", *MIXTURES,
)  # fmt: skip


# The name of our attention among those of transformers.
SEGMENTS = "tunesmith_segments"


class Rows(Protocol):
    """What this file needs of data.batch.Batch; see there for the shapes."""

    @property
    def input_ids(self) -> torch.Tensor: ...
    @property
    def position_ids(self) -> torch.Tensor: ...
    @property
    def attention_mask(self) -> torch.Tensor | None: ...
    @property
    def segments(self) -> torch.Tensor: ...


def can_pack(config: Any) -> tuple[bool, str]:
    """(True, "") for a model whose packed rows are proved to be isolated, else (False, why)."""
    family = getattr(config, "model_type", None)
    if family not in PROVED:
        return False, f"packed rows aren't proved to stay apart in the {family} family"
    if getattr(config, "use_bidirectional_attention", False) or not getattr(config, "is_causal", True):
        return False, "this model attends in both directions"
    if getattr(config, "add_cross_attention", False):
        return False, "this model attends to an encoder"
    for kind in _rope_types(getattr(config, "rope_parameters", None)):
        # These choose frequencies by the largest position of the whole pack: a long row changes short ones.
        if kind in ("longrope", "dynamic"):
            return False, f"its {kind} position scaling depends on the longest row of a pack"
    attention = getattr(config, "_attn_implementation", None)
    if attention not in (None, "sdpa", "eager", SEGMENTS):
        return False, f"packing isn't proved with {attention} attention"
    return True, ""


def packed_inputs(model: nn.Module, batch: Rows) -> dict[str, Any]:
    """Keyword arguments for a model's forward that keep the rows of `batch` apart, packed or padded.

    input_ids and position_ids [B, T]; packed means B = 1 and no attention mask. Raises ModelError for a
    packed batch on a model that `can_pack` refuses: its rows would see each other without a word.
    """
    mask = batch.attention_mask
    if mask is None:
        possible, why = can_pack(model.config)
        if not possible:
            raise ModelError(f"Rows can't be packed for this model: {why}.", fix="Set data.packing=false.")
        assert batch.input_ids.shape[0] == 1, "a packed batch is one sequence"
        config: Any = model.config
        if config._attn_implementation == SEGMENTS:
            mask = batch.segments[None, None]
        else:
            assert bool((batch.segments[:, 2] < 0).all()), "shared prefixes need our own attention"
    return {
        "input_ids": batch.input_ids,
        "position_ids": batch.position_ids,
        "attention_mask": mask,
        "use_cache": False,
    }


def _rope_types(parameters: Any) -> Iterator[str]:
    """Every rope_type in a config's rope_parameters, which may be nested by layer type."""
    if isinstance(parameters, dict):
        if isinstance(kind := parameters.get("rope_type", parameters.get("type")), str):
            yield kind
        for inner in parameters.values():
            yield from _rope_types(inner)
