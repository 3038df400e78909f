"""Help, completion and `runs list` answer at once: each is run in a fresh process, as a person runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pace import AT_ONCE, yardsticks

ROOT = Path(__file__).parent.parent
HEAVY = {
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "pyarrow",
    "datasets",
    "numpy",
    "matplotlib",
    "fastapi",
}
VERBS = {
    "data", "train", "plan", "verify", "chat", "generate", "eval", "compare", "report", "judge", "benchmark",
    "blind", "runs", "doctor", "serve", "export", "make",
}  # fmt: skip

# Runs the command, then says on stderr's last line what was imported.
PROBE = """
import json, sys
from tunesmith.cli.main import main
sys.argv = ["tunesmith", *sys.argv[1:]]
try:
    main()
finally:
    sys.stdout.flush()
    print(json.dumps(sorted(sys.modules)), file=sys.stderr)
"""

# The same for many commands: each in a child of a process that has imported what all of them need.
FORKED = """
import json, os, sys
from tunesmith.cli.main import main
for line in sys.stdin:
    words, folder, said = json.loads(line)
    pid = os.fork()
    if pid == 0:
        os.chdir(folder)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT), 2)
        sys.argv = ["tunesmith", *words]
        try:
            main()
        finally:
            sys.stderr.flush()
            os.write(2, json.dumps(sorted(sys.modules)).encode())
            os._exit(0)
    print(os.waitpid(pid, 0)[1], flush=True)
