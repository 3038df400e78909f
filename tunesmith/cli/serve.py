"""`tunesmith serve MODEL|RUN [RUN…]`: how to ask the server on stderr, its URL on stdout."""

from __future__ import annotations

import json
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import tunesmith
from tunesmith.cli.console import err, json_option, out, print_json, told
from tunesmith.infer.config import NEW_TOKENS
from tunesmith.model.config import Dtype
from tunesmith.serve.address import BATCH_SIZE, HOST, PORT, QUEUE, check_address
from tunesmith.serve.asking import defaults_of
from tunesmith.serve.names import check_served
from tunesmith.settings import parse_overrides
from tunesmith.words import counted

if TYPE_CHECKING:
    from tunesmith.serve.openai import Seen
    from tunesmith.serve.run import Ready

app = typer.Typer(add_completion=False)

EXAMPLES = """\b
Examples:
  tunesmith serve runs/tang-1                      what you trained, and its base
  tunesmith serve runs/tang-1 runs/tang-2          several: a request names the one it wants
  tunesmith serve smollm2-135m temperature=0.3     settings where a request gives none
  tunesmith serve runs/tang-1 --token-file serve.key   the same key at every start
Fields, limits, safety: docs/serve.md
"""


@app.command(epilog=EXAMPLES)
def serve(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL|RUN... [key=value]...",
            help="What answers; settings where a request gives none.",
            show_default=False,
        ),
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = PORT,
    host: Annotated[str, typer.Option(help="Address; another than this needs --token-file.")] = HOST,
    token_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Keep the key in this file (made where it's missing)."),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, max=256, help="Answers computed at once.")] = BATCH_SIZE,
    queue: Annotated[int, typer.Option(min=0, max=10000, help="Answers that may wait besides.")] = QUEUE,
    dtype: Annotated[Dtype, typer.Option(help="Number format of the weights.")] = "auto",
    template: Annotated[
        str | None, typer.Option(metavar="NAME|FILE", help="Chat template, for models without one.")
    ] = None,
    as_json: Annotated[bool, json_option] = False,
) -> None:
    """Answer other programs through OpenAI's API, until Ctrl-C."""
    given = words or []
    settings = [word for word in given if "=" in word and not Path(word).exists()]
    names = [word for word in given if word not in settings]
    asked = parse_overrides(settings)
    defaults_of(asked)  # mistakes are told before anything is loaded
    check_served(names)
    check_address(host, port, token_file)

    def ready(found: Ready) -> None:
        if as_json:
            print_json(_as_json(found))
        else:
            _tell(found, host, kept=token_file is not None)
        out.file.flush()

    try:
        tunesmith.serve(
            *names, host=host, port=port, token_file=token_file, batch_size=batch_size, queue=queue,
            dtype=dtype, template=template, ready=ready, log=_log, note=told, **asked,
        )  # fmt: skip
    except KeyboardInterrupt:
        raise KeyboardInterrupt("Stopped.") from None


def _tell(found: Ready, host: str, *, kept: bool) -> None:
    """How to ask, in lines that can be copied. The key itself is for a person's screen alone."""
    screen = sys.stderr.isatty()
    model, key = found.models[0], found.key if screen else f"$(cat {shlex.quote(str(found.key_file))})"
    for note in found.notes:
        err.print(note)
    limit = found.defaults.get("max_new_tokens", NEW_TOKENS)
    shown = {**found.defaults, "max_new_tokens": limit}
    err.print("Ready. Models:", style="bold")
    for name in found.models:
        err.print(f"  {name}  ({found.contexts[name]:,} tokens of prompt and answer together)")
    err.print("Where a request says nothing: " + ", ".join(f"{k} {_plain(v)}" for k, v in shown.items()))
    err.print()
    err.print("In a chat program (Open WebUI, Chatbox, …), as an OpenAI-compatible provider:", style="bold")
    err.print(f"  URL    {found.url}")
    err.print(f"  key    {key}" if screen else f"  key    in {found.key_file}")
    err.print(f"  model  {model}")
    err.print("In a terminal:", style="bold")
    messages = [{"role": "user", "content": "你好"}]
    body = json.dumps({"model": model, "messages": messages}, ensure_ascii=False)
    err.print(
        f"  curl {found.url}/chat/completions -H 'Content-Type: application/json' "
        f'-H "Authorization: Bearer {key}" -d {shlex.quote(body)}'
    )
    err.print("In Python (pip install openai):", style="bold")
    in_python = repr(found.key) if screen else f"open({str(found.key_file)!r}).read().strip()"
    err.print("  from openai import OpenAI")
    err.print(f"  client = OpenAI(base_url={found.url!r}, api_key={in_python})")
    err.print(
        f"  print(client.chat.completions.create(model={model!r}, "
        f"messages={messages}).choices[0].message.content)"
    )
    err.print()
    where = f"The key stands in {found.key_file}"
    err.print(f"{where} and stays." if kept else f"{where} and is new at each start; --token-file keeps one.")
    if host not in (HOST, "localhost", "::1"):
        err.print(f"Other machines can ask at this one's address ({host}). Nothing is encrypted on the way.")
    err.print("Every request is one line below. Ctrl-C ends.")
    out.print(found.url)


def _as_json(found: Ready) -> dict[str, object]:
    """For scripts: everything but the key itself, which stays in its file."""
    return {
        "url": found.url,
        "models": list(found.models),
        "key_file": str(found.key_file),
        "contexts": dict(found.contexts),
        "settings": dict(found.defaults),
        "notes": list(found.notes),
    }


def _log(seen: Seen) -> None:
    words = [time.strftime("%H:%M:%S"), seen.method, seen.path, str(seen.status)]
    if seen.model:
        speed = seen.new_tokens / seen.seconds if seen.seconds else 0.0
        words += [
            seen.model,
            f"{counted(seen.prompt_tokens, 'token')} read, {seen.new_tokens} written",
            f"{speed:.1f} tokens/s",
        ]
    words.append(f"{seen.seconds:.2f} s")
    err.print("  ".join(words) + (f"  {seen.why}" if seen.why else ""), style="dim")


def _plain(value: object) -> str:
    return ", ".join(map(repr, value)) if isinstance(value, tuple) else str(value)
