"""`tunesmith plan JOB.yaml|RUN [key=value …]`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

import tunesmith
from tunesmith.cli.console import JobOrRun, JobSettings, err, json_option, out, print_json, print_table, table
from tunesmith.train import cards
from tunesmith.train.config import load_job_or_run
from tunesmith.words import duration, size

if TYPE_CHECKING:
    from tunesmith.train.plan import Plan

app = typer.Typer(add_completion=False)

EXAMPLES = """\b
Examples:
  tunesmith plan job.yaml                                 this machine; three real steps are measured
  tunesmith plan job.yaml --no-probe train.epochs=1       by arithmetic alone
  tunesmith plan job.yaml --card 4090 model=Qwen/Qwen2.5-7B-Instruct
  tunesmith plan job.yaml --memory 24GB --json
  tunesmith plan runs/tang-1                              the job of a run once more
Exit code 2: it doesn't fit; the settings of a job that does are printed.
"""


@app.command(epilog=EXAMPLES)
def plan(
    job: JobOrRun,
    settings: JobSettings = None,
    card: Annotated[
        str | None, typer.Option(help="Plan for a graphics card by name, such as 4090 or A100.")
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(help="Plan for a graphics card with so much memory, such as 24GB (as GiB, 2^30 bytes)."),
    ] = None,
    no_probe: Annotated[bool, typer.Option("--no-probe", help="Don't run three real steps.")] = False,
    as_json: Annotated[bool, json_option] = False,
) -> None:
    """Say what a training takes in memory, disk and time, before anything is downloaded or trained."""
    # Mistakes are told before torch is imported, which takes seconds.
    load_job_or_run(job, settings or [])
    if card is not None:
        cards.find(card)
    if memory is not None:
        cards.parse_memory(memory)
    found = tunesmith.plan(
        job, *(settings or []), card=card, memory=memory, probe=not no_probe,
        note=lambda text: err.print(text, style="dim"),
    )  # fmt: skip
    if as_json:
        print_json(found.to_json())
    else:
        _show(found)
    if not found.fits:
        raise typer.Exit(2)


def _show(plan: Plan) -> None:
    sizes, work = plan.sizes, plan.work
    how = "counted" if work.exact else "guessed from characters"
    rows: list[tuple[object, ...]] = [
        ("parameters", f"{sizes.parameters:,}", f"counted; model from: {plan.origin}"),
        ("trained", f"{sizes.trained:,} ({100 * sizes.trained / sizes.parameters:.2g} %)", "counted"),
        ("rows, steps", f"{work.rows:,}, {work.steps:,}", how),
        ("tokens", f"{work.tokens:,}", how),
        ("  of them computed", f"{work.computed:,}", f"{how}; common beginnings once"),
        ("largest microbatch", f"{work.microbatch:,} tokens", how),
    ]
    exact = ("weights", "gradients", "optimizer")
    rows += [
        (f"memory: {name}", size(held), "counted" if name in exact else "estimated")
        for name, held in plan.parts.items()
    ]
    told = "measured in three steps" if plan.probe else "estimated"
    rows.append(("memory, peak", f"{size(plan.peak)} of {size(plan.target.memory)}", told))
    rows += [(f"disk: {name}", size(held), "counted") for name, held in plan.disk.items() if held]
    if plan.seconds is None:
        rows.append(("time", "unknown", "give the card's name: --card"))
    else:
        rows += [
            (f"time: {name}", duration(value), told) for name, value in plan.seconds.items() if value >= 1
        ]
        rows.append(("time in all", duration(sum(plan.seconds.values())), told))
    print_table(table(("what", "how much", "how known"), rows, numbers=("how much",)), out)
    err.print(
        f"For {plan.target.name}, {plan.target.device.dtype_name}" + (", compiled." if plan.compiled else ".")
    )
    if plan.changed:
        err.print(f"As training does on its own where memory asks for it: {' '.join(plan.changed)}.")
    if plan.fits:
        err.print("It fits.", style="bold")
        return
    err.print(f"It doesn't fit: {size(plan.peak)} needed, {size(plan.target.memory)} free.", style="bold red")
    if plan.fitting is None:
        err.print(
            "What to do: no change of settings was found that fits; use a larger machine or a smaller model."
        )
    else:
        err.print("What to do: this would fit, by arithmetic; add to the command:")
        out.print(" ".join(plan.fitting))
