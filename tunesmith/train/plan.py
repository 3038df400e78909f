"""What a job will take, before anything is downloaded or trained: parameters, memory by part, disk, time.

    describe the model -> count the rows -> a step of shapes alone -> arithmetic -> (three real steps)

A plan never changes a job, except in what training itself would (`auto`, where memory asks for it). Where it
doesn't fit, `Plan.fitting` holds the `key=value` words of a job that does (fit.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import psutil
import torch
import yaml

from tunesmith import words
from tunesmith.device import DTYPES, Device, available_memory, pick
from tunesmith.model import native
from tunesmith.model.describe import Description, describe
from tunesmith.train import cards, compiling, dryrun, estimate, trial
from tunesmith.train.config import Job
from tunesmith.train.estimate import Sizes
from tunesmith.train.prepare import with_step_size
from tunesmith.train.probe import tried
from tunesmith.train.trial import Probe
from tunesmith.train.workload import Rows, Workload, count, device_for, read_rows

# The share of a product's peak rate that whole steps reach: with the kernels in C++ that of races (bench/),
# else a guess, as is what answers and files take.
EFFICIENCY = {"eager": 0.5, "compiled": 0.58, native.VECTORS: 0.7, native.TILES: 0.26, "card": 0.4}
SAMPLE_TOKENS = 64
READ_RATE = 10e9  # bytes of weights a second, while answering on a CPU
LAYER_SECONDS = 4e-4  # of Python and kernel starts, for each token of an answer
DISK_RATE = 200e6


@dataclass(frozen=True)
class Target:
    """The machine that a plan is for. `rate`: a card's operations a second; 0: unknown, or measured later."""

    name: str
    device: Device
    memory: int
    rate: float
    here: bool


@dataclass
class Plan:
    """Bytes and seconds of a training. `measured` names what was; all else is estimated or counted."""

    job: Job
    target: Target
    origin: str
    sizes: Sizes
    work: Workload
    parts: dict[str, int]
    disk: dict[str, int]
    seconds: dict[str, float] | None
    compiled: bool
    measured: list[str] = field(default_factory=list)
    probe: Probe | None = None
    peak: int = 0
    fitting: list[str] | None = None
    changed: list[str] = field(default_factory=list)  # what `auto` settings became, as key=value

    @property
    def fits(self) -> bool:
        return self.peak <= self.target.memory

    def to_json(self) -> dict[str, Any]:
        """Everything as JSON takes it."""
        return {
            "model": self.job.model,
            "model_from": self.origin,
            "machine": self.target.name,
            "dtype": self.target.device.dtype_name,
            "parameters": self.sizes.parameters,
            "trained": self.sizes.trained,
            "work": self.work.to_json(),
            "memory": {**self.parts, "peak": self.peak, "available": self.target.memory},
            "disk": self.disk,
            "seconds": self.seconds,
            "compiled": self.compiled,
            "probe": vars(self.probe) if self.probe else None,
            "measured": self.measured,
            "counted_exactly": self.work.exact,
            "changed": self.changed,
            "fits": self.fits,
            "fitting": self.fitting,
        }


