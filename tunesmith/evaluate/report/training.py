"""A run as the page tells it: what was trained, on what, at what cost, and how to use it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tunesmith.evaluate.drawing import curve_svg, score_svg
from tunesmith.evaluate.history import History, duration, model_name, read
from tunesmith.evaluate.report.data import counts, named
from tunesmith.evaluate.report.loading import loading
from tunesmith.redact import short_paths, without_secrets
from tunesmith.rundir import RunDir, read_jsonl
from tunesmith.words import size


def story(run: RunDir) -> dict[str, Any]:
    """Every value of the page but the results, redacted."""
    facts, history, report = run.job(), read(run), run.data_report()
    started = str(facts.get("started") or "")
    clean = {
        "name": run.path.resolve().name,
        "state": run.state(),
        "model": model_name(facts),
        "adapter": {"type": "", "rank": "", **((facts.get("job") or {}).get("adapter") or {})},
        "started": started[:16].replace("T", " "),
        "settings": _flat(facts.get("job") or {}),
        "versions": facts.get("versions") or {},
        "facts": {k: facts.get(k) for k in ("device", "dtype", "trainable", "parameters", "template")},
        "data": counts(report),
        "named": named(report),
        "loading": loading(run, facts),
        "hashes": facts.get("data_sha256") or {},
    }
    texts = {"samples": _samples(run), "worst": [_worst(row) for row in read_jsonl(run.worst_file)]}
    return {
        **short_paths(without_secrets(clean)),
        **short_paths(without_secrets(texts), foreign=False),
        "history": history,
        "cost": _cost(history),
        "wide": curve_svg(history, width=760, height=330),
        "narrow": curve_svg(history, width=400, height=330),
        "scores": [
            (name, *(score_svg(name, points, history.steps, width=width, height=170) for width in (760, 400)))
            for name, points in history.scores.items()
        ],
    }


def _cost(history: History) -> dict[str, str]:
    """Time, memory and tokens of the training, in words."""
    rate = history.tokens / history.seconds if history.seconds else 0.0
    return {
        "time": duration(history.seconds),
        "memory": size(history.peak_memory) if history.peak_memory else "–",
        "tokens": f"{history.tokens:,}",
        "rate": f"{rate:,.0f}",
    }


def _samples(run: RunDir) -> list[dict[str, Any]]:
    """Sample answers by prompt, in the order of the steps."""
    prompts: dict[str, dict[str, Any]] = {}
    for sample in run.samples():
        prompt = str(sample.get("prompt", ""))
        entry = prompts.setdefault(
            prompt, {"prompt": prompt, "reference": sample.get("reference"), "answers": []}
        )
        entry["answers"].append((sample.get("step"), sample.get("answer", "")))
    return list(prompts.values())


def _worst(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Loss, that of its step, place and beginning of a row that cost most."""
    losses = (f"{row.get(name, math.nan):.2f}" for name in ("loss", "step_loss"))
    return (*losses, str(row.get("origin", "")), str(row.get("text", "")))


def _flat(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    # Redacted before it is flattened: a key's name decides.
    for key, value in without_secrets(settings).items():
        if isinstance(value, dict):
            rows += _flat(value, f"{prefix}{key}.")
        elif isinstance(value, list) and any(isinstance(v, dict) for v in value):
            rows.append(
                (
                    prefix + key,
                    ", ".join(str(v.get("path", v)) if isinstance(v, dict) else str(v) for v in value),
                )
            )
        else:
            rows.append((prefix + key, "–" if value is None or value == [] else _plain(value)))
    return rows


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
