"""The parts of PEFT that are used here, loaded without bitsandbytes.

PEFT imports bitsandbytes wherever it is installed, which takes a second at every start and looks for compiled
code on a hub. Only quantised bases need it: `see_bitsandbytes` lets PEFT know of it.
"""

from __future__ import annotations

import sys

_hidden = not {"bitsandbytes", "peft"} & sys.modules.keys()
if _hidden:
    sys.modules["bitsandbytes"] = None  # type: ignore[assignment]
try:
    from peft import LoraConfig, PeftModel, TaskType, get_peft_model, get_peft_model_state_dict, import_utils
    from peft.tuners import lora

    # The answers are kept: PEFT asks again with every adapter.
    import_utils.is_bnb_available()
    import_utils.is_bnb_4bit_available()
finally:
    if _hidden:
        del sys.modules["bitsandbytes"]

__all__ = [
    "LoraConfig",
    "PeftModel",
    "TaskType",
    "get_peft_model",
    "get_peft_model_state_dict",
    "lora",
    "see_bitsandbytes",
]


def see_bitsandbytes() -> None:
    """Let PEFT put adapters on layers of bitsandbytes, from now on."""
    import_utils.is_bnb_available.cache_clear()
    import_utils.is_bnb_4bit_available.cache_clear()