"""

QUIET = """
import logging
import tunesmith.model.adapters
log = logging.getLogger("bitsandbytes.backends.cpu.ops")
log.warning("Failed to load CPU gemm_4bit_forward from kernels-community: %s.", "No module named 'kernels'")
log.warning("something else")
"""


@pytest.mark.slow  # a process that imports torch and bitsandbytes
def test_a_kernel_that_bitsandbytes_could_download_is_no_news() -> None:
    done = subprocess.run([sys.executable, "-c", QUIET], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stderr.splitlines() == ["something else"]


HELP = [["--help"], ["--version"], ["--show-completion"], ["trian"], []]
COMPLETIONS = [
    {"_TUNESMITH_COMPLETE": "complete_bash", "COMP_WORDS": "tunesmith ", "COMP_CWORD": "1"},
    {"_TUNESMITH_COMPLETE": "complete_bash", "COMP_WORDS": "tunesmith runs ", "COMP_CWORD": "2"},
    {"_TUNESMITH_COMPLETE": "complete_bash", "COMP_WORDS": "tunesmith train exa", "COMP_CWORD": "2"},
    {"_TUNESMITH_COMPLETE": "complete_zsh", "_TYPER_COMPLETE_ARGS": "tunesmith data "},
    {"_TUNESMITH_COMPLETE": "complete_fish", "_TYPER_COMPLETE_ARGS": "tunesmith ",
     "_TYPER_COMPLETE_FISH_ACTION": "get-args"},
]  # fmt: skip


@pytest.mark.parametrize("words", HELP, ids=" ".join)
def test_help_imports_no_verb_and_nothing_heavy(words: list[str]) -> None:
    modules = _modules(words)
    assert not modules & HEAVY
    assert not modules & {f"tunesmith.cli.{verb}" for verb in VERBS}


@pytest.mark.parametrize("environment", COMPLETIONS, ids=lambda e: " ".join(e.values()))
def test_completion_imports_no_verb_and_nothing_heavy(environment: dict[str, str]) -> None:
    modules = _modules([], environment)
    assert not modules & HEAVY
    assert not modules & {f"tunesmith.cli.{verb}" for verb in VERBS}


WRONG = [
    ["train", "no.yaml"], ["train", "job.yaml", "--resume"], ["train", "none", "--resume"],
    ["plan", "no.yaml"], ["verify", "no.yaml"], ["eval", "any", "--data", "no.jsonl"],
    ["compare", "a", "b", "--data", "no.jsonl"], ["chat", "any", "temprature=1"],
    ["chat", "any", "num_beams=2"], ["chat", "any", "num_return_sequences=2"],
    ["eval", "any", "--data", "rows.jsonl", "--dtype", "foo"],
    ["compare", "a", "b", "--data", "rows.jsonl", "--dtype", "foo"],
    ["generate", "any", "--input", "no.txt", "--output", "x.jsonl"],
    ["blind", "new", "a", "b", "--data", "no.jsonl"], ["blind", "new", "a.jsonl", "b.jsonl"],
    ["blind", "new", "--help"], ["blind", "serve", "no"], ["blind", "report", "--help"],
    ["blind", "page", "no"], ["judge", "a", "--judge", "b"], ["judge", "no.jsonl", "a.jsonl", "--judge", "b"],
    ["judge", "a", "b", "--data", "rows.jsonl", "--judge", "http://127.0.0.1#m"],
    ["eval", "http://127.0.0.1:1/v1#m", "--data", "rows.jsonl", "top_k=3"],
    ["serve"], ["serve", "runs/none"], ["serve", "./none"], ["serve", "any", "temprature=1"],
    ["serve", "any", "--host", "0.0.0.0"], ["serve", "any", "--host", "evil.example"],
    ["benchmark", "any", "--tasks", ","], ["report", "no", "--format", "x"],
    ["export", "no", "--to", "ggf"], ["export", "no", "--to", "merged"],
    ["export", "runs/no", "--to", "merged"],
    ["make", "no.txt", "--output", "x.jsonl", "--kind", "continue"],
    ["make", "rows.jsonl", "--output", "x.jsonl"],
    ["make", "job.yaml", "--output", "x.jsonl", "--model", "a", "--judge", "b", "temprature=1"],
    ["make", "job.yaml", "--output", "x.jsonl", "--model", "a", "--judge", "b", "--dry-run"],
    ["make", "--show-prompts"],
]  # fmt: skip


@pytest.fixture(scope="module")
def forking() -> Iterator[subprocess.Popen[str]]:
    command, pipe = [sys.executable, "-c", FORKED], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=ROOT) as process:
        yield process


@pytest.mark.parametrize(
    "words", [*([verb, "--help"] for verb in sorted(VERBS - {"doctor"})), *WRONG], ids=" ".join
)
def test_help_and_mistakes_of_every_verb_wait_for_nothing_heavy(
    forking: subprocess.Popen[str], words: list[str], tmp_path: Path
) -> None:
    (tmp_path / "rows.jsonl").write_text('{"instruction": "1 + 1?", "output": "2"}\n')
    (tmp_path / "job.yaml").write_text("data: {train: rows.jsonl}\n")
    assert forking.stdin is not None
    assert forking.stdout is not None
    forking.stdin.write(json.dumps([words, str(tmp_path), str(tmp_path / "said")]) + "\n")
    forking.stdin.flush()
    assert forking.stdout.readline() == "0\n"
    said = (tmp_path / "said").read_text(encoding="utf-8")
    assert "Traceback" not in said
    modules = set(json.loads(said.splitlines()[-1]))
    assert "tunesmith.cli.main" in modules
    assert not modules & HEAVY


@pytest.mark.parametrize(
    "words", [["runs", "list"], ["runs", "list", "--json"], ["runs", "--help"]], ids=" ".join
)
def test_runs_list_imports_nothing_heavy(words: list[str], tmp_path: Path) -> None:
    _made_runs(tmp_path, 2)
    assert not _modules(words, cwd=tmp_path) & HEAVY


def test_what_raters_need_waits_for_no_torch(tmp_path: Path) -> None:
    for name in ("a", "b"):
        line = {"id": "1", "prompt": "1 + 1?", "prediction": name}
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(line) + "\n")
    words = ["blind", "new", "a.jsonl", "b.jsonl", "--output", "test"]
    assert not _modules(words, cwd=tmp_path) & HEAVY
    assert not _modules(["blind", "page", "test"], cwd=tmp_path) & HEAVY
    item = json.loads((tmp_path / "test/test.json").read_text())["items"][0]["id"]
    rating = {"rater": "x", "item": item, "choice": "left"}
    (tmp_path / "test/ratings.jsonl").write_text(json.dumps(rating) + "\n")
    modules = _modules(["blind", "report", "test"], cwd=tmp_path)
    assert modules & HEAVY == {"numpy"}
    # A test that is unsealed isn't served, which is told once the server's modules are there.
    modules = _modules(["blind", "serve", "test"], cwd=tmp_path)
    assert "tunesmith.serve.blind" in modules
    assert not modules & HEAVY


def test_a_report_waits_for_no_torch(tmp_path: Path) -> None:
    _made_runs(tmp_path, 1)
    assert _modules(["report", "runs/tang-1"], cwd=tmp_path) & HEAVY <= {"numpy"}


def test_runs_show_imports_nothing_heavy(tmp_path: Path) -> None:
    _made_runs(tmp_path, 1)
    assert not _modules(["runs", "show", "runs/tang-1"], cwd=tmp_path) & HEAVY


@pytest.mark.parametrize(
    "words", [["--help"], ["runs", "list"], ["runs", "show", "runs/tang-1"]], ids=" ".join
)
def test_an_answer_is_there_at_once(words: list[str], tmp_path: Path) -> None:
    _made_runs(tmp_path, 20)
    assert yardsticks([*_command(), *words], tmp_path) <= AT_ONCE


def test_completion_keeps_up_with_typing(tmp_path: Path) -> None:
    assert yardsticks(_command(), tmp_path, COMPLETIONS[0]) <= AT_ONCE


def test_the_yardstick_sees_a_heavy_import(tmp_path: Path) -> None:
    code = "import torch; from tunesmith.cli.main import main; main()"
    assert yardsticks([sys.executable, "-c", code, "runs", "list"], tmp_path, tries=1) > AT_ONCE


def test_the_package_and_its_settings_are_free_of_torch() -> None:
    files = [*(ROOT / "tunesmith").glob("*/config.py"), *(ROOT / "tunesmith/data").glob("read.py")]
    names = [".".join(file.relative_to(ROOT).with_suffix("").parts) for file in sorted(files)]
    names += ["tunesmith", "tunesmith.errors", "tunesmith.records", "tunesmith.settings", "tunesmith.rundir"]
    code = f"import sys, {', '.join(names)}; print('torch' in sys.modules, 'transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
    assert len(names) > 8


def test_the_probe_sees_a_heavy_import() -> None:
    code = PROBE.replace("import json, sys", "import json, sys, numpy")
    assert "numpy" in _modules(["--help"], code=code)


def _modules(
    words: list[str], environment: dict[str, str] | None = None, cwd: Path = ROOT, code: str = PROBE
) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        capture_output=True, encoding="utf-8", cwd=cwd, env=os.environ | (environment or {}),
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    modules = set(json.loads(done.stderr.splitlines()[-1]))
    assert "tunesmith.cli.main" in modules
    return modules


def _command() -> list[str]:
    script = Path(sys.executable).with_name("tunesmith")
    return [str(script)] if script.exists() else [sys.executable, "-m", "tunesmith.cli.main"]


def _made_runs(folder: Path, count: int) -> None:
    for number in range(1, count + 1):
        run = folder / "runs" / f"tang-{number}"
        (run / "adapter").mkdir(parents=True)
        (run / "job.yaml").write_text(
            "job:\n  model: smollm2-135m\n  data: {train: [{path: train.json, weight: 1.0}]}\n"
            "base: {name: smollm2-135m, kind: embedded}\nsteps: 40\nstarted: '2026-01-02T03:04:05'\n",
            encoding="utf-8",
        )
        lines = [{"step": 0, "valid_loss": 3.84, "valid_perplexity": 46.5}]
        for step in range(1, 41):
            lines.append(
                {"step": step, "epoch": step / 40, "loss": 3.8 - step / 40, "grad_norm": 1.0,
                 "learning_rate": 1e-3, "tokens": 4096, "unique_tokens": 4096, "label_tokens": 900,
                 "rows": 32, "tokens_per_second": 800.0, "peak_memory_bytes": 2**30, "seconds": 5.0}
            )  # fmt: skip
        lines.append({"step": 40, "valid_loss": 2.79, "valid_perplexity": 16.3})
        (run / "metrics.jsonl").write_text(
            "".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8"
        )
