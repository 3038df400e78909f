"""`export --to gguf|ollama`: from a run to a file that llama.cpp has read, or to a refusal."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

import tunesmith as ts
from tests.export.gguf_models import save_gguf_tiny
from tests.infer.made_run import made_run
from tunesmith.errors import ExportError, MissingExtraError, ModelError, SettingsError, TemplateError
from tunesmith.export import gguf_families, gguf_pre, gguf_tokens, wanted
from tunesmith.export.llamacpp import LlamaCpp
from tunesmith.model.source import resolve
from tunesmith.rundir import RunDir


@pytest.fixture(autouse=True)
def few_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_pre, "_TEXTS", 200)


def tuned(folder: Path, family: str = "llama", **options: Any) -> RunDir:
    return made_run(folder / "tang", save_gguf_tiny(family, folder / "base"), **options)


def test_a_run_as_one_file(tmp_path: Path) -> None:
    run = tuned(tmp_path)
    notes: list[str] = []
    done = ts.export(run, "gguf", note=notes.append)
    assert done.path == run.path / "export" / "gguf"
    assert sorted(file.name for file in done.path.iterdir()) == [
        "README.md", "tang-f16.gguf", "verification.json",
    ]  # fmt: skip
    assert not done.verification.failed
    assert done.verification.drift.mean_kl < 3e-4
    assert {c.name: c.state for c in done.verification.checks} == {
        "token ids": "equal", "chat template": "equal", "metadata": "equal", "drift": "within",
        "fine-tune": "within", "greedy answers": "reported",
    }  # fmt: skip
    file = done.path / "tang-f16.gguf"
    assert resolve(str(file)).kind == "gguf"
    assert str(tmp_path).encode() not in file.read_bytes()
    card = (done.path / "README.md").read_text(encoding="utf-8")
    assert "- Weights: f16" in card
    assert "llama-server -m tang-f16.gguf --jinja" in card
    assert any("[PADn]" in note for note in notes)


def test_eight_bits_have_a_budget_and_four_are_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunesmith.export.gguf.BUDGET_8_BIT", 1e-4)
    run = tuned(tmp_path, "qwen2")
    with pytest.raises(ExportError) as refused:
        ts.export(run, "gguf", type="q8_0")
    assert "wanted: mean KL 1e-04" in refused.value.details[0]
    assert "--type f16 is nearer" in refused.value.fix
    kept = ts.export(run, "gguf", type="q8_0", allow_drift=True)
    assert json.loads((kept.path / "verification.json").read_text())["drift_allowed"]
    small = ts.export(run, "gguf", type="q4_0", force=True)
    assert [c.state for c in small.verification.checks if c.name == "drift"] == ["reported"]
    assert small.bytes < kept.bytes
    assert [file.name for file in small.path.glob("*.gguf")] == ["tang-q4_0.gguf"]


def test_a_wrong_order_of_heads_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    families = gguf_families.FAMILIES
    monkeypatch.setitem(families, "llama", replace(families["llama"], change=families["qwen2"].change))
    run = tuned(tmp_path)
    with pytest.raises(ExportError) as refused:
        ts.export(run, "gguf")
    assert any(line.startswith("drift: ") for line in refused.value.details)
    assert not (run.path / "export" / "gguf").exists()


def test_a_lost_fine_tune_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tuned(tmp_path)
    base = tmp_path / "base"
    # The classic: the base is converted, not what was merged.
    monkeypatch.setattr("tunesmith.export.gguf.write_gguf", _of(base))
    with pytest.raises(ExportError) as refused:
        ts.export(run, "gguf", allow_drift=True)
    assert any(line.startswith("fine-tune: ") for line in refused.value.details)


def _of(base: Path) -> Any:
    def write(_: Path, *rest: Any, **named: Any) -> Any:
        return gguf_write(base, *rest, **named)

    from tunesmith.export.gguf_write import write_gguf as gguf_write

    return write


@pytest.mark.parametrize("lost", ["template", "adds_bos", "ids"])
def test_a_wrong_key_is_refused(tmp_path: Path, lost: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = gguf_tokens.vocabulary_of
    wrong = {"template": "{{ messages }}", "adds_bos": False, "ids": {"bos": 5, "eos": 7}}[lost]
    monkeypatch.setattr(
        "tunesmith.export.gguf.vocabulary_of", lambda *given: replace(right(*given), **{lost: wrong})
    )
    with pytest.raises(ExportError) as refused:
        ts.export(tuned(tmp_path), "gguf")
    assert any(line.startswith(("chat template: ", "metadata: ")) for line in refused.value.details)


def test_ollama_gets_a_modelfile(tmp_path: Path) -> None:
    run = tuned(tmp_path, template="chatml")
    rows = [{"messages": [
        {"role": "system", "content": "You are a poet."}, {"role": "user", "content": str(n)},
        {"role": "assistant", "content": "Yes."},
    ]} for n in range(3)]  # fmt: skip
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    job = yaml.safe_load(run.job_file.read_text())
    job["job"]["data"] = {"train": [{"path": "rows.jsonl", "weight": 1.0}], "max_length": 6000}
    run.job_file.write_text(yaml.safe_dump({**job, "folder": str(tmp_path)}))
    done = ts.export(run, "ollama")
    lines = (done.path / "Modelfile").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "FROM ./tang-f16.gguf"
    assert (done.path / "tang-f16.gguf").is_file()
    assert 'SYSTEM """You are a poet."""' in lines
    assert "PARAMETER num_ctx 512" in lines  # of the tiny model
    assert {line for line in lines if "stop" in line} >= {'PARAMETER stop "<|eot_id|>"'}
    card = (done.path / "README.md").read_text(encoding="utf-8")
    assert "ollama create tang -f Modelfile" in card


def test_a_template_that_ollama_can_t_have_is_refused_before_anything_is_merged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = tmp_path / "odd.jinja"
    template.write_text("{% for m in messages %}{{ loop.index }}{{ m.content }}{{ eos_token }}{% endfor %}")
    run = tuned(tmp_path, template=str(template))
    monkeypatch.setattr("tunesmith.export.merged.write", lambda *_: pytest.fail("merged"))
    with pytest.raises(TemplateError, match="can't be written for Ollama"):
        ts.export(run, "ollama")


def test_a_family_that_can_t_be_written_is_refused_before_anything_is_merged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = made_run(tmp_path / "run", save_gguf_tiny("gemma2", tmp_path / "base", query_pre_attn_scalar=10))
    monkeypatch.setattr("tunesmith.export.merged.write", lambda *_: pytest.fail("merged"))
    with pytest.raises(ModelError, match=r"llama\.cpp computes it otherwise"):
        ts.export(run, "gguf")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"type": "q4_k_m"}, "llama-quantize FILE.gguf NEW.gguf Q4_K_M"),
        ({"type": "q8"}, "q8_0"),
        ({"dtype": "bf16"}, "Give --type bf16"),
        ({"to": "merged", "type": "q8_0"}, "--to gguf or ollama"),
    ],
)
def test_options_that_don_t_fit(tmp_path: Path, options: dict[str, str], said: str) -> None:
    with pytest.raises(SettingsError) as refused:
        ts.export(tmp_path, **{"to": "gguf", **options})
    assert said in str(refused.value)


def test_without_llamacpp_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tuned(tmp_path)
    monkeypatch.setattr(wanted.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(MissingExtraError) as refused:
        ts.export(run, "gguf")
    assert "tunesmith[gguf]" in refused.value.fix


def test_llamacpp_that_breaks_off_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "python"
    script.write_text(
        f"#!/bin/sh\nread line\necho assertion failed >&2\nexec {sys.executable} -c 'import os; os.abort()'\n"
    )
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    with pytest.raises(ModelError, match=r"broke off while it worked on a\.gguf \(exit code -6\)") as refused:
        LlamaCpp(tmp_path / "a.gguf")
    assert refused.value.details == ("assertion failed",)


def test_greedy_answers_end_where_the_model_ends(tmp_path: Path) -> None:
    done = ts.export(tuned(tmp_path), "gguf", type="f32")
    with LlamaCpp(done.path / "tang-f32.gguf", room=64) as model:
        [ids] = model.token_ids(["Hello, 你好"])
        answer = model.greedy(ids, 10)
        assert len(answer) <= 10
        for place, token in enumerate(answer):
            assert model.logits([*ids, *answer[:place]])[-1].argmax() == token
        assert not model.ends() & set(answer)
        with pytest.raises(ModelError, match="65 tokens don't fit into 64"):
            model.logits([1] * 65)
        assert model.logits(ids).shape == (len(ids), model.vocabulary)  # it goes on after a refusal
