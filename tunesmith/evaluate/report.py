"""report.html: one offline file that tells the story of a run, fit to be mailed.

Made from the run folder's files alone. Everything in it is text: a model's answer can't become HTML (every
value is escaped, and the page's policy runs no script but its own, known by its hash). What may be a secret
isn't shown, home folders are written `~`.
"""

from __future__ import annotations

import base64
import hashlib
import math
import shlex
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape

from tunesmith.disk import write_atomic
from tunesmith.evaluate.chinese import in_chinese
from tunesmith.evaluate.drawing import curve_svg
from tunesmith.evaluate.history import History, duration, model_name, read
from tunesmith.evaluate.results import comparison_rows, evaluation_rows, interval, pairs, read_results
from tunesmith.redact import short_paths, without_secrets
from tunesmith.rundir import RunDir, read_jsonl
from tunesmith.words import size

FEW_ROWS = 5  # of a result's answers that are open at once
SHOWN_ROWS = 100
SHOWN_NAMED = 100
SHOWN_TEXT = 1200


def write_report(run: RunDir) -> Path:
    """Write (anew) report.html of a run from its own files; returns its path.

    Raises RunError if a file of the run is damaged or the disk can't be written.
    """
    write_atomic(run.report_file, render(run))
    return run.report_file


def render(run: RunDir) -> str:
    """The page as text."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "verdict": _verdict,
        "number": _number,
        "cut": _cut,
        "label": _label,
        "told": _told,
    }
    environment.globals |= {"t": _both}
    script = _part("report.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page: str = environment.from_string(_part("report_page.html")).render(
        **_story(run), css=Markup(_part("report.css")), js=Markup(script), js_hash=digest
    )
    return page


def _story(run: RunDir) -> dict[str, Any]:
    """Every value of the page, redacted."""
    facts, history = run.job(), read(run)
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
        "data": _data(run.data_report()),
        "named": _named(run.data_report()),
        "loading": _loading(run, facts),
        "hashes": facts.get("data_sha256") or {},
    }
    # Before and after first: it is what the reader came for.
    found = [one for result in read_results(run) for one in pairs(result)]
    results = sorted(found, key=lambda result: result["kind"] != "comparison")
    texts: dict[str, Any] = {
        "results": [_result(result) for result in results],
        "samples": _samples(run),
        "worst": [_worst(row) for row in read_jsonl(run.worst_file)],
    }
    return {
        **short_paths(without_secrets(clean)),
        **short_paths(without_secrets(texts), foreign=False),
        "history": history,
        "cost": _cost(history),
        "wide": curve_svg(history, width=760, height=330),
        "narrow": curve_svg(history, width=400, height=330),
        "few": FEW_ROWS,
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


def _result(result: dict[str, Any]) -> dict[str, Any]:
    """A result with its table, its headline figures and its first rows."""
    shown: dict[str, Any] = {"kind": result["kind"], "data": Path(str(result.get("data", ""))).name}
    if result["kind"] == "damaged":
        return {**shown, "error": result["error"], "file": result["file"]}
    rows = read_jsonl(Path(result["file"]).with_suffix(".jsonl"))
    shown |= {
        "n": result["n"],
        "answers": [_answer(row, *result.get("keys", "ab")) for row in rows[:SHOWN_ROWS]],
        "rows": len(rows),
    }
    notes = result.get("notes") or []
    if result["kind"] == "evaluation":
        return {**shown, "a": None, "b": result["model"], "table": evaluation_rows(result), "notes": notes}
    a, b = result["a"], result["b"]
    cards = [
        (name, f"{m['a']:.3f}", f"{m['b']:.3f}", interval(m["difference"], sign=True), m["verdict"])
        for name, m in result["metrics"].items()
    ]
    table = comparison_rows(result)
    return {**shown, "a": a["model"], "b": b["model"], "table": table, "cards": cards, "notes": notes}


def _answer(row: Mapping[str, Any], a: str, b: str) -> dict[str, Any]:
    side_a, side_b = row.get(a) or {}, row.get(b) or row
    return {
        "prompt": row.get("prompt", ""),
        "references": row.get("references") or [],
        "a": side_a.get("prediction"),
        "b": side_b.get("prediction", ""),
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


DATA_LINES = (
    ("rows", "Rows", "数据行"),
    ("bad_rows", "Unreadable", "无法解析"),
    ("duplicates", "Exact duplicates", "完全重复"),
    ("kept", "Kept", "保留"),
    ("cut", "Cut", "截断"),
    ("split", "Split", "拆分"),
    ("dropped", "Dropped", "丢弃"),
    ("labels_cut", "Label tokens lost by cutting", "因截断失去的标签 token"),
    ("end_tokens_cut", "End tokens lost by cutting", "因截断失去的结束符"),
    ("examples", "Examples", "训练样本"),
    ("tokens", "Tokens", "token 数"),
    ("label_tokens", "Label tokens (trained on)", "标签 token（计入损失）"),
    ("longest", "Longest example (tokens)", "最长样本（token）"),
)


METRIC_NAMES = ("loss", "perplexity", "bits_per_byte", "exact_match", "f1_char", "verse_form")
LABELS = {
    "loss": "损失",
    "perplexity": "困惑度",
    "bits_per_byte": "每字节比特数",
    "exact_match": "完全一致",
    "f1_char": "字符 F1",
    "verse_form": "诗句格式",
    "mean length": "平均字符数",
    "empty answers": "空回答",
    "cut at the limit": "因长度上限中断",
    "tokens written": "生成 token 数",
    "prompt tokens": "提示 token 数",
    "seconds": "秒",
    "tokens/s": "token/秒",
    "peak memory": "内存峰值",
    "energy (J)": "能耗（焦耳）",
    "dropped": "丢弃",
    "cut": "截断",
    "split": "拆分",
    "unreadable": "无法解析",
}


def _data(report: Mapping[str, Any]) -> dict[str, Any]:
    """Counts side by side for train and valid, files with their formats, notes."""
    parts = [(name, report[name]) for name in ("train", "valid") if report.get(name)]
    lines = []
    for key, english, chinese in DATA_LINES:
        values = [part.get(key) for _, part in parts]
        values = [len(v) if isinstance(v, list) else v for v in values]
        if any(v is not None for v in values):
            lines.append((english, chinese, [_number(v) for v in values]))
    sources = [
        (name, file.get("path"), file.get("reason") or file.get("format"), file.get("rows"))
        for name, part in parts
        for file in part.get("files") or []
        if isinstance(file, dict)
    ]
    notes = [(name, note, count) for name, part in parts for note, count in _notes(part.get("notes"))]
    return {"parts": [name for name, _ in parts], "lines": lines, "files": sources, "notes": notes}


def _notes(notes: Any) -> list[tuple[str, Any]]:
    return list(notes.items()) if isinstance(notes, dict) else [(str(note), None) for note in notes or []]


def _named(report: Mapping[str, Any]) -> dict[str, Any]:
    """Every row that was dropped, cut, split or unreadable, with its place and the reason."""
    rows = []
    for name in ("train", "valid"):
        part = report.get(name) or {}
        for bad in part.get("bad_rows") or []:
            origin, reason = (
                (bad.get("origin"), bad.get("reason")) if isinstance(bad, dict) else ("", str(bad))
            )
            rows.append((name, origin, "unreadable", reason))
        for entry in part.get("named") or []:
            rows.append((name, entry.get("origin"), entry.get("what"), entry.get("reason")))
    return {"rows": rows[:SHOWN_NAMED], "more": max(0, len(rows) - SHOWN_NAMED)}


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


def _loading(run: RunDir, facts: Mapping[str, Any]) -> dict[str, str]:
    """How to use the result: the command line, and plain transformers (and peft)."""
    path, base = str(run.path), facts.get("base") or {}
    folder = _path_words(f"{path}/{run.weights.name if run.weights else 'adapter'}")
    lines = [
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f"folder = {folder}  # seen from where it was trained",
    ]
    if run.weights == run.model:
        lines.append("model = AutoModelForCausalLM.from_pretrained(folder)")
    else:
        lines.insert(0, "from peft import PeftModel")
        if base.get("kind") != "hub":
            lines.append(f"# {base.get('name')}, where it lies on the machine that trained it")
        lines.append(f"model = AutoModelForCausalLM.from_pretrained({_base_words(base)})")
        lines.append("model = PeftModel.from_pretrained(model, folder)")
    lines += [
        "tokenizer = AutoTokenizer.from_pretrained(folder)",
        'messages = [{"role": "user", "content": "…"}]',
        "inputs = tokenizer.apply_chat_template(",
        '    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True',
        ")",
        'answer = model.generate(**inputs, max_new_tokens=100)[0, inputs["input_ids"].shape[1] :]',
        "print(tokenizer.decode(answer, skip_special_tokens=True))",
    ]
    if any("os.path" in line for line in lines):
        lines.insert(0, "import os")
    name = shlex.quote(path)
    commands = [
        f"tunesmith chat {name}",
        f"tunesmith compare {name} --data FILE",
        f"tunesmith generate {name} --input FILE --output FILE",
    ]
    return {"commands": "\n".join(commands), "python": "\n".join(lines)}


def _base_words(base: Mapping[str, Any]) -> str:
    """The arguments of from_pretrained for the base model."""
    path, name = Path(str(base.get("path") or "")), str(base.get("name") or "")
    if base.get("kind") == "hub":
        revision = f", revision={base['revision']!r}" if base.get("revision") else ""
        return f"{name!r}{revision}"
    if path.suffix == ".gguf":
        return f"{_path_words(str(path.parent))}, gguf_file={path.name!r}"
    return _path_words(str(path) if str(path) != "." else name)


def _path_words(path: str) -> str:
    """A path as Python source that works on this machine and names no home folder."""
    short = str(short_paths(path, foreign=False))
    return f"os.path.expanduser({short!r})" if short.startswith("~") else repr(path)


def _part(name: str) -> str:
    return (files("tunesmith.evaluate") / name).read_text(encoding="utf-8")


def _both(english: str, chinese: str) -> Markup:
    """A label in both languages; the page shows one."""
    return Markup('<span class="en" lang="en">{}</span><span class="zh" lang="zh">{}</span>').format(
        english, chinese
    )


def _label(name: str) -> Markup | str:
    """A row's name in both languages; names of metrics stay as they are typed on the command line."""
    if name not in LABELS:
        return name
    return _both(name, f"{LABELS[name]} {name}" if name in METRIC_NAMES else LABELS[name])


def _told(text: Any) -> Markup | str:
    """A sentence of ours in both languages; anything else as it is."""
    chinese = in_chinese(str(text))
    return str(text) if chinese == str(text) else _both(str(text), chinese)


def _verdict(text: str) -> Markup:
    kind = text.split(" ", 1)[0] if text in ("better", "worse") else "open"
    return Markup('<span class="verdict {}">{}</span>').format(kind, _told(text)) if text else Markup("")


def _number(value: Any) -> str:
    return "–" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def _cut(text: Any) -> Markup:
    """A text as text; a very long one is cut, and says so."""
    text = "" if text is None else str(text)
    if len(text) <= SHOWN_TEXT:
        return escape(text)
    rest = f"{len(text) - SHOWN_TEXT:,}"
    more = _both(f"… {rest} more characters", f"……另有 {rest} 个字符")
    return Markup('{}<span class="more"> {}</span>').format(text[:SHOWN_TEXT], more)