class Planner:
    """Plans of one job and its variants for one machine; what they share is made once."""

    def __init__(self, job: Job, target: Target) -> None:
        self.target = target
        self.imports = int(psutil.Process().memory_info().rss) if target.here else 0
        self._descriptions: dict[Any, Description] = {}
        self._rows: dict[Any, Rows] = {}
        self._models: dict[Any, Any] = {}
        self._held: dict[Any, int] = {}
        self._rates: dict[str, float] = {}
        self.described = self.describe(job)

    def describe(self, job: Job) -> Description:
        key = (job.model, job.revision)
        if key not in self._descriptions:
            self._descriptions[key] = describe(job.model, job.revision)
        return self._descriptions[key]

    def plan(self, job: Job) -> Plan:
        """By arithmetic alone."""
        made = self._plan(job)
        for change in _what_auto_does(made):
            if made.fits:
                break
            made = self._plan(job.model_copy(update={"train": job.train.model_copy(update=change)}))
            made.changed = [f"train.{name}={yaml.safe_dump(to).split()[0]}" for name, to in change.items()]
        return made

    def _plan(self, job: Job) -> Plan:
        description, device = self.describe(job), self.target.device
        rows = self._examples(job, description)
        job = with_step_size(job, rows.train)
        model = self._model(job, description)
        quantisation = quantised_as(job)
        found = estimate.sizes(model, quantisation is not None)
        work = count(job, model, rows, device)
        compiled = self._compiles(job, found, work)
        kernels = compiling.products(device) if compiled else None
        parts = estimate.memory(
            found,
            activations=self._activations(job, description, work),
            optimizer=job.train.optimizer,
            quantisation=quantisation,
            kind=device.kind,
            process=self.imports,
            lengths=work.lengths,
            bf16=device.dtype is torch.bfloat16,
            compiled=compiled,
            kernels=kernels is not None,
            width=device.dtype.itemsize,
        )
        if (evaluate := job.train.evaluate) is not None:
            # Of a step nothing is left while answers are computed: what they take beyond it adds to the peak.
            answers = estimate.answering(
                description.config,
                vocabulary=model.get_input_embeddings().weight.shape[0],
                prompts=rows.prompts,
                new=evaluate.max_new_tokens,
                rows=evaluate.batch_size,
                width=device.dtype.itemsize,
            )
            parts["answers"] = max(0, answers - parts["activations"])
        return Plan(
            job=job,
            target=self.target,
            origin=description.origin,
            sizes=found,
            work=work,
            parts=parts,
            disk=_disk(job, model, found, work, description),
            seconds=_seconds(
                job,
                self.target,
                self._rate(description),
                found,
                work,
                description,
                compiled,
                kernels,
                len(rows.prompts),
            ),
            compiled=compiled,
            peak=sum(parts.values()),
        )

    def _rate(self, description: Description) -> float:
        """Operations a second of a product as large as a layer's: measured here, or the card's peak."""
        if not self.target.here:
            return self.target.rate
        if description.id not in self._rates:
            width, inner = estimate.layer_shape(description.config)
            device = self.target.device
            self._rates[description.id] = estimate.product_rate(
                device.dtype, width, inner, device.torch_device
            )
        return self._rates[description.id]

    def _examples(self, job: Job, description: Description) -> Rows:
        key = (job.model, job.data, job.train.seed, job.train.evaluate)
        if key not in self._rows:
            self._rows[key] = read_rows(job, description)
        return self._rows[key]

    def _model(self, job: Job, description: Description) -> Any:
        key = (job.model, job.adapter)
        if key not in self._models:
            self._models[key] = dryrun.build(description.config, job.adapter, self.target.device.dtype)
        return self._models[key]

    def _compiles(self, job: Job, found: Sizes, work: Workload) -> bool:
        if job.train.compile == "auto":
            return compiling.worthwhile(found.parameters, work.tokens, self.target.device)
        return bool(job.train.compile)

    def _activations(self, job: Job, description: Description, work: Workload) -> int:
        recomputed = job.train.recomputing
        shape = (work.microbatch, work.microbatch_labels)
        how: dict[str, Any] = {
            "rows": work.microbatch_rows,
            "packed": work.packed,
            "segments": work.segments,
            "checkpointing": recomputed,
            "accumulating": work.microbatches_a_step > 1,
        }
        key = (job.model, job.adapter, shape, *how.values())
        if key not in self._held:
            try:
                held = dryrun.held(description.config, job.adapter, *shape, self.target.device, **how).peak
            except Exception:  # shapes that depend on values, as in mixtures of experts
                held = _by_formula(description.config, work, self.target.device.dtype.itemsize, recomputed)
            self._held[key] = max(0, held)
        return self._held[key]


def _what_auto_does(plan: Plan) -> Iterator[dict[str, Any]]:
    """Changes that training makes on its own where memory asks for them, in its order."""
    settings, size = plan.job.train, plan.work.microbatch
    on_cpu = plan.target.device.kind == "cpu"
    shorten = settings.microbatch_tokens == "auto"
    options = tried(size, settings.checkpoint_activations, shorten=shorten, half_first=on_cpu)
    for tokens, recompute in list(options)[1:]:
        change: dict[str, Any] = {}
        if recompute != settings.recomputing:
            change["checkpoint_activations"] = recompute
        if tokens < size:
            change["microbatch_tokens"] = tokens
        yield change


def target_of(job: Job, card: str | None, memory: str | None) -> Target:
    """This machine, or a card by name or memory. Raises SettingsError for a card that isn't known."""
    dtype = job.train.dtype
    if card is None and memory is None:
        device = pick(dtype)
        return Target(device.name, device, available_memory(device.kind), 0.0, True)
    wanted = DTYPES["bf16" if dtype == "auto" else dtype]
    device = device_for("cuda", wanted)
    known = cards.find(card) if card else None
    size = cards.parse_memory(memory) if memory else known.memory if known else 0
    rate = 0.0 if known is None else known.flops / (4 if wanted is torch.float32 else 1)
    return Target(known.name if known else f"a card with {words.size(size)}", device, size, rate, False)


