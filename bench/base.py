"""The model that the other contenders train: the same base, the same adapter, the same random numbers."""

from __future__ import annotations

from typing import Any

import torch
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

SEED = 42  # of tunesmith's jobs too


def build_model(spec: dict[str, Any]) -> PreTrainedModel:
    """LoRA on a bf16, fp32 or NF4 base, or the whole model; LoRA's matrices are fp32, as PEFT makes them.

    options.dtype: bf16, fp32, or their mixtures (bf16_autocast: products in bf16, full
    tuning's weights fp32).
    """
    whole = spec["tune"] == "full"
    name = spec["options"].get("dtype", "bf16")
    dtype = torch.float32 if name == "fp32" or (whole and name == "bf16_autocast") else torch.bfloat16
    quantized = spec.get("quantization") == "nf4"
    config = (
        BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype,
            bnb_4bit_use_double_quant=True,
        )
        if quantized
        else None
    )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(
        spec["model"], dtype=dtype, attn_implementation="sdpa", quantization_config=config
    )
    if whole:
        return model
    checkpointing = bool(spec["options"].get("checkpointing"))
    if quantized:
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=checkpointing)
    torch.manual_seed(SEED)
    lora = LoraConfig(
        r=spec["rank"], lora_alpha=spec["alpha"], lora_dropout=0.0, target_modules="all-linear",
        task_type="CAUSAL_LM",
    )  # fmt: skip
    return get_peft_model(model, lora)
