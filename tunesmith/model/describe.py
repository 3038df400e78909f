"""What is known of a model without downloading it: its config.json, and whether its weights are here.

on this machine      alias, folder, GGUF file, or a hub model in the cache
folder of a config   config.json alone: sizes are known, nothing can be run
hub                  config.json alone is fetched
offline              the table of well-known models (model/known.py)
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, snapshot_download

from tunesmith.errors import ModelError, TunesmithError
from tunesmith.model import known, weights
from tunesmith.model.load import local_folder
from tunesmith.model.source import ALIASES, Source, embedded_file, resolve

SECONDS = 10.0  # that the hub has for its answer

Origin = Literal["here", "config.json", "hub", "built-in table"]


@dataclass(frozen=True)
class Description:
    """A model's configuration, where it was found, and its source where the weights are on this machine."""

    name: str
    config: dict[str, Any]
    origin: Origin
    source: Source | None = None
    folder: Path | None = None  # with its tokenizer, perhaps

    @property
    def id(self) -> str:
        """The hub's name of the model, as far as there is one."""
        return (self.source.id if self.source else None) or self.name.removeprefix("modelscope:")


def describe(name: str, revision: str | None = None) -> Description:
    """Find a model's configuration; at most its config.json is downloaded. Raises ModelError."""
    if name in ALIASES and embedded_file(name) is not None and revision is None:
        return _here(name, resolve(name))
    model_id = ALIASES[name][2] if name in ALIASES else name.removeprefix("modelscope:")
    path = Path(name).expanduser()
    if path.is_dir() and name not in ALIASES:
        return _of_folder(name, path)
    looks_local = path.suffix == ".gguf" or path.exists() or name.startswith((".", "/", "~"))
    if looks_local or model_id.count("/") > 1 or not model_id:
        return _here(name, resolve(name, revision))  # a GGUF file, or the error that says what is wrong
    if (cached := _cached(name, model_id, revision)) is not None:
        return cached
    found = known.find(model_id)
    if not name.startswith("modelscope:"):
        try:
            # Asked once: without network a download tries for half a minute, with a line for each attempt.
            get_hf_file_metadata(hf_hub_url(model_id, "config.json", revision=revision), timeout=SECONDS)
            file = hf_hub_download(model_id, "config.json", revision=revision)
            return Description(name, json.loads(Path(file).read_text(encoding="utf-8")), "hub")
        except Exception as error:  # offline, gated, misspelt: the table may do
            if found is None:
                raise _unknown(name, error) from error
    if found is None:
        raise _unknown(name, None)
    return Description(name, found, "built-in table")


def _here(name: str, source: Source) -> Description:
    folder = local_folder(source)
    return Description(name, weights.read_config(folder, name), "here", source, folder)


def _of_folder(name: str, folder: Path) -> Description:
    config = weights.read_config(folder, name)
    if any(folder.glob("*.safetensors*")) or any(p.suffix in weights.PICKLES for p in folder.iterdir()):
        return _here(name, resolve(name))
    return Description(name, config, "config.json", None, folder)


def _cached(name: str, model_id: str, revision: str | None) -> Description | None:
    """A hub model that is in the cache with its weights."""
    try:
        folder = Path(snapshot_download(model_id, revision=revision, local_files_only=True))
        weights.check(folder, name)
        config = weights.read_config(folder, name)
    except (TunesmithError, OSError, ValueError):
        return None
    return Description(name, config, "here", Source(name, "hub", folder, folder.name, model_id), folder)


def _unknown(name: str, error: Exception | None) -> ModelError:
    reason = f" ({str(error).strip().splitlines()[0][:120]})" if error and str(error).strip() else ""
    return ModelError(
        f"{name} isn't on this machine, its config.json can't be fetched{reason}, and it isn't among the "
        "well-known models.",
        fix="Put the model's config.json into a folder and give that folder as model, or check the name and "
        f"the network. Known here: {', '.join(known.names())}.",
    )
