"""Model: a name -> weights, tokenizer and adapter."""

import logging

# peft imports bitsandbytes wherever it is installed, which warns that a faster kernel could be downloaded.
# Code from a hub is never run here, and nothing of ours uses that kernel.
logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(
    lambda record: "Failed to load CPU gemm_4bit_forward" not in record.getMessage()
)
