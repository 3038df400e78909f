"""The main job from end to end: train on Tang quatrains, then show on unseen ones what changed.

make demo        or, after `make setup`:   .venv/bin/python examples/tang/demo.py [key=value …]
"""

import shlex
import sys
from pathlib import Path

from rich.text import Text

import tunesmith
from tunesmith.cli.console import err, out, print_table, table
from tunesmith.cli.eval import Watching
from tunesmith.cli.progress import TrainingProgress, one_line

HERE = Path(__file__).parent
VALID, TEST, TRUTH = (str(HERE / name) for name in ("valid.json", "test.json", "test_truth.txt"))
COUPLET_TOKENS = 64  # a couplet takes about 35
BASE_SHOWN = 24  # characters; the base model goes on and on
DRAWN = {"temperature": 0.7, "top_p": 0.9, "seed": 1}


def main(*settings: str) -> None:
    """Train and compare; `settings` win over those of job.yaml, as in `tunesmith train`."""
    with TrainingProgress(err) as progress:
        run = tunesmith.train(HERE / "job.yaml", *settings, listener=progress)

    with Watching() as watch:
        test = tunesmith.compare(
            run, data=TEST, references=TRUTH, max_new_tokens=COUPLET_TOKENS, **DRAWN, watch=watch
        )
        valid = tunesmith.compare(run, data=VALID, max_new_tokens=COUPLET_TOKENS, watch=watch)

    rows = [
        (
            a.prompt.rpartition("\n")[2],
            one_line(a.completion.text, BASE_SHOWN),
            Text(b.completion.text, "bold"),
            a.references[0],
        )
        for a, b in test.measured.rows()
    ]
    out.print("\nThe 15 test couplets, answers drawn at temperature 0.7 (seed 1):")
    print_table(table(("first couplet", "base model's answer", "tuned model's answer", "truth"), rows))
    figures = valid.content
    loss, metrics = figures["loss"], figures["metrics"]
    named = [
        ("validation loss (lower is better)", f"{loss['a']:.2f}", f"{loss['b']:.2f}"),
        *(
            (label, f"{100 * metrics[name]['a']:.0f} %", f"{100 * metrics[name]['b']:.0f} %")
            for name, label in (("verse_form", "couplet's form kept"), ("f1_char", "character F1"))
        ),
    ]
    out.print("\nBefore and after on rows not trained on, answers greedy:")
    print_table(
        table((f"{figures['n']} validation couplets", "before", "after"), named, numbers=("before", "after"))
    )
    out.print()
    out.print(f"Report: {run.report_file}", style="bold")
    out.print("Next:")
    name = shlex.quote(str(run.path))
    out.print(f"  .venv/bin/tunesmith chat {name}")
    out.print(f"  .venv/bin/tunesmith runs show {name}")
    out.print(
        "  .venv/bin/tunesmith data check examples/handbook/train.jsonl    # then train on your own rows"
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
