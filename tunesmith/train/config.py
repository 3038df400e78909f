"""The job: everything one training needs, in the words of the job file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from tunesmith.data.config import DataSettings
from tunesmith.errors import SettingsError
from tunesmith.model.config import AdapterSettings, Dtype, QuantizationSettings
from tunesmith.rundir import open_run
from tunesmith.settings import Settings, as_tuple, build, merge, parse_overrides, read_yaml

Beta = Annotated[float, Field(ge=0, lt=1)]
Tracker = Literal["tensorboard", "wandb", "swanlab", "mlflow", "trackio"]
Optimizer = Literal["adamw", "adamw_8bit", "sgd", "muon", "adafactor"]
# Which optimizers take a setting.
TAKEN_BY = {
    "betas": ("adamw", "adamw_8bit", "muon"),
    "epsilon": ("adamw", "adamw_8bit", "muon"),
    "momentum": ("sgd", "muon"),
}
Schedule = Literal[
    "linear", "cosine", "cosine_with_restarts", "cosine_with_min_lr", "polynomial", "constant",
    "constant_with_warmup", "inverse_sqrt", "warmup_stable_decay",
]  # fmt: skip

RESUMED_STEPS = 6  # on which `tunesmith verify --resume` compares
VERIFIED_TOKENS = 1024  # of the first rows, about, on which `tunesmith verify` compares gradients
LEAST_KEPT = 2  # checkpoints: the newest might be damaged
VALID_LOSS = "valid_loss"  # the figure that chooses the best step unless `train.best` names another
OWN_METRIC = ".py:"  # what a metric of one's own, FILE.py:function, is known by


def _as_names(value: Any) -> Any:
    return (value,) if isinstance(value, str) else as_tuple(value)


class EvaluateSettings(Settings):
    """`train.evaluate:` of a job: answers to held-out rows while training runs, scored by metrics."""

    every: int = Field(
        200, ge=0, description="steps between evaluations, besides before the first and after the last; 0: "
        "these only",
    )  # fmt: skip
    metrics: Annotated[tuple[str, ...], BeforeValidator(_as_names)] = Field(
        ("f1_char",),
        min_length=1,
        description="by the names of `tunesmith eval` (docs/eval.md), or FILE.py:function",
    )
    prompts: str | None = Field(None, description="file of rows, in any format; null: the rows of data.valid")
    limit: int = Field(50, ge=1, description="how many of these rows are answered: the first ones")
    max_new_tokens: int = Field(128, ge=1, description="tokens of an answer at most")
    batch_size: int = Field(16, ge=1, description="answers that are computed at once")


class TrainSettings(Settings):
    """`train:` of a job."""

    objective: Literal["sft"] = Field("sft", description="what is minimised: next tokens of the replies")
    epochs: float = Field(3.0, gt=0, description="passes over the training rows; 0.5 stops half-way")
    max_steps: int | None = Field(None, ge=1, description="stop after so many steps, instead of epochs")
    learning_rate: float = Field(
        1e-3, gt=0, description="highest rate; 1e-3 suits LoRA, 1e-5 to 5e-5 full tuning"
    )
    schedule: Schedule = Field("cosine", description="how the rate falls, by transformers' names")
    schedule_options: dict[str, float] = Field(
        {}, description="further arguments of the schedule, by transformers' names"
    )
    warmup: float = Field(0.05, ge=0, description="a ratio of all steps below 1, else steps")
    tokens_per_step: int | None = Field(
        None, ge=1, description="tokens in one optimizer step; by default 4096, fewer where the data is small"
    )
    batch_size: int | None = Field(
        None,
        ge=1,
        description="rows in one optimizer step, times accumulate, instead of tokens_per_step; not packed: "
        "also rows in one forward pass",
    )
    accumulate: int | None = Field(
        None, ge=1, description="with batch_size: a step has batch_size x accumulate rows"
    )
    microbatch_tokens: int | Literal["auto"] = Field(
        "auto",
        description="tokens in one forward pass; changes no result apart from rounding, and from which noise "
        "is drawn with dropout or NEFTune",
    )
    optimizer: Optimizer = Field(
        "adamw", description="by name (docs/train.md); adamw_8bit is approximate and needs the extra quant"
    )
    weight_decay: float = Field(0.0, ge=0, description="on matrices; never on biases, norms, embeddings")
    betas: Annotated[tuple[Beta, Beta] | None, BeforeValidator(as_tuple)] = Field(
        None, description="of AdamW (also 8-bit, and beside Muon); null: 0.9, 0.999"
    )
    epsilon: float | None = Field(
        None, gt=0, description="of AdamW (also 8-bit, and beside Muon); null: 1e-8"
    )
    momentum: float | None = Field(
        None, ge=0, lt=1, description="of sgd and muon; null: 0.9 for sgd, 0.95 for muon"
    )
    clip: float | None = Field(1.0, gt=0, description="largest norm of the gradient; null: off")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="share spread evenly over all tokens")
    neftune: float = Field(0.0, ge=0, description="alpha of NEFTune's noise on embeddings; 0: off")
    dtype: Dtype = Field("auto", description="format of products; auto: bf16 where native, else fp32")
    compile: bool | Literal["auto"] = Field(
        "auto", description="compile the layers; auto: where a run is long enough to earn about 20 s"
    )
    checkpoint_activations: bool | int | Literal["auto"] = Field(
        "auto",
        description="recompute layers in the backward pass to save memory: all, or every N-th; auto: where "
        "memory asks for it",
    )
    eval_every: int = Field(50, ge=0, description="steps between validation losses; 0: only at the ends")
    save_every: int = Field(200, ge=0, description="steps between checkpoints; 0: none by steps")
    save_minutes: float = Field(
        10.0,
        ge=0,
        description="minutes between checkpoints, more where writing one takes long; 0: none by the clock",
    )
    keep: int = Field(
        LEAST_KEPT,
        ge=LEAST_KEPT,
        description="checkpoints kept besides the best; two, as the newest might be damaged",
    )
    evaluate: EvaluateSettings | None = Field(
        None, description="answers to held-out rows while training runs, scored by metrics; null: off"
    )
    best: str | None = Field(
        None,
        description="what chooses the step whose weights are kept, and early_stopping's: a metric of "
        "train.evaluate; null: valid_loss, where there are validation rows",
    )
    early_stopping: int | None = Field(
        None, ge=1, description="evaluations without improvement before stopping"
    )
    sample_every: int = Field(0, ge=0, description="steps between sample answers; 0: off")
    sample_prompts: int = Field(1, ge=1, description="how many validation prompts are answered each time")
    seed: int = Field(42, ge=0, description="of Python, NumPy, torch and the order of rows")
    track: Annotated[tuple[Tracker, ...], BeforeValidator(_as_names)] = Field(
        (), description="experiment trackers; none by default"
    )

    @model_validator(mode="after")
    def _consistent(self) -> TrainSettings:
        if self.tokens_per_step is not None and self.batch_size is not None:
            raise ValueError("set tokens_per_step (in tokens) or batch_size x accumulate (in rows), not both")
        if self.accumulate is not None and self.batch_size is None:
            raise ValueError("accumulate multiplies batch_size, the rows of a step: set batch_size too")
        if isinstance(self.microbatch_tokens, int) and self.microbatch_tokens < 1:
            raise ValueError("microbatch_tokens is at least 1, or auto")
        if self.schedule == "constant" and self.warmup not in (0, type(self).model_fields["warmup"].default):
            raise ValueError("schedule constant has no warmup: use constant_with_warmup, or leave it out")
        for name, takers in TAKEN_BY.items():
            if getattr(self, name) is not None and self.optimizer not in takers:
                raise ValueError(
                    f"{name} doesn't belong to optimizer {self.optimizer}, but to {', '.join(takers)}: "
                    "leave it out"
                )
        every = self.checkpoint_activations
        if isinstance(every, int) and not isinstance(every, bool) and every < 1:
            raise ValueError("checkpoint_activations is true, false, auto, or every N-th layer from 1")
        if self.early_stopping and self.by_loss and not self.eval_every:
            raise ValueError("early_stopping counts evaluations: set eval_every above 0")
        if self.early_stopping and self.evaluate and not self.by_loss and not self.evaluate.every:
            raise ValueError("early_stopping counts evaluations: set evaluate.every above 0")
        if not self.by_loss and self.evaluate is None:
            raise ValueError(
                f"best {self.best} is measured by train.evaluate: set that too, for example "
                f"evaluate: {{metrics: {self.best}, every: 100}}"
            )
        if self.seed >= 2**63:
            raise ValueError("seed is below 2^63, as torch's generators want it")
        return self

    @property
    def recomputing(self) -> bool | int:
        """False, True, or every N-th layer; `auto` counts as False until memory asks for more."""
        return False if self.checkpoint_activations == "auto" else self.checkpoint_activations

    @property
    def by_loss(self) -> bool:
        """Whether the validation loss chooses the best step."""
        return self.best in (None, VALID_LOSS)

    @property
    def rows_per_step(self) -> int | None:
        """Rows in one optimizer step where the job counts rows, else None."""
        return None if self.batch_size is None else self.batch_size * (self.accumulate or 1)


class Job(Settings):
    """One training: model, data, adapter, and how to train."""

    # What people write who come from PEFT, transformers and LLaMA-Factory.
    ELSEWHERE: ClassVar[Mapping[str, Sequence[str]]] = {
        "adapter.rank": ("r", "lora_r", "lora_rank"),
        "adapter.alpha": ("lora_alpha",),
        "adapter.dropout": ("lora_dropout",),
        "adapter.targets": ("target_modules", "lora_target"),
        "adapter.type": ("finetuning_type",),
        "train.learning_rate": ("lr",),
        "train.epochs": ("num_train_epochs", "num_epochs"),
        "train.batch_size": ("per_device_train_batch_size",),
        "train.accumulate": ("gradient_accumulation_steps",),
        "train.schedule": ("lr_scheduler_type", "lr_scheduler", "scheduler"),
        "train.warmup": ("warmup_ratio", "warmup_steps"),
        "train.dtype": ("bf16", "fp16", "torch_dtype"),
        "train.optimizer": ("optim",),
        "train.eval_every": ("eval_steps",),
        "train.save_every": ("save_steps",),
        "train.track": ("report_to",),
        "train.best": ("metric_for_best_model",),
        "train.early_stopping": ("early_stopping_patience", "patience"),
        "train.checkpoint_activations": ("gradient_checkpointing",),
        "train.neftune": ("neftune_noise_alpha",),
        "data.max_length": ("cutoff_len", "max_seq_length", "max_seq_len"),
        "data.train": ("dataset", "train_file"),
        "data.valid": ("val_size", "eval_dataset", "validation_file"),
        "output": ("output_dir",),
        "model": ("model_name_or_path",),
    }

    model: str = Field("smollm2-135m", description="alias, hub id, modelscope:id, folder, or GGUF file")
    revision: str | None = Field(None, description="branch, tag or commit of a hub model")
    output: str | None = Field(
        None,
        description="run folder; runs/<name>-<n> by default, by the job file's name (job.yaml: its folder's)",
    )
    data: DataSettings
    adapter: AdapterSettings = AdapterSettings.model_validate({})
    quantization: QuantizationSettings | None = Field(
        None, description="the base in 4 or 8 bits (approximate): nf4, int8, or a mapping"
    )
    train: TrainSettings = TrainSettings.model_validate({})

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, content: Any) -> Any:
        return _long_form(content) if isinstance(content, Mapping) else content

    @model_validator(mode="after")
    def _has_what_it_needs(self) -> Job:
        if not self.adapter.uses_peft and "learning_rate" not in self.train.model_fields_set:
            raise ValueError(
                f"adapter.type {self.adapter.type} needs a train.learning_rate of its own: the default suits "
                "LoRA, and is about fifty times too high for whole weights; try 2e-5"
            )
        if self.quantization is not None and not self.adapter.uses_peft:
            raise ValueError(
                f"quantization goes with adapter.type lora or dora: {self.adapter.type} trains whole "
                "weights, and those of a quantised base can't be; leave quantization out, or use lora"
            )
        if self.quantization is not None and self.adapter.init != "default":
            raise ValueError(
                f"adapter.init {self.adapter.init} changes the base's weights, and those of a quantised base "
                "can't be; use adapter.init default"
            )
        train = self.train
        needed = {
            "early_stopping": bool(train.early_stopping) and train.by_loss,
            "sample_every": bool(train.sample_every),
            "best": train.best == VALID_LOSS,
            "evaluate": train.evaluate is not None and train.evaluate.prompts is None,
        }
        needing = [name for name, is_needed in needed.items() if is_needed]
        if needing and self.data.valid is None:
            raise ValueError(
                f"train.{' and train.'.join(needing)} would do nothing without validation rows: "
                "set data.valid, to a file or to a share of train such as 0.05"
                + ("; or train.evaluate.prompts, to a file" if needing == ["evaluate"] else "")
            )
        return self


def load_job(path: Path, overrides: tuple[str, ...] | list[str] = ()) -> Job:
    """Read a job file; `key=value` words win over it. Its data paths are relative to its own folder.

    The job.yaml of a run repeats that run in a new folder; its paths are relative to the folder that it was
    started in, or, where that is gone, to where you are.
    """
    content, typed = read_yaml(path), parse_overrides(overrides)
    if isinstance(content.get("job"), Mapping) and "versions" in content:
        started_in = Path(str(content.get("folder", "")))
        content = {**content["job"], "output": None}
        job = build(Job, _laid_over(content, overrides), str(path), _long_form(typed))
        known = started_in.is_absolute() and started_in.is_dir()
        return _anchored(job, started_in, typed) if known else job
    job = build(Job, _laid_over(content, overrides), str(path), _long_form(typed))
    return _anchor(job, path.parent, typed)


def load_job_or_run(path: Path, overrides: Sequence[str] = ()) -> Job:
    """`load_job`, where a run's folder stands for the job that it was trained by. Raises RunError too."""
    return load_job(open_run(path).job_file if path.is_dir() else path, list(overrides))


