"""The layout that the design promises: imports go down, files stay short, names say what a file is for."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# Stages of one row don't import each other; each row may import the rows below it.
LAYERS = [
    ("cli",),  # of the design's top row, the command line stands on the Python API: one code path for both
    ("api",),
    ("serve",),
    ("evaluate", "export"),
    ("train", "infer", "synth"),
    ("data", "model"),
    ("settings", "rundir", "journal", "worklog", "device", "redact"),
    ("disk",),
    ("errors", "records", "words", "locks", "failpoints", "places", "children"),
]
LEVEL = {stage: len(LAYERS) - 1 - row for row, stages in enumerate(LAYERS) for stage in stages}
LINES = 400
SOURCES = {".py", ".cpp", ".js", ".css", ".html", ".jinja"}
BANNED = {"utils", "util", "common", "commons", "helpers", "helper", "misc"}
# The two places where a module is looked up when it's needed: the table of verbs, and the public names.
LAZY = {"cli/main.py", "__init__.py"}


def test_the_project_keeps_its_layout() -> None:
    assert breaches(ROOT) == []


def test_every_stage_of_the_package_is_looked_at() -> None:
    stages = {_stage(file.relative_to(ROOT / "tunesmith")) for file in (ROOT / "tunesmith").rglob("*.py")}
    assert {"cli", "api", "train", "data", "model", "settings", "errors"} <= stages


GOOD = {
    "tunesmith/__init__.py": "def __getattr__(name):\n    from tunesmith.api import load\n",
    "tunesmith/api/training.py": "from tunesmith.train import run\nfrom tunesmith.evaluate import run\n",
    "tunesmith/errors.py": "",
    "tunesmith/settings.py": "from tunesmith.errors import TunesmithError\n",
    "tunesmith/data/read.py": "from tunesmith.data import formats\nimport json\n",
    "tunesmith/data/formats.py": "from __future__ import annotations\n",
    "tunesmith/train/run.py": "import tunesmith.data.read\nfrom tunesmith import settings\n",
    "tunesmith/evaluate/run.py": "from tunesmith.train.run import train\n",
    "tunesmith/cli/main.py": "def load(name):\n    import tunesmith.cli.train\n",
    "tunesmith/cli/train.py": "from tunesmith import api\n",
    "tests/data/test_read.py": "from tunesmith.cli import main\n",
}


def test_a_tree_that_keeps_the_rules_has_no_breach(tmp_path: Path) -> None:
    assert breaches(_tree(tmp_path, {})) == []


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("tunesmith/data/read.py", "from tunesmith.train.run import train\n", "upward"),
        ("tunesmith/data/read.py", "import tunesmith.train.run\n", "upward"),
        ("tunesmith/data/read.py", "from tunesmith import api\n", "upward"),
        ("tunesmith/data/read.py", "import tunesmith\n", "upward"),
        ("tunesmith/data/read.py", "from ..train import run\n", "upward"),
        ("tunesmith/errors.py", "if True:\n    from tunesmith import settings\n", "upward"),
        ("tunesmith/train/run.py", "from tunesmith.api import load\n", "upward"),
        ("tunesmith/train/run.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n"
         "    from tunesmith.evaluate import run\n", "upward"),
        ("tunesmith/data/read.py", "from tunesmith.model import source\n", "sideways"),
        ("tunesmith/model/config.py", "from tunesmith.data.config import DataSettings\n", "sideways"),
        ("tunesmith/settings.py", "from tunesmith import rundir\n", "sideways"),
        ("tunesmith/records.py", "from tunesmith.errors import DataError\n", "sideways"),
        ("tunesmith/api/training.py", "from tunesmith.cli import console\n", "upward"),
        ("tunesmith/train/run.py", "def f():\n    from tunesmith.data import read\n", "inside a function"),
        ("tunesmith/train/run.py", "class A:\n    async def f(self):\n        import tunesmith.errors\n",
         "inside a function"),
        ("tunesmith/cli/train.py", "import importlib\nimportlib.import_module('tunesmith.train.run')\n",
         "import_module"),
        ("tunesmith/data/__init__.py", "def f():\n    import tunesmith.data.read\n", "inside a function"),
        ("tunesmith/data/long.py", "x = 1\n" * 401, "401 lines"),
        ("tests/data/test_long.py", "x = 1\n" * 401, "401 lines"),
        ("tunesmith/serve/page.js", "1;\n" * 401, "401 lines"),
        ("tunesmith/data/utils.py", "", "says nothing"),
        ("tunesmith/data/text_helpers.py", "", "says nothing"),
        ("tunesmith/common/read.py", "", "says nothing"),
        ("tests/misc/test_all.py", "", "says nothing"),
        ("tunesmith/magic/wand.py", "", "no layer"),
        ("tunesmith/magic.py", "", "no layer"),
    ],
)  # fmt: skip
def test_each_breach_is_caught(tmp_path: Path, file: str, text: str, message: str) -> None:
    found = breaches(_tree(tmp_path, {file: text}))
    assert found
    assert all(line.startswith(file) for line in found)
    assert any(message in line for line in found), found


def test_400_lines_are_allowed(tmp_path: Path) -> None:
    assert breaches(_tree(tmp_path, {"tunesmith/data/long.py": "x = 1\n" * 400})) == []


def breaches(root: Path) -> list[str]:
    """Every breach of the layout below a project's root, as `file[:line]: what is wrong`."""
    package = root / "tunesmith"
    found = []
    for folder in ("tunesmith", "tests", "examples", "docs", "bench"):
        for file in sorted((root / folder).rglob("*")):
            if file.suffix in SOURCES and "__pycache__" not in file.parts:
                name = str(file.relative_to(root))
                found += [f"{name}: {what}" for what in _name_and_length(file.relative_to(root), file)]
    for file in sorted(package.rglob("*.py")):
        inside = file.relative_to(package)
        found += [
            f"tunesmith/{inside}{what}" for what in _imports(inside, ast.parse(file.read_text("utf-8")))
        ]
    return found


