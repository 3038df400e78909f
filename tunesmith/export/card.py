"""The model card: README.md of an export, for people and for the Hugging Face hub.

It holds names, counts, hashes and figures; never a row of the data, a path or a setting that could be a
secret. Front matter: https://huggingface.co/docs/hub/model-cards
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import PurePath
from typing import Any

import yaml

from tunesmith.errors import TunesmithError
from tunesmith.export.config import IN_LLAMACPP
from tunesmith.export.gate import Verification
from tunesmith.export.work import Work, Written
from tunesmith.rundir import RunDir

PACKAGES = ("tunesmith", "torch", "transformers", "peft")
# Of the job, what made the result; all else says nothing to others, or too much (trackers, folders).
_ADAPTER = ("type", "rank", "alpha", "dropout", "targets", "rslora", "init", "last_layers")
_TRAIN = (
    "objective", "epochs", "max_steps", "learning_rate", "schedule", "warmup", "tokens_per_step",
    "batch_size", "accumulate", "optimizer", "weight_decay", "clip", "label_smoothing", "neftune", "seed",
)  # fmt: skip
_DATA = ("max_length", "too_long", "train_on", "packing")


def card(work: Work, written: Written, verification: Verification) -> str:
    """README.md's text."""
    parts = [_front(work, written), f"# {_title(work)}\n", _what(work, written), _usage(written)]
    parts += [part for part in (_data(work), _settings(work), _figures(work)) if part]
    parts += [_checked(verification), _limits(work), _made()]
    return "\n".join(parts)


def _front(work: Work, written: Written) -> str:
    base = work.base
    content: dict[str, Any] = {"library_name": written.library}
    if base.hub:
        content["base_model"] = base.hub
        content["base_model_relation"] = "adapter" if written.library == "peft" else "finetune"
    if base.licence and re.fullmatch(r"[a-z0-9.\-]+", base.licence):
        content["license"] = base.licence
    if languages := _languages(work):
        content["language"] = languages
    content["pipeline_tag"] = "text-generation"
    kind = (work.subject.found.meta.get("adapter") or {}).get("type")
    content["tags"] = list(dict.fromkeys(["tunesmith", *written.tags, *([str(kind)] if kind else [])]))
    return "---\n" + yaml.safe_dump(content, sort_keys=False, allow_unicode=True) + "---\n"


def _title(work: Work) -> str:
    run = work.subject.run
    name = run.path.resolve().name if run else PurePath(work.subject.found.name).name
    return f"{name} ({work.request.to})"


def _what(work: Work, written: Written) -> str:
    base, subject = work.base, work.subject
    settings = subject.found.meta.get("adapter") or {}
    kind = {"full": "all weights tuned", "freeze": "last layers tuned", "dora": "DoRA", "lora": "LoRA"}.get(
        str(settings.get("type")), "LoRA" if subject.found.adapter else "as it is"
    )
    lines = [
        f"- Base model: {_linked(base.hub, base.name)}"
        + (f", revision `{base.revision}`" if base.revision else "")
        + (f", fingerprint `{base.fingerprint[:16]}`" if base.fingerprint else ""),
        f"- Licence of the base: {base.licence or 'not known here; look before you share this'}",
        f"- Tuned: {kind}" + (f", weights of step {subject.step}" if subject.step is not None else ""),
    ]
    if work.request.to != "adapter":
        in_llamacpp = work.request.to in IN_LLAMACPP
        kind = work.request.type if in_llamacpp else str(work.dtype).removeprefix("torch.")
        lines.append(f"- Weights: {kind}")
    if held := subject.found.meta.get("quantization"):
        lines.append(
            f"- Trained over a base in {held['type']}"
            + ("; merged into the base in 16 bits" if work.request.to != "adapter" else "")
        )
    lines += [f"- {note}" for note in written.notes]
    return "\n".join(lines) + "\n"


def _usage(written: Written) -> str:
    return f"## How to use it\n\n{written.usage}"


def _data(work: Work) -> str:
    rows = list(_files(work))
    if not rows:
        return ""
    lines = ["## Data\n", "| part | file | rows read | sha256 |", "|---|---|---:|---|"]
    lines += [f"| {part} | {name} | {count:,} | `{sha[:16]}` |" for part, name, count, sha in rows]
    trained = {sha for part, _, _, sha in rows if part == "train"}
    if any(part == "valid" and sha in trained for part, _, _, sha in rows):
        lines.append("\nThe validation rows are held out of the same file, so that it stands in both lines.")
    report = work.subject.run.data_report() if work.subject.run else {}
    for part in ("train", "valid"):
        if (content := report.get(part)) and "examples" in content:
            lines.append(
                f"\n{part}: {content['examples']:,} examples, {content.get('tokens', 0):,} tokens, "
                f"{content.get('label_tokens', 0):,} of them trained on; "
                f"{content.get('dropped', 0):,} rows dropped, {content.get('cut', 0):,} cut."
            )
    return "\n".join(lines) + "\n"


def _files(work: Work) -> Iterator[tuple[str, str, int, str]]:
    report = work.subject.run.data_report() if work.subject.run else {}
    for part in ("train", "valid"):
        for file in (report.get(part) or {}).get("files", ()):
            name = PurePath(str(file.get("path"))).name.replace("|", r"\|")
            yield part, name, int(file.get("good", file.get("rows", 0))), str(file.get("sha256", ""))