def job_from(content: Any, overrides: Sequence[str] = ()) -> Job:
    """A job from a mapping or another job (the Python API), with the same checks as a file."""
    if isinstance(content, Job):
        content = content.model_dump()
    if not isinstance(content, Mapping):
        raise SettingsError(
            f"A job is a mapping or a path, not a {type(content).__name__}.",
            fix="Pass a dict or a YAML path.",
        )
    return build(Job, _laid_over(content, overrides))


def _laid_over(content: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    return merge(_long_form(content), _long_form(parse_overrides(overrides)))


def _long_form(content: Mapping[str, Any]) -> dict[str, Any]:
    """`adapter: dora` as the mapping that it is short for, so that single settings can be laid over it."""
    return {
        key: {"type": value} if key in ("adapter", "quantization") and isinstance(value, str) else value
        for key, value in content.items()
    }


def _anchored(job: Job, folder: Path, typed: dict[str, Any]) -> Job:
    """A run's own job with the paths that are relative to the folder that it was started in."""
    job = _anchor(job, folder, typed)
    if folder == Path.cwd():
        return job
    if "model" not in typed and (folder / job.model).exists():
        job = job.model_copy(update={"model": str(folder / job.model)})
    earlier = job.adapter.continue_from
    if earlier and "continue_from" not in typed.get("adapter", {}) and (folder / earlier).exists():
        adapter = job.adapter.model_copy(update={"continue_from": str(folder / earlier)})
        job = job.model_copy(update={"adapter": adapter})
    return job


def _anchor(job: Job, folder: Path, overrides: dict[str, Any]) -> Job:
    """Make the paths that the file gives relative to it; those given on the command line stay as typed."""

    def place(path: str) -> str:
        return path if Path(path).is_absolute() or "://" in path else str(folder / path)

    job = job.model_copy(update={"data": _placed_data(job.data, overrides.get("data", {}), place)})
    evaluate, typed = job.train.evaluate, overrides.get("train", {}).get("evaluate") or {}
    if evaluate is None:
        return job
    update: dict[str, Any] = {}
    if evaluate.prompts is not None and "prompts" not in typed:
        update["prompts"] = place(evaluate.prompts)
    if "metrics" not in typed:
        update["metrics"] = tuple(place(name) if OWN_METRIC in name else name for name in evaluate.metrics)
    placed = evaluate.model_copy(update=update)
    return job.model_copy(update={"train": job.train.model_copy(update={"evaluate": placed})})


def _placed_data(data: DataSettings, typed: Mapping[str, Any], place: Callable[[str], str]) -> DataSettings:
    update: dict[str, Any] = {}
    if data.info is None:
        for key in ("train", "valid"):
            files = getattr(data, key)
            if isinstance(files, tuple) and key not in typed:
                update[key] = tuple(f.model_copy(update={"path": place(f.path)}) for f in files)
    elif "info" not in typed:
        update["info"] = place(data.info)
    if data.template and data.template.endswith(".jinja") and "template" not in typed:
        update["template"] = place(data.template)
    return data.model_copy(update=update)
