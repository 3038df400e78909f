"""The proof behind `families.PROVED`: packed rows see nothing of each other, in every family that says so.

For each family: a change in row A leaves the hidden states of rows B and C bit-identical; packed logits equal
those of single rows within 1e-5, gradients within 1e-5 relative (fp32). Rows are longer than the windows.

Mixtures of experts are the exception: tokens of all rows that choose an expert lie in one product, and its
kernel goes by how many there are. Rounding may differ then, so 1e-6 instead of bit-identical.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, MambaConfig, PreTrainedModel

from tests.families import tiny_model
from tunesmith.errors import ModelError
from tunesmith.model.attention import segment_attention
from tunesmith.model.families import MIXTURES, PROVED, SEGMENTS, can_pack, packed_inputs

LENGTHS = (23, 1, 40, 9)  # one token alone, and rows beyond every window below
WINDOW = 6

# What tests/families.py has, and beside it each family's sliding windows and other attention switches.
VARIANTS = {
    "llama": {},
    "qwen2": {},
    "qwen2, window": {
        "use_sliding_window": True,
        "sliding_window": WINDOW,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "qwen3": {},
    "qwen3, window": {
        "use_sliding_window": True,
        "sliding_window": WINDOW,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "gemma3": {},
    "mistral": {},
    "mistral, window": {"sliding_window": WINDOW},
    "phi3": {},
    "phi3, window": {"sliding_window": WINDOW},
    "gpt2": {},
    "qwen3_moe": {},
    "olmoe": {},
}
# Families beyond tests/families.py, by transformers' own name: proved here, so packed as well.
TINY = {
    "hidden_size": 48, "intermediate_size": 72, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 205, "max_position_embeddings": 512, "initializer_range": 0.1,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
MORE = {
    "gemma2": {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": WINDOW},
    "smollm3": {},
    "olmo2": {},
    "granite": {},
    "starcoder2": {"sliding_window": WINDOW},
    "glm4": {"head_dim": 16},
    "phi": {},
    "gpt_neox": {},
}
# These mix rows: positions counted along the whole sequence, recurrent layers.
LEAKING = {"opt": {"ffn_dim": 72, "word_embed_proj_dim": 48}, "qwen3_5_text": {}}
ALL = [*VARIANTS, *MORE]


@dataclass
class Packed:
    """Rows in one sequence, as data.batch lays them."""

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    attention_mask: torch.Tensor | None = None
    segments: torch.Tensor = field(default_factory=lambda: torch.empty(0, 3, dtype=torch.long))


def pack(rows: list[torch.Tensor]) -> Packed:
    positions = torch.cat([torch.arange(len(row)) for row in rows])
    starts = torch.tensor([0, *map(len, rows)]).cumsum(0)
    tree = torch.stack([starts[:-1], starts.diff(), torch.full((len(rows),), -1)], 1)
    return Packed(torch.cat(rows)[None], positions[None], segments=tree)


def random_rows(model: PreTrainedModel, seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    size = model.config.vocab_size
    return [torch.randint(0, size, (length,), generator=generator) for length in LENGTHS]


def build(variant: str, attention: str = "sdpa") -> PreTrainedModel:
    if (changes := VARIANTS.get(variant)) is not None:
        config = tiny_model(variant.partition(",")[0]).config
        config = type(config)(**{**config.to_dict(), **changes})
    else:
        changes = {**MORE, **LEAKING}[variant]
        config = AutoConfig.for_model(variant, **{**TINY, **changes})
    if "sliding_window" in changes:
        assert config.sliding_window == WINDOW
    if variant == "gemma2":
        attention = "eager"  # its scores are capped, which SDPA can't do
    torch.manual_seed(1)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=attention)


def hidden(model: PreTrainedModel, packed: Packed) -> torch.Tensor:
    inputs = packed_inputs(model, packed)
    return torch.stack(model(**inputs, output_hidden_states=True).hidden_states)[:, 0]


def test_every_proved_family_is_tested_here():
    configs = [build(variant).config for variant in ALL]
    assert {config.model_type for config in configs} == set(PROVED)
    assert all(can_pack(config) == (True, "") for config in configs)


@pytest.mark.parametrize(
    ("attention", "training"), [("sdpa", True), ("sdpa", False), ("eager", True), ("ours", True)]
)
@pytest.mark.parametrize("variant", ALL)
def test_a_change_in_one_row_leaves_the_others_bit_identical(variant, attention, training):
    model = build(variant, "sdpa" if attention == "ours" else attention).train(training)
    if attention == "ours":
        model.config._attn_implementation = SEGMENTS
    for module in model.modules():  # dropout is noise of its own
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    rows, others = random_rows(model, 1), random_rows(model, 2)
    for changed, row in enumerate(others):
        mixed = [*rows]
        mixed[changed] = row
        with torch.no_grad():
            before, after = hidden(model, pack(rows)), hidden(model, pack(mixed))
        start, end = sum(LENGTHS[:changed]), sum(LENGTHS[: changed + 1])
        outside = [i for i in range(sum(LENGTHS)) if not start <= i < end]
        if model.config.model_type in MIXTURES:
            torch.testing.assert_close(before[:, outside], after[:, outside], atol=1e-6, rtol=1e-6)
        else:
            assert torch.equal(before[:, outside], after[:, outside])
        assert not torch.allclose(before[:, start:end], after[:, start:end], atol=1e-3)


@pytest.mark.parametrize("ours", [False, True])
@pytest.mark.parametrize("variant", ALL)
def test_packed_logits_and_gradients_equal_those_of_single_rows(variant, ours):
    model = build(variant).eval()
    rows = random_rows(model, 3)
    with segment_attention(model, ours):
        packed = model(**packed_inputs(model, pack(rows))).logits[0]
    single = torch.cat([model(input_ids=row[None], use_cache=False).logits[0] for row in rows])
    torch.testing.assert_close(packed, single, atol=1e-5, rtol=0)

    # A weighted sum, so that no gradient cancels by symmetry.
    weights = torch.randn(packed.shape, generator=torch.Generator().manual_seed(4))
    together = torch.autograd.grad((packed * weights).sum(), list(model.parameters()), allow_unused=True)
    apart = torch.autograd.grad((single * weights).sum(), list(model.parameters()), allow_unused=True)
    for one, other in zip(together, apart, strict=True):
        if one is not None:
            assert (one - other).norm() <= 1e-5 * other.norm() + 1e-9


@pytest.mark.parametrize("family", LEAKING)
def test_families_that_mix_rows_are_refused_and_do_mix_them(family):
    model = build(family).eval()
    allowed, why = can_pack(model.config)
    assert not allowed
    assert family in why
    rows = random_rows(model, 1)
    seen = []
    for content in (rows, [random_rows(model, 2)[0], *rows[1:]]):
        packed = pack(content)
        with torch.no_grad():
            out = model(input_ids=packed.input_ids, position_ids=packed.position_ids, use_cache=False)
        seen.append(out.logits[0, LENGTHS[0] :])
    assert not torch.allclose(*seen, atol=1e-3)


@pytest.mark.parametrize("broken", ["cache", "mask", "positions"])
def test_without_each_of_the_three_conditions_rows_do_see_each_other(broken):
    """Shows that the tests above can fail: this is what packed_inputs prevents."""
    model = build("llama").eval()
    rows = random_rows(model, 1)
    changed = [random_rows(model, 2)[0], *rows[1:]]
    seen = []
    for content in (rows, changed):
        inputs = packed_inputs(model, pack(content))
        if broken == "cache":
            inputs["use_cache"] = True
        elif broken == "mask":
            inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        else:
            inputs["position_ids"] = torch.arange(sum(LENGTHS))[None]
        with torch.no_grad():
            seen.append(model(**inputs).logits[0, LENGTHS[0] :])
    assert not torch.allclose(*seen, atol=1e-3)


def test_positions_scaled_by_the_longest_row_are_refused_because_they_leak():
    """Phi-3's long models take other frequencies for all rows as soon as one is long."""
    model = tiny_model("phi3")
    half = model.config.hidden_size // model.config.num_attention_heads // 2
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * half,
        "long_factor": [4.0] * half,
        "original_max_position_embeddings": 30,
    }
    content = {**model.config.to_dict(), "rope_parameters": rope, "original_max_position_embeddings": 30}
    config = model.config.__class__(**content)
    allowed, why = can_pack(config)
    assert not allowed
    assert "longrope" in why
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="sdpa").eval()
    with pytest.raises(ModelError, match="longrope"):
        packed_inputs(model, pack([torch.arange(5)]))
    # and this is the leak: row 1 is short and the same, but row 2 grows beyond 30 tokens
    first = torch.arange(10)
    logits = []
    for length in (20, 31):
        packed = pack([first, torch.arange(length)])
        with torch.no_grad():
            out = model(input_ids=packed.input_ids, position_ids=packed.position_ids, use_cache=False)
        logits.append(out.logits[0, :10])
    assert not torch.allclose(*logits, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"_attn_implementation": "flash_attention_2"}, "flash_attention_2"),
        ({"use_bidirectional_attention": True}, "both directions"),
        ({"is_causal": False}, "both directions"),
        ({"add_cross_attention": True}, "encoder"),
        ({"rope_parameters": {"full_attention": {"rope_type": "dynamic"}}}, "dynamic"),
    ],
)
def test_what_is_not_proved_is_refused_with_the_reason(change, word):
    config = tiny_model("llama").config
    for key, value in change.items():
        setattr(config, key, value)
    allowed, why = can_pack(config)
    assert not allowed
    assert word in why


def test_shared_prefixes_need_an_attention_that_knows_them():
    model = tiny_model("llama")
    batch = pack([torch.arange(5), torch.arange(3)])
    batch.segments[1, 2] = 0
    with pytest.raises(AssertionError, match="our own attention"):
        packed_inputs(model, batch)
    with segment_attention(model):
        inputs = packed_inputs(model, batch)
    assert inputs["attention_mask"].tolist() == [[batch.segments.tolist()]]
    # Should the switch be forgotten, SDPA stops at the shape: nothing leaks without a word.
    with pytest.raises(RuntimeError):
        model(**inputs)


def test_a_family_without_proof_is_refused_by_name():
    allowed, why = can_pack(MambaConfig())
    assert not allowed
    assert "mamba" in why


def test_padded_rows_keep_their_mask_and_no_cache():
    model = tiny_model("llama")
    batch = Packed(
        torch.ones(2, 3, dtype=torch.long), torch.arange(3).repeat(2, 1), torch.tensor([[1, 1, 1], [1, 1, 0]])
    )
    inputs = packed_inputs(model, batch)
    assert inputs["attention_mask"] is batch.attention_mask
    assert inputs["use_cache"] is False
