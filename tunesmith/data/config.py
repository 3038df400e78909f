"""Settings of the data stage: which rows, how long, what is trained on."""

from __future__ import annotations

import os
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from tunesmith.settings import Settings

TooLong = Literal["error", "drop", "truncate_left", "truncate_right", "split"]
HomePath = Annotated[str, AfterValidator(os.path.expanduser)]
TrainOn = Literal["all_replies", "last_reply", "everything", "marked"]


class DataFile(Settings):
    """One file or folder of rows. `weight` 2 lays every row in twice, 0.5 takes a seeded half."""

    path: HomePath = Field(description="a file or a folder of one kind")
    weight: float = Field(1.0, gt=0, description="2 takes every row twice, 0.5 a seeded half of them")


def _as_files(value: Any) -> Any:
    items = value if isinstance(value, list | tuple) else [value]
    return tuple({"path": item} if isinstance(item, str) else item for item in items)


Files = Annotated[tuple[DataFile, ...], BeforeValidator(_as_files)]


class DataSettings(Settings):
    """`data:` of a job."""

    train: Files = Field(
        description="a file, a folder, or a list of {path, weight}; the format is recognised"
    )
    valid: Files | float | None = Field(None, description="files, or a share of train such as 0.05")
    info: HomePath | None = Field(
        None, description="a LLaMA-Factory dataset_info.json; train and valid are then names in it"
    )
    bad_rows: Literal["error", "drop"] = Field(
        "error", description="rows that can't be read: stop, or drop and list"
    )
    max_length: int = Field(1024, ge=8, description="tokens in one example at most")
    too_long: TooLong = Field("error", description="what happens to a longer example")
    train_on: TrainOn = Field("all_replies", description="which tokens the loss is taken on")
    template: HomePath | None = Field(
        None, description="null: the model's own; or chatml, alpaca, plain, a .jinja file"
    )
    packing: bool = Field(True, description="lay examples in one sequence without padding")
    share_prefixes: bool = Field(
        True, description="compute what packed examples begin with in common once; never changes results"
    )

    @model_validator(mode="before")
    @classmethod
    def _valid_share(cls, content: Any) -> Any:
        # A number is a share of the training rows; anything else names files.
        share = content.get("valid") if isinstance(content, dict) else None
        if isinstance(share, int | float) and not 0 < share < 1:
            raise ValueError(f"data.valid as a number is a share of train between 0 and 1 (it is {share})")
        return content
