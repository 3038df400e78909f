"""Settings of the model stage: what is tuned, and how the base is held."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from tunesmith.settings import Settings, as_tuple

AdapterType = Literal["lora", "dora", "full", "freeze"]
Dtype = Literal["auto", "fp32", "bf16", "fp16"]


_OF_LORA = ("rank", "alpha", "dropout", "targets", "rslora")


def _as_names(value: Any) -> Any:
    names = value.split(",") if isinstance(value, str) and "," in value else value
    return as_tuple(names)


class AdapterSettings(Settings):
    """`adapter:` of a job: LoRA and its kin, full fine-tuning, or only the last layers."""

    type: AdapterType = Field(
        "lora", description="LoRA, DoRA, all weights (full), or the last layers (freeze)"
    )
    rank: int = Field(16, ge=1, description="r of LoRA")
    alpha: float = Field(32, gt=0, description="LoRA's scale is alpha / rank (rsLoRA: alpha / sqrt(rank))")
    dropout: float = Field(0.0, ge=0, lt=1, description="of LoRA's input while training")
    targets: Annotated[str | tuple[str, ...], BeforeValidator(_as_names)] = Field(
        "all", description="all linear layers, or names such as [q_proj, v_proj]"
    )
    rslora: bool = Field(False, description="rank-stabilised scale")
    init: Literal["default", "pissa"] | str = Field(
        "default", description="default, pissa, or pissa_niter_16"
    )
    last_layers: int | None = Field(
        None, ge=1, description="type freeze: how many layers, from the last, are trained"
    )
    continue_from: str | None = Field(None, description="a run or an adapter folder to train further")

    @model_validator(mode="after")
    def _consistent(self) -> AdapterSettings:
        if self.type == "freeze" and self.last_layers is None:
            raise ValueError("adapter.type freeze needs adapter.last_layers, for example 2")
        if self.type != "freeze" and self.last_layers is not None:
            raise ValueError(f"adapter.last_layers goes with type freeze, not with {self.type}")
        if not self.uses_peft and (
            unused := [
                name for name in _OF_LORA if getattr(self, name) != type(self).model_fields[name].default
            ]
        ):
            raise ValueError(
                f"adapter.{' and adapter.'.join(unused)} would do nothing with type {self.type}, which "
                "trains the model's own weights: leave that out, or use type lora"
            )
        if not re.fullmatch(r"default|pissa|pissa_niter_[1-9]\d*", self.init):
            raise ValueError(f"adapter.init is default, pissa or pissa_niter_N (it is {self.init!r})")
        if self.init != "default" and self.type != "lora":
            raise ValueError(f"adapter.init {self.init} goes with type lora, not with {self.type}")
        if not self.targets:
            raise ValueError("adapter.targets is empty: write all, or names such as [q_proj, v_proj]")
        return self

    @property
    def uses_peft(self) -> bool:
        """True for the types that leave the base as it is and save an adapter beside it."""
        return self.type in ("lora", "dora")


class QuantizationSettings(Settings):
    """`quantization:` of a job: the base in 4 or 8 bits, under LoRA or DoRA."""

    type: Literal["nf4", "int8"] = Field(description="4-bit NormalFloat (QLoRA), or 8-bit integers")
    double_quant: bool | None = Field(
        None, description="nf4: the scales are quantised as well; null is true for nf4"
    )
    compute_dtype: Dtype = Field("auto", description="format of products; auto: that of train.dtype")

    @model_validator(mode="after")
    def _consistent(self) -> QuantizationSettings:
        if self.type == "int8" and self.double_quant is not None:
            raise ValueError(
                "quantization.double_quant goes with nf4; int8 has one scale a row: leave it out"
            )
        return self
