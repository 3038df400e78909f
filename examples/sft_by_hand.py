"""Supervised fine-tuning with LoRA in one plain file: what `tunesmith train` computes, without tunesmith.

    python examples/sft_by_hand.py MODEL_FOLDER ROWS.json [--steps 5] [--rows-per-step 4] …

Rows are Alpaca rows: instruction, input, output. Each row goes through the model alone, in fp32, with nothing
packed or padded: slow, and easy to check. A test compares its losses with those of `tunesmith train`.
"""

import argparse
import json
import random
import warnings
from itertools import islice
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, get_scheduler


def read_rows(path):
    """Alpaca rows -> (question, answer); instruction and input are joined by one newline."""
    rows = json.loads(Path(path).read_text(encoding="utf-8"))
    return [("\n".join(filter(None, (r["instruction"], r.get("input")))), r["output"]) for r in rows]


def encode(tokenizer, question, answer):
    """Token ids of the whole conversation, and for each token whether the loss is taken on it.

    The labels are what the model has to write itself: everything after the prompt that it is given at chat
    time, up to and including the end-of-turn token. White space that the template puts behind that token
    is never written by the model, so it isn't a label.
    """
    asked = [{"role": "user", "content": question}]
    told = [*asked, {"role": "assistant", "content": answer}]
    prompt = tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
    whole = tokenizer.apply_chat_template(told, tokenize=False)
    assert whole.startswith(prompt), "this template writes the prompt differently once there is an answer"
    # The template has written the special tokens already, so none are added here: no second BOS.
    prompt_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    ids = tokenizer(whole, add_special_tokens=False)["input_ids"]
    assert ids[: len(prompt_ids)] == prompt_ids, "a token straddles the border between prompt and answer"
    end = max(i for i, token in enumerate(ids) if token in tokenizer.all_special_ids)
    labelled = [len(prompt_ids) <= i <= end for i in range(len(ids))]
    return ids, labelled


def row_loss(model, ids, labelled):
    """Cross-entropy summed over the label tokens of one row, in nats, and their number."""
    logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
    # The logits at position t predict the token at t + 1.
    predicted = torch.tensor([t - 1 for t in range(1, len(ids)) if labelled[t]])
    targets = torch.tensor([ids[t] for t in range(1, len(ids)) if labelled[t]])
    loss = torch.nn.functional.cross_entropy(logits[predicted], targets, reduction="sum")
    return loss, len(targets)


def order_of(epoch, rows, seed):
    """The order of the rows in an epoch: the same permutation that tunesmith draws."""
    order = list(range(rows))
    random.Random(f"tunesmith order, seed {seed}, epoch {epoch}").shuffle(order)
    return order


def steps_of(rows, rows_per_step, seed):
    """Row numbers of each step, epoch after epoch, without end; an epoch's last step may be smaller."""
    epoch = 0
    while True:
        order = order_of(epoch, rows, seed)
        yield from (order[i : i + rows_per_step] for i in range(0, rows, rows_per_step))
        epoch += 1


def train(args):
    """Train and return the loss of every step."""
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    torch.manual_seed(args.seed)
    config = LoraConfig(
        r=args.rank, lora_alpha=args.alpha, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    model = get_peft_model(model, config)
    model.train()
    examples = [encode(tokenizer, question, answer) for question, answer in read_rows(args.rows)]

    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=args.learning_rate, weight_decay=0.0)
    schedule = get_scheduler(
        args.schedule, optimizer, num_warmup_steps=args.warmup, num_training_steps=args.steps + 1
    )
    with warnings.catch_warnings(action="ignore"):  # torch expects an optimizer step first
        schedule.step()  # at its first point a schedule with warm-up is zero: a step there would be wasted
    losses = []
    for step, rows in enumerate(islice(steps_of(len(examples), args.rows_per_step, args.seed), args.steps)):
        batch = [examples[i] for i in rows]
        # One divisor for the whole step: a mean per row would let a short answer's tokens weigh more.
        labels = sum(sum(labelled[1:]) for _, labelled in batch)
        total = 0.0
        for ids, labelled in batch:
            loss, _ = row_loss(model, ids, labelled)
            (loss / labels).backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(trained, args.clip)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(total / labels)
        print(f"step {step + 1}: loss {losses[-1]:.6f} over {labels} label tokens")
    return losses


def main():
    parser = argparse.ArgumentParser(description="Supervised fine-tuning with LoRA, by hand.")
    parser.add_argument("model", help="folder of a model in transformers' format")
    parser.add_argument("rows", help="Alpaca rows in a JSON file")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--rows-per-step", type=int, default=4)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--alpha", type=float, default=32)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--schedule", default="linear")
    parser.add_argument("--warmup", type=int, default=0)
    parser.add_argument("--clip", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=42)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
