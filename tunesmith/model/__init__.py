"""Model: a name -> weights, tokenizer and adapter."""

import logging

# On import, which peft does, it asks for a package that is of no use here.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
