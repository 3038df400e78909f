"""`tunesmith generate MODEL|RUN`: answers to a file of prompts, or to one prompt."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import tunesmith
from tunesmith.cli.console import err, json_option, out, print_json, print_table, table, told, typed, write
from tunesmith.cli.counting import answering
from tunesmith.cli.settings_list import show_answer_settings
from tunesmith.data.prompts import read_prompts
from tunesmith.errors import GenerateError, UsageError
from tunesmith.infer.config import Sampling
from tunesmith.infer.endpoint import check_endpoints, is_endpoint
from tunesmith.infer.predictions import Existing, Summary, check_output, prediction
from tunesmith.infer.remote import connect
from tunesmith.model.config import Dtype
from tunesmith.records import Conversation, Message, Origin
from tunesmith.settings import build, parse_overrides

if TYPE_CHECKING:
    from tunesmith.infer.answerer import Answerer

app = typer.Typer(add_completion=False)

EXAMPLES = """\b
Examples:
  tunesmith generate runs/tang-1 --input test.json --output answers.jsonl
  tunesmith generate runs/tang-1 --input test.json --output drawn.jsonl temperature=0.7 top_p=0.9 seed=1
  tunesmith generate smollm2-135m --input prompts.txt --output beams.jsonl num_beams=4 max_new_tokens=64
  tunesmith generate runs/tang-1 --prompt "白日依山盡，黃河入海流。"
  tunesmith generate runs/tang-1 --input test.json --output answers.jsonl --resume
  tunesmith generate http://127.0.0.1:8000/v1#my-model --input test.json --output answers.jsonl
  tunesmith generate --settings                  every setting: meaning, default, what it doesn't go with