def _settings(work: Work) -> str:
    job = work.subject.record.get("job") or {}
    if not job:
        return ""
    picked = {
        "adapter": _picked(job.get("adapter"), _ADAPTER),
        "train": _picked(job.get("train"), _TRAIN),
        "data": _picked(job.get("data"), _DATA),
        "quantization": job.get("quantization"),
    }
    text = yaml.safe_dump({k: v for k, v in picked.items() if v}, sort_keys=False, allow_unicode=True)
    record = work.subject.record
    trained = (
        f"{record['trainable']:,} of {record['parameters']:,} parameters were trained, in "
        f"{record.get('steps', '?')} steps at most, in {record.get('dtype', '?')}.\n"
        if "trainable" in record and "parameters" in record
        else ""
    )
    return f"## Settings\n\n{trained}\n```yaml\n{text}```\n"


def _picked(content: Any, names: tuple[str, ...]) -> dict[str, Any]:
    return (
        {name: content[name] for name in names if content.get(name) is not None}
        if isinstance(content, dict)
        else {}
    )


def _figures(work: Work) -> str:
    run = work.subject.run
    if run is None:
        return ""
    lines = []
    losses = [(line["step"], line["valid_loss"]) for line in run.metrics() if "valid_loss" in line]
    before = next((loss for step, loss in losses if step == 0), None)
    after = next((loss for step, loss in reversed(losses) if step == work.subject.step), None)
    if before is not None and after is not None:
        lines.append(f"Validation loss, in nats a token: {before:.3f} before, {after:.3f} after.\n")
    rows = list(_results(run, work.subject.record))
    if rows and not work.subject.of_checkpoint:
        lines += [
            "| data | n | metric | before | after | difference, 95 % interval |",
            "|---|---:|---|---:|---:|---|",
        ]
        lines += rows
    return "## Measured\n\n" + "\n".join(lines) + "\n" if lines else ""


def _results(run: RunDir, record: Mapping[str, Any]) -> Iterator[str]:
    """Rows of what `compare` with the base and `eval` left in a run: figures with intervals."""
    base = (record.get("base") or {}).get("name")
    for file in sorted(run.eval.glob("*.json")):
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if not isinstance(content, dict):
            continue
        if content.get("kind") == "comparison" and (content.get("a") or {}).get("model") != base:
            continue  # of something else with this run: not a before and an after
        metrics = content.get("metrics")
        data = PurePath(str(content.get("data", file.stem))).name.replace("|", r"\|")
        for name, figure in metrics.items() if isinstance(metrics, dict) else ():
            if isinstance(row := _row(content, figure), str):
                yield f"| {data} | {content.get('n', '')} | {name} | {row} |"


def _row(content: Mapping[str, Any], figure: Any) -> str | None:
    try:
        if content.get("kind") == "comparison" and "a" in figure:
            apart = figure["difference"]
            return (
                f"{figure['a']:.3f} | {figure['b']:.3f} | "
                f"{apart['value']:+.3f} [{apart['low']:+.3f}, {apart['high']:+.3f}]"
            )
        if content.get("kind") == "evaluation":
            return f"| {figure['value']:.3f} | [{figure['low']:.3f}, {figure['high']:.3f}]"
    except (KeyError, TypeError, ValueError):
        return None
    return None


def _checked(found: Verification) -> str:
    lines = [
        "## Checked after the export\n",
        "These files were loaded anew and compared with the tuned model itself (`verification.json`):\n",
        "| check | | found | limit |",
        "|---|---|---|---|",
    ]
    lines += [f"| {c.name} | {c.state} | {c.figure} | {c.limit} |".replace("\n", " ") for c in found.checks]
    if found.failed:
        lines.append(
            "\n**It is further from the tuned model than the budget; that was allowed by hand "
            "(`--allow-drift`).**"
        )
    if found.quantisation:
        lines.append(
            f"\nThe adapter was trained over weights in {found.quantisation}. The 16-bit base is another "
            "model, if a close one: what was measured during training holds for the quantised base, and this "
            "export is as far from it as the line says."
        )
    lines += [f"\n{note}" for note in found.notes]
    return "\n".join(lines) + "\n"


def _limits(work: Work) -> str:
    lines = [
        "## Limits\n",
        "- It was tuned on the data above and nothing was checked beyond what is written here. A tuned model "
        "can state things that are wrong, and may have kept texts of its data.",
        "- What the base can't do, and must not be used for, holds for this one.",
    ]
    if not _has_results(work):
        lines.append("- No figures were measured on test data (`tunesmith compare RUN --data FILE`).")
    return "\n".join(lines) + "\n"


def _has_results(work: Work) -> bool:
    run = work.subject.run
    return any(_results(run, work.subject.record)) if run else False


def _made() -> str:
    day = datetime.now(UTC).date().isoformat()
    return f"Made on {day} by " + ", ".join(f"{name} {version(name)}" for name in PACKAGES) + ".\n"


def _languages(work: Work) -> list[str]:
    """zh and en where the prompts that were answered in training are mostly written so."""
    run = work.subject.run
    try:
        texts = (
            [str(line.get("reference") or line.get("prompt") or "") for line in run.samples()] if run else []
        )
    except TunesmithError:
        return []
    text = "".join(dict.fromkeys(texts))
    letters = [c for c in text if c.isalpha()]
    if not letters:
        return []
    han = sum("\u4e00" <= c <= "\u9fff" for c in letters) / len(letters)
    latin = sum(c.isascii() for c in letters) / len(letters)
    return [code for code, share in (("zh", han), ("en", latin)) if share >= 0.3]


def _linked(hub: str | None, name: str) -> str:
    return (
        f"[{hub}](https://huggingface.co/{hub})" + ("" if hub == name else f" (as {name})")
        if hub
        else f"`{name}`"
    )
