"""PEFT is loaded without bitsandbytes, and sees it where a base is quantised."""

from __future__ import annotations

import subprocess
import sys

import pytest


def run(code: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.slow  # a process that imports torch and bitsandbytes
def test_training_without_quantisation_never_imports_it() -> None:
    pytest.importorskip("bitsandbytes", reason="extra quant")
    code = (
        "import sys, tunesmith.train.run; print('bitsandbytes' in sys.modules); "
        "import bitsandbytes; print(bitsandbytes.__name__)"
    )
    assert run(code) == ["False", "bitsandbytes"]


@pytest.mark.slow  # a process that imports torch and bitsandbytes
def test_peft_sees_it_when_told() -> None:
    pytest.importorskip("bitsandbytes", reason="extra quant")
    code = (
        "from tunesmith.model.peft_parts import see_bitsandbytes; from peft import import_utils as i; "
        "print(i.is_bnb_4bit_available()); see_bitsandbytes(); print(i.is_bnb_4bit_available())"
    )
    assert run(code) == ["False", "True"]
