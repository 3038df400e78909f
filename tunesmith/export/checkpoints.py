"""A checkpoint made into what a finished run keeps: an adapter's folder or a whole model's, for an export.

The model is prepared as for the training (the same seed gives the same start, which PiSSA takes out of the
base), the checkpoint's weights are put into it, and it is saved as at the end of a training.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tunesmith.data.template import Renderer
from tunesmith.device import DTYPES, pick
from tunesmith.errors import ModelError, RunError, TemplateError
from tunesmith.export.config import BEST, LAST
from tunesmith.export.loaded import local_source
from tunesmith.export.subject import Subject
from tunesmith.infer.found import Found
from tunesmith.model import adapters, saved, source
from tunesmith.model.load import end_ids, fingerprint, load_model, load_tokenizer, stored_dtype
from tunesmith.rundir import RunDir, open_run
from tunesmith.train import checkpoint
from tunesmith.train.checkpoint import WEIGHTS
from tunesmith.train.config import load_job
from tunesmith.train.facts import result_meta


def chosen(path: Path, which: str) -> tuple[RunDir, Path | None]:
    """The run, and the checkpoint's folder; None where the final weights are what was asked for.

    Raises RunError that lists the checkpoints there are.
    """
    run = open_run(path)
    steps = {int(folder.name.removeprefix("step-")): folder for folder in run.saved_steps()}
    there = ", ".join(map(str, steps)) or "none"
    final = saved.read_meta(run.weights).get("step") if run.weights else None
    if which == BEST and run.weights is not None:
        return run, None
    if not steps:
        raise RunError(
            f"{run.path} has no checkpoints.",
            fix="Leave --checkpoint away: its final weights are exported."
            if run.weights
            else f"`tunesmith train {run.path} --resume` goes on with it.",
        )
    if which == LAST:
        return run, steps[max(steps)]
    step = _best_step(steps) if which == BEST else int(which)
    if step in steps:
        return run, steps[step]
    if step is not None and step == final:
        return run, None
    raise RunError(
        f"{run.path} has no best checkpoint: nothing has been evaluated yet."
        if step is None
        else f"{run.path} has no checkpoint of step {step}.",
        details=[
            f"checkpoints: {there}",
            *([f"final weights: those of step {final}"] if run.weights else []),
        ],
        fix="Use --checkpoint with one of these steps"
        + (", or leave it away." if run.weights else ", or last."),
    )


def restore(run: RunDir, folder: Path, into: Path) -> Subject:
    """The checkpoint in `folder` as a subject; its weights are written into `into`, a new folder."""
    record, job = run.job(), load_job(run.job_file)
    contents = checkpoint.read(folder)
    names = {str(value).removeprefix("torch."): name for name, value in DTYPES.items()}
    device = pick(names.get(str(record.get("dtype")), job.train.dtype))
    base = _base(record)
    mark = _checked_base(base, record)
    renderer = _renderer(record, job.data.template, base)
    model: Any = load_model(base, device, quantization=job.quantization)
    model = adapters.prepare(model, job.adapter, seed=job.train.seed, base_fingerprint=mark)
    checkpoint.put_weights(model, contents.tensors[WEIGHTS], str(folder))
    into.mkdir()
    adapters.save(model, renderer.save, into, meta=result_meta(record, contents.step))
    meta = saved.read_meta(into)
    own = local_source(into)
    if job.adapter.uses_peft:
        found = Found(str(run.path), base, pick(), into, own, meta, run, into)
    else:
        device = pick()
        found = Found(
            str(run.path), own, replace(device, dtype=stored_dtype(own) or device.dtype), into, own, meta, run
        )
    return Subject(found, record, contents.step, of_checkpoint=True)


def _checked_base(base: source.Source, record: Mapping[str, Any]) -> str:
    """The base's fingerprint, which must be that of the base that was trained on."""
    found, wanted = fingerprint(base), record["base"].get("fingerprint")
    if wanted and found != wanted:
        raise ModelError(
            f"{base.name} isn't the base that was trained on: its fingerprint begins with {found[:12]}, that "
            f"one's with {wanted[:12]}.",
            fix="Put the model that was trained on back into its place.",
        )
    return found


def _renderer(record: Mapping[str, Any], template: str | None, base: source.Source) -> Renderer:
    """The template that was trained with: a file may say something else by now."""
    if template and template.endswith(".jinja"):
        template = str(Path(str(record.get("folder") or "")) / Path(template).expanduser())
    trained = record.get("template") or {}
    thinking = bool(trained.get("thinking"))
    renderer = Renderer(load_tokenizer(base), template, end_ids=end_ids(base), thinking=thinking)
    wanted = trained.get("sha256")
    if wanted and renderer.sha256 != wanted:
        raise TemplateError(
            f"The chat template in {template or base.name} isn't the one that was trained with: its SHA-256 "
            f"begins with {renderer.sha256[:12]}, that one's with {wanted[:12]}.",
            fix="Put the template back as it was when the training began.",
        )
    return renderer


def _best_step(steps: Mapping[int, Path]) -> int | None:
    """The step that was the best so far, as the newest checkpoint knows."""
    state = checkpoint.read(steps[max(steps)]).state
    return int(state["best_step"]) if state.get("best_step") is not None else None


def _base(record: Mapping[str, Any]) -> source.Source:
    base = record["base"]
    path = Path(str(base.get("path") or ""))
    if base["kind"] in ("folder", "gguf") and path.exists():
        return source.resolve(str(path))
    return source.resolve(str(base["name"]), base.get("revision"))