Without settings an answer is greedy and has 512 tokens at most.
"""


@app.command(epilog=EXAMPLES)
def generate(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL|RUN|URL#MODEL",
            help="Alias, hub id, folder, GGUF file, the folder of a run, or an endpoint.",
        ),
    ] = "",
    settings: Annotated[
        list[str] | None,
        typer.Argument(metavar="key=value", help="How answers are chosen, e.g. temperature=0.7."),
    ] = None,
    input: Annotated[
        str | None, typer.Option(help="Prompts in any row format, or .txt with one a line.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="The answers, as JSONL.")] = None,
    prompt: Annotated[str | None, typer.Option(help="One prompt; its answer goes to stdout.")] = None,
    system: Annotated[str, typer.Option(help="With --prompt: the system prompt.")] = "",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an output that is there.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an output that is there.")] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Sequences computed at once.")] = 16,
    template: Annotated[
        str | None, typer.Option(help="chatml, alpaca, plain or FILE.jinja, instead of the model's own.")
    ] = None,
    dtype: Annotated[Dtype, typer.Option(help="Number format of the weights.")] = "auto",
    as_json: Annotated[bool, json_option] = False,
    list_settings: Annotated[
        bool, typer.Option("--settings", help="List every setting, or those about a word, and end.")
    ] = False,
) -> None:
    """Answer every prompt of a file, in its order, or one prompt."""
    if list_settings:
        show_answer_settings(" ".join([*([model] if model else []), *(settings or [])]))
        return
    if not model:
        raise UsageError("MODEL is missing.", fix="Give an alias, a hub id, a folder, a GGUF file or a run.")
    _check_words(input, output, prompt, system, resume=resume, force=force)
    sampling = build(Sampling, parse_overrides(list(map(typed, settings or []))))
    check_endpoints((model,), sampling, dtype=dtype, template=template)
    for line in sampling.useless(logprobs=True):
        told(line)
    # Everything that can be wrong without the model is told before it's loaded.
    existing: Existing = "resume" if resume else "replace" if force else "refuse"
    if output is not None:
        check_output(output, existing)
    if output is None:
        asked = _one(typed(prompt or ""), typed(system))
        if is_endpoint(model):
            _show_answers(connect(model, sampling=sampling, note=told), asked, as_json)
            return
        answerer = tunesmith.load(model, dtype=dtype, template=template, note=told, **sampling.given())
        answerer.batch_size = batch_size
        _show_answers(answerer, asked, as_json)
        return
    prompts = read_prompts(input or "")
    with answering(len(prompts)) as watch:
        summary = tunesmith.generate(
            model, prompts, output, existing=existing, dtype=dtype, template=template,
            batch_size=batch_size, watch=watch, note=told, **sampling.given(),
        )  # fmt: skip
    err.print(_told(summary))
    if as_json:
        print_json(summary.to_json())
    else:
        out.print(str(output))


def _check_words(
    input: str | None, output: Path | None, prompt: str | None, system: str, *, resume: bool, force: bool
) -> None:
    problems = []
    if prompt is None and input is None and output is None:
        problems.append("give --input FILE and --output FILE, or --prompt TEXT")
    elif prompt is None and output is None:
        problems.append("--output FILE is missing: where the answers go")
    elif prompt is None and input is None:
        problems.append("--input FILE is missing: the prompts")
    if prompt is not None and (input is not None or output is not None):
        problems.append("--prompt asks for one answer on stdout, without --input and --output")
    if prompt is not None and not prompt.strip():
        problems.append("--prompt is empty")
    if system and prompt is None:
        problems.append("--system goes with --prompt; the rows of a file have their own")
    if input is not None and output is not None and output.resolve() == Path(input).resolve():
        problems.append("--output is the file of the prompts: give it another name")
    if resume and force:
        problems.append("--resume continues the output and --force replaces it: give one of them")
    if problems and input is not None and "://" not in input and not Path(input).exists():
        problems.append(f"there is no file {input}")  # alone it is told on reading, with the nearest name
    if problems:
        raise UsageError(
            "The command can't be carried out.",
            details=problems,
            fix="tunesmith generate --help has examples.",
        )


def _one(prompt: str, system: str) -> Conversation:
    before = (Message("system", system),) if system else ()
    return Conversation((*before, Message("user", prompt)), Origin("--prompt", 1, 0), "0")


def _show_answers(model: Answerer, conversation: Conversation, as_json: bool) -> None:
    (answers,) = model.complete([conversation])
    if failed := next((one.error for one in answers if one.finish == "error"), ""):
        raise GenerateError(f"{model.name} gave no answer: {failed}.", fix="Ask again.")
    line = prediction(model, conversation, answers)
    if as_json:
        print_json(line)
        return
    for number, (answer, shown) in enumerate(zip(answers, line.get("predictions", [line]), strict=True), 1):
        if len(answers) > 1:
            err.print(f"[{number}]", style="dim")
        write(answer.text + "\n")
        if scores := shown.get("logprobs"):
            _show_scores(scores)
    if any(answer.finish == "length" for answer in answers):
        err.print("The limit was reached; max_new_tokens=N raises it.", style="dim")


def _show_scores(scores: Sequence[Mapping[str, Any]]) -> None:
    """A row for each token: what it is, its log-probability, and what was likeliest at its place."""
    rows = [
        (_quoted(one), _rounded(one), "  ".join(f"{_quoted(t)} {_rounded(t)}" for t in one["top_logprobs"]))
        for one in scores
    ]
    columns = ("token", "log-probability", "likeliest there")
    width = 3 if scores[0]["top_logprobs"] else 2
    print_table(table(columns[:width], [row[:width] for row in rows], numbers=columns[1:2]), err)


def _quoted(one: Mapping[str, Any]) -> str:
    if "\ufffd" in one["token"] and one["bytes"]:
        return f"<{bytes(one['bytes']).hex(' ')}>"  # a part of a character
    return json.dumps(one["token"], ensure_ascii=False)


def _rounded(one: Mapping[str, Any]) -> str:
    return f"{one['logprob']:.3f}"


def _told(summary: Summary) -> str:
    before = f" ({summary.resumed} were there already)" if summary.resumed else ""
    limited, failed = summary.finish["length"], summary.finish["error"]
    cut = f" {limited} reached the limit of tokens; max_new_tokens=N raises it." if limited else ""
    lost = (
        f" {failed} failed, and have the reason under `error`; --resume asks these again." if failed else ""
    )
    return (
        f"{summary.prompts} prompts answered{before}: {summary.tokens:,} tokens in {summary.seconds:.1f} s, "
        f"{summary.tokens_per_second:,.0f} tokens/s.{cut}{lost}"
    )
