"""Answers a second: our own batches against transformers' `generate`, in turns, in one process.

    python -m bench.generation                     # 1, 16 and 64 prompts
    python -m bench.generation --rows 16 --new 128 --rounds 5

The same prompts, the same number of new tokens, greedy, the same model in memory. First both answer in fp32,
where their tokens must be equal; then they take turns in bf16 (or what the machine multiplies natively). One
prompt is answered as a chat does it, as a stream. For it the share of the memory's speed is told: how fast
the weights went by, against how fast numbers can be copied.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch
from transformers import GenerationConfig

from bench.workloads import handbook_rows
from tunesmith.data.template import Renderer
from tunesmith.infer.config import Sampling
from tunesmith.infer.decoding import slow_because
from tunesmith.infer.generate import generate, stream
from tunesmith.infer.local import LocalModel, load
from tunesmith.records import Conversation, Message, Origin
from tunesmith.settings import build


def main() -> None:
    """Run the comparison and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--new", type=int, default=96, help="new tokens of each answer")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each")
    parser.add_argument("--no-check", action="store_true", help="leave out the comparison in fp32")
    given = parser.parse_args()
    prompts = [
        Conversation((Message("user", row["instruction"]),), Origin("handbook", number + 1, number))
        for number, row in enumerate(handbook_rows())
    ]
    if not given.no_check:
        compared = check(load(given.model, dtype="fp32"), prompts[:8], given.new // 2)
        print(f"fp32: {compared} tokens compared, all equal")
    model = load(given.model)
    if why := slow_because(model.model):
        print(f"left to transformers: {why}")
    print(
        f"{model.name}, {model.device.dtype_name}, {torch.get_num_threads()} threads, {given.new} new tokens"
    )
    for count in given.rows:
        race(model, prompts[:count], given.new, given.rounds)


def check(model: LocalModel, prompts: list[Conversation], new: int) -> int:
    """Compare the tokens of both in fp32; returns how many. Raises AssertionError at the first difference."""
    compared = 0
    for prompt, ours in zip(prompts, _ours(model, prompts, new), strict=True):
        theirs = _theirs(model, [prompt], new)[0]
        assert [score.token for score in ours.scores] == theirs, (
            f"{prompt.question!r} is answered differently"
        )
        compared += len(theirs)
    return compared


def race(model: LocalModel, prompts: list[Conversation], new: int, rounds: int) -> None:
    """Turns of both on the same prompts, and a line on what came out."""
    tokens = new * len(prompts)
    speeds: dict[str, list[float]] = {"ours": [], "theirs": []}
    for turn in range(rounds + 1):
        for name, answer in (("ours", _ours), ("theirs", _theirs)):
            began = time.perf_counter()
            if name == "ours" and len(prompts) == 1:
                sampling = build(Sampling, {"max_new_tokens": new})
                list(stream(model.model, _endless(model), prompts[0], sampling))
            else:
                answer(model, prompts, new)
            if turn:  # the first warms up
                speeds[name].append(tokens / (time.perf_counter() - began))
    ratios = sorted(a / b for a, b in zip(speeds["ours"], speeds["theirs"], strict=True))
    line = (
        f"{len(prompts):3} rows: ours {statistics.median(speeds['ours']):7.1f} tokens/s, "
        f"transformers {statistics.median(speeds['theirs']):7.1f}, "
        f"ratio {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
    )
    if len(prompts) == 1:
        weights = sum(p.numel() * p.element_size() for p in model.model.parameters())
        moved, copied = weights * statistics.median(speeds["ours"]) / 1e9, _copy_speed()
        line += f"; weights at {moved:.1f} GB/s, {moved / copied:.0%} of a copy's {copied:.1f} GB/s"
    print(line, flush=True)


def _ours(model: LocalModel, prompts: list[Conversation], new: int) -> Any:
    sampling = build(Sampling, {"max_new_tokens": new, **({} if len(prompts) > 8 else {"logprobs": 0})})
    answers = generate(model.model, _endless(model), prompts, sampling, batch_size=max(8, len(prompts)))
    return [several[0] for several in answers]


def _theirs(model: LocalModel, prompts: list[Conversation], new: int) -> list[list[int]]:
    rows = [model.renderer.prompt_ids(prompt) for prompt in prompts]
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    inner: Any = model.model
    config = GenerationConfig(max_new_tokens=new, do_sample=False, pad_token_id=0)
    own, inner.generation_config = inner.generation_config, GenerationConfig()
    try:
        output = inner.generate(ids, attention_mask=mask, generation_config=config)
    finally:
        inner.generation_config = own
    answers: list[list[int]] = output[:, width:].tolist()
    return answers


def _endless(model: LocalModel) -> Renderer:
    """The model's renderer without end tokens: every answer is as long as asked."""
    renderer = Renderer(model.renderer.tokenizer)
    renderer.stop_ids = frozenset()
    return renderer


def _copy_speed() -> float:
    """GB/s read and written by the fastest of some copies of 256 MB."""
    a, b = torch.ones(2**25, dtype=torch.float64), torch.empty(2**25, dtype=torch.float64)
    best = 0.0
    for _ in range(5):
        began = time.perf_counter()
        b.copy_(a)
        best = max(best, 2 * a.nbytes / (time.perf_counter() - began) / 1e9)
    return best


if __name__ == "__main__":
    main()