def _name_and_length(name: Path, file: Path) -> Iterator[str]:
    for part in name.with_suffix("").parts:
        if BANNED & set(part.lower().split("_")):
            yield f"the name {part!r} says nothing about what it holds"
    lines = len(file.read_text("utf-8").splitlines())
    if lines > LINES:
        yield f"{lines} lines, more than {LINES}"


def _imports(inside: Path, tree: ast.Module) -> Iterator[str]:
    stage = _stage(inside)
    if stage not in LEVEL:
        yield f": {stage!r} has no layer in the design"
        return
    lazy = str(inside) in LAZY
    for node, in_function in _walk(tree):
        for target in _targets(node, inside):
            other = _stage_of_module(target)
            if in_function and not lazy:
                yield f":{node.lineno}: import of {target} inside a function"
            elif lazy and in_function:
                continue
            elif other != stage and LEVEL.get(other, 0) > LEVEL[stage]:
                yield f":{node.lineno}: upward import of {target}"
            elif other != stage and LEVEL.get(other, 0) == LEVEL[stage]:
                yield f":{node.lineno}: sideways import of {target}"
        if not lazy and _names_own_module(node):
            yield f":{node.lineno}: import_module hides an import"


def _walk(node: ast.AST, in_function: bool = False) -> Iterator[tuple[ast.stmt | ast.expr, bool]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt | ast.expr):
            yield child, in_function
        inner = in_function or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        yield from _walk(child, inner)


def _targets(node: ast.AST, inside: Path) -> list[str]:
    """The modules of the own package that a statement imports, as dotted names."""
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        # `from ..train import run`: each dot beyond the first goes up one folder from this file's own.
        above = ("tunesmith", *inside.parent.parts)
        base = above[: len(above) - node.level + 1] if node.level else ()
        module = ".".join([*base, *([node.module] if node.module else [])])
        names = [f"{module}.{alias.name}" for alias in node.names] if module == "tunesmith" else [module]
    else:
        names = []
    return [name for name in names if name.split(".")[0] == "tunesmith"]


def _names_own_module(node: ast.AST) -> bool:
    if not (isinstance(node, ast.Call) and node.args):
        return False
    called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    first = node.args[0]
    named = isinstance(first, ast.Constant) and str(first.value).startswith("tunesmith")
    return called in ("import_module", "__import__") and named


def _stage_of_module(module: str) -> str:
    parts = module.split(".")
    # Names such as __version__ come from the package itself, which is the public API.
    return parts[1] if len(parts) > 1 and parts[1] in LEVEL else "api"


def _stage(inside: Path) -> str:
    """The stage of a file given relative to the package: its folder, or its own name at the top."""
    if len(inside.parts) > 1:
        return inside.parts[0]
    return "api" if inside.stem == "__init__" else inside.stem


def _tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in (GOOD | files).items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root
