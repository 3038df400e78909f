"""Saved bases of every family, loaded as the project loads them."""

from __future__ import annotations

import pytest
from transformers import PreTrainedModel

from tests.families import FAMILIES, save_tiny
from tests.model.tuning import FP32
from tunesmith.device import Device
from tunesmith.model.load import load_model
from tunesmith.model.source import resolve


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """One saved base for each family: llama and phi3 are untied, the others tied."""
    root = tmp_path_factory.mktemp("bases")
    return {family: save_tiny(family, root / family) for family in FAMILIES}


@pytest.fixture
def base(folders):
    """Loads a family's base as `load_model` does."""

    def load(family: str = "llama", device: Device = FP32) -> PreTrainedModel:
        return load_model(resolve(str(folders[family])), device)

    return load
