"""Fields of requests of OpenAI's API, and what this server makes of each. No torch.

Each field is one of four: it is obeyed; it is a label that can't change an answer (`user`); it asks for
what isn't there, and is refused by name unless it has the value at which it does nothing; or nobody knows it,
which is refused as well. Nothing is ignored that could have changed an answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from tunesmith.records import Role

Kind = Literal["chat", "text"]

STOPS, TOP_LOGPROBS, ANSWERS, PROMPTS = 4, 20, 16, 16
LONGEST_STOP, MESSAGES, TOLD = 1000, 4096, 20  # characters; messages; problems told in one refusal
# Beyond these numbers overflow, or an answer's memory grows with the square of its length.
BOUNDS: Mapping[str, tuple[float, float]] = {
    "temperature": (1e-3, 100.0),
    "repetition_penalty": (0.01, 100.0),
    "no_repeat_ngram_size": (0, 64),
}
# Request field -> setting of tunesmith's, for those that are the same thing.
SETTINGS = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "do_sample": "do_sample",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "repetition_penalty": "repetition_penalty",
    "repetition_penalty_range": "repetition_penalty_range",
    "no_repeat_ngram_size": "no_repeat_ngram_size",
    "seed": "seed",
    "max_tokens": "max_new_tokens",
}
LABELS = ("user", "metadata", "safety_identifier", "prompt_cache_key", "prompt_cache_retention")
BOTH = ("model", "n", "stream", "stream_options", "stop", "logprobs", *SETTINGS)
KNOWN: Mapping[Kind, tuple[str, ...]] = {
    "chat": (*BOTH, "messages", "max_completion_tokens", "top_logprobs", "response_format"),
    "text": (*BOTH, "prompt"),
}
# What isn't supported, with the values besides null at which it asks for nothing.
UNSUPPORTED: Mapping[Kind, Mapping[str, tuple[Any, ...]]] = {
    "chat": {
        "audio": (),
        "function_call": ("none", "auto"),
        "functions": ([],),
        "logit_bias": ({},),
        "modalities": (["text"],),
        "num_beams": (1,),
        "parallel_tool_calls": (True, False),  # of tools, which are refused
        "prediction": (),
        "reasoning_effort": (),
        "service_tier": ("auto", "default"),
        "store": (False,),
        "tool_choice": ("none", "auto"),
        "tools": ([],),
        "verbosity": ("medium",),
        "web_search_options": (),
    },
    "text": {"best_of": (1,), "echo": (False,), "logit_bias": ({},), "num_beams": (1,), "suffix": ("",)},
}
MESSAGE_NEUTRAL: Mapping[str, tuple[Any, ...]] = {  # what clients send back with an answer of ours
    "audio": (),
    "annotations": ([],),
    "function_call": (),
    "name": (),
    "refusal": (),
    "tool_calls": ([],),
}
ROLES: Mapping[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
}
