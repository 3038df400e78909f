"""What a run was made from, and how that differs from what is there now: job, data, tokenizer, base, code.

Reads job.yaml's facts alone; torch isn't imported.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

Facts = Mapping[str, Any]

# Settings of a job that change neither its steps nor their result.
LOOSE = frozenset(
    f"train.{name}"
    for name in ("save_every", "save_minutes", "keep", "track", "sample_every", "sample_prompts")
)
# Those that say how long it is.
LENGTH = frozenset({"train.epochs", "train.max_steps"})
# Mappings that are one setting: all of it is there or nothing.
WHOLE = frozenset({"schedule_options", "evaluate"})
# Of the package's files, by their endings, those that decide what a training computes.
SOURCES = frozenset({".py", ".cpp", ".h", ".jinja"})
# With others of these a checkpoint's tensors fit nowhere.
SHAPES = ("adapter.", "train.optimizer", "train.objective", "model")


def flat_job(job: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Settings as `train.epochs` -> value, without `output`; relative paths are those of `folder`."""
    flat = _flat({key: value for key, value in job.items() if key != "output"}, "")
    for key in ("data.train", "data.valid"):
        if isinstance(flat.get(key), list):
            flat[key] = [{**file, "path": _absolute(file["path"], folder)} for file in flat[key]]
    if isinstance(evaluate := flat.get("train.evaluate"), dict) and evaluate.get("prompts"):
        flat["train.evaluate"] = {**evaluate, "prompts": _absolute(evaluate["prompts"], folder)}
    named_files = ("data.info", "adapter.continue_from", "model", "data.template")
    for key in named_files:
        value = flat.get(key)
        if isinstance(value, str) and (folder / value).exists():
            flat[key] = _absolute(value, folder)
    return flat


def made_from(facts: Facts) -> dict[str, str]:
    """A hash of each thing that a run was made from, for the manifests of its checkpoints."""
    job = {k: v for k, v in _flat(facts["job"], "").items() if k not in LOOSE | LENGTH and k != "output"}
    return {
        "job": _hash(job),
        "data": _hash([sorted(facts["data_sha256"].values()), facts["examples_sha256"]]),
        "tokenizer": _hash([facts["tokenizer_sha256"], facts["template"]["sha256"]]),
        "base": facts["base"]["fingerprint"],
        "code": facts["code_sha256"],
    }


def inputs_changed(then: Facts, now: Facts) -> list[str]:
    """A line for each of data, tokenizer, template and base that isn't what it was."""
    lines = _files_changed(then["data_sha256"], now["data_sha256"])
    if not lines and then["examples_sha256"] != now["examples_sha256"]:
        lines.append("rows: the same files are read as other tokens than then")
    if then["tokenizer_sha256"] != now["tokenizer_sha256"]:
        lines.append(_line("tokenizer", then["tokenizer_sha256"][:12], now["tokenizer_sha256"][:12]))
    if then["template"]["sha256"] != now["template"]["sha256"]:
        lines.append(_line("template", *(_template(facts) for facts in (then, now))))
    if then["base"]["fingerprint"] != now["base"]["fingerprint"]:
        prints = (facts["base"]["fingerprint"][:12] for facts in (then, now))
        lines.append(_line(f"model {then['base']['name']}: fingerprint", *prints))
    return lines


def machine_changed(then: Facts, now: Facts) -> list[str]:
    """What of the machine and its software differs: results will then differ in the last digits."""
    names = ("device", "dtype", "threads", "cpu", "packing", "segments", "sharing", "compiled", "kernels")
    # A run of an earlier version may not say all of them.
    lines = [_line(n, then[n], now.get(n)) for n in names if n in then and then[n] != now.get(n)]
    versions = (then["versions"], now["versions"])
    lines += [
        _line(name, *(v.get(name) for v in versions))
        for name in sorted({*versions[0], *versions[1]})
        if versions[0].get(name) != versions[1].get(name)
    ]
    if then.get("code_sha256") != now.get("code_sha256") and not any("tunesmith" in line for line in lines):
        lines.append("tunesmith's own code")
    return lines


def files_differ(facts: Facts) -> list[str]:
    """Data files of a run that aren't what they were, as far as a look at the files tells."""
    folder = Path(str(facts.get("folder", "")))
    changed = []
    for path, sha256 in facts.get("data_sha256", {}).items():
        file = folder / path
        if file.is_file() and hashlib.sha256(file.read_bytes()).hexdigest() != sha256:
            changed.append(path)
    return changed


@cache
def code_sha256() -> str:
    """A hash over the package's own sources."""
    digest = hashlib.sha256()
    root = Path(__file__).parents[1]
    for file in sorted(root.rglob("*")):
        if file.suffix in SOURCES:
            digest.update(f"{file.relative_to(root)}\0".encode() + file.read_bytes())
    return digest.hexdigest()


def changed_line(name: str, then: Any, now: Any) -> str:
    """`train.epochs: 3 in the run, 5 now`."""
    return f"{name}: {_shown(then)} in the run, {_shown(now)} now"


def _files_changed(then: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    # By content: the same file may be named by another path from another folder.
    gone, new = Counter(then.values()) - Counter(now.values()), Counter(now.values()) - Counter(then.values())
    if not gone and not new:
        return []
    lines = []
    left = {path: sha for path, sha in now.items() if sha in new}
    for path, sha in then.items():
        if sha not in gone:
            continue
        same = next((other for other in left if Path(other).name == Path(path).name), None)
        if same is None:
            lines.append(f"data {path}: it isn't read any more")
        else:
            lines.append(_line(f"data {path}: sha256", sha[:12], left.pop(same)[:12]))
    return lines + [f"data {path}: it wasn't read then" for path in left]


def _template(facts: Facts) -> str:
    return f"{facts['template']['name']} ({facts['template']['sha256'][:12]})"


def _line(name: str, then: Any, now: Any) -> str:
    return f"{name} {_shown(then)} then, {_shown(now)} now"


def _shown(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else str(value)


def _flat(content: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in content.items():
        inner = isinstance(value, Mapping) and key not in WHOLE
        flat |= _flat(value, f"{prefix}{key}.") if inner else {prefix + key: value}
    return flat


def _absolute(path: str, folder: Path) -> str:
    return path if "://" in path else str((folder / path).absolute().resolve())


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