def calibrate(plan: Plan, planner: Planner, note: Callable[[str], None]) -> None:
    """Replace what is estimated by what three real steps took. Raises what the training would raise."""
    found = trial.measure(plan.job, note)
    plan.probe = found
    # Kernels of further lengths come with further steps; the process itself is larger by what it imported.
    more = min(plan.work.lengths, estimate.LENGTHS_KEPT) - min(found.lengths, estimate.LENGTHS_KEPT)
    bf16 = plan.target.device.dtype is torch.bfloat16 and plan.target.device.kind == "cpu"
    plan.peak = int(
        found.peak
        + max(0, planner.imports - found.imports)
        + (estimate.KERNELS_PER_LENGTH * more if bf16 else 0)
        + plan.parts.get("answers", 0)
    )
    plan.compiled = found.compiled
    evaluations = _evaluations(plan.job, plan.work)
    plan.seconds = {
        "setup": found.setup,
        "steps": found.seconds_per_token * plan.work.laid + found.seconds_per_length * plan.work.lengths,
        "validation": found.seconds_per_valid_token * plan.work.valid_tokens * evaluations,
        "other": (plan.seconds or {}).get("other", 0.0),
    }
    plan.measured += [
        "peak memory of the largest microbatch",
        "seconds of a step, of validation and of the set-up",
    ]


def quantised_as(job: Job) -> str | None:
    """`nf4`, `nf4 double` or `int8` where the base is quantised."""
    settings = job.quantization
    if settings is None:
        return None
    if settings.type == "nf4" and settings.double_quant is not False:
        return "nf4 double"
    return str(settings.type)


def _seconds(
    job: Job,
    target: Target,
    rate: float,
    found: Sizes,
    work: Workload,
    description: Description,
    compiled: bool,
    kernels: str | None,
    asked: int,
) -> dict[str, float] | None:
    if not rate:
        return None
    width, layers = estimate.attention_shape(description.config)
    total = estimate.operations(
        found,
        tokens=work.laid,
        labels=work.labels,
        squares=work.squares,
        width=width,
        layers=layers,
        checkpointing=job.train.recomputing,
        full=not job.adapter.uses_peft,
    )
    here = kernels or ("compiled" if compiled else "eager")
    share = EFFICIENCY[here if target.device.kind == "cpu" else "card"]
    forward = 2.0 * (found.linear * work.valid_tokens + found.head * work.valid_labels)
    answers = 0.0
    token = found.parameters * target.device.dtype.itemsize / READ_RATE + layers * LAYER_SECONDS
    if (evaluate := job.train.evaluate) is not None and asked:
        times = 2 + ((work.steps - 1) // evaluate.every if evaluate.every else 0)
        answers += times * -(-asked // evaluate.batch_size) * evaluate.max_new_tokens * token
    if job.train.sample_every and work.valid_tokens:
        times = 2 + work.steps // job.train.sample_every
        answers += times * job.train.sample_prompts * SAMPLE_TOKENS * token
    saves = 1 + (work.steps // job.train.save_every if job.train.save_every else 0)
    return {
        "setup": compiling.WARM_UP if compiled else 5.0,
        "steps": total / (rate * share),
        "validation": forward * _evaluations(job, work) / (rate * share),
        "other": answers + saves * 4.0 * found.trained / DISK_RATE,
    }


def _evaluations(job: Job, work: Workload) -> int:
    if not work.valid_tokens:
        return 0
    every = job.train.eval_every
    return 2 + ((work.steps - 1) // every if every else 0)


def _disk(job: Job, model: Any, found: Sizes, work: Workload, description: Description) -> dict[str, int]:
    """Bytes in the run folder, and of what would be downloaded."""
    files = estimate.run_bytes(
        job, model, steps=work.steps, validated=bool(work.valid_tokens), parameters=found.parameters
    )
    missing = 0 if description.source else found.parameters * 2
    return {**files, "download": missing}


def _by_formula(config: dict[str, Any], work: Workload, width: int, checkpointing: bool | int) -> int:
    """Activations where a step of shapes can't be run: what a usual layer keeps for each token."""
    heads, layers = estimate.attention_shape(config)
    hidden = int(config.get("hidden_size") or heads)
    chosen = int(config.get("num_experts_per_tok") or 1)
    inner = int(config.get("moe_intermediate_size") or config.get("intermediate_size") or 4 * hidden) * chosen
    layer = work.microbatch * (10 * hidden + 5 * heads + 5 * inner) * width
    kept = work.microbatch * hidden * width * layers + layer if checkpointing else layer * layers
    return int(kept + work.microbatch_labels * hidden * width * 2)
