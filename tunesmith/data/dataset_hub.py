"""Data sets of the Hugging Face hub and of ModelScope: downloaded as files, read like any other file.

Only files of known kinds and README.md are fetched; no script of a data set is ever run. Which files a split
has is read from README.md (`configs`), else from their names, as `datasets` does.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from tunesmith.data.read import FAMILIES, KINDS, is_beside_data
from tunesmith.errors import DataError, MissingExtraError
from tunesmith.settings import nearest

_PATTERNS = [f"*{suffix}" for suffix in KINDS]


def download(dataset: str, *, subset: str, split: str, folder: str) -> list[str]:
    """The files of a split of a hub data set. Raises one DataError for whatever goes wrong."""
    import huggingface_hub
    from huggingface_hub import constants, errors

    page = f"{constants.ENDPOINT}/datasets/{dataset}"
    try:
        root = huggingface_hub.snapshot_download(dataset, repo_type="dataset", allow_patterns=_PATTERNS)
    except errors.GatedRepoError:
        raise DataError(
            f"The data set {dataset} is gated: its owner shares it with people who accepted the conditions.",
            fix=f"Accept them on {page}, then log in here: `hf auth login` (or set HF_TOKEN).",
        ) from None
    except errors.RepositoryNotFoundError:
        raise DataError(
            f"The hub has no data set {dataset}, or it is private.",
            fix="Check the spelling (org/name); for a private one log in with `hf auth login`.",
        ) from None
    except errors.HFValidationError:
        raise DataError(f"{dataset!r} isn't the id of a data set.", fix="Write org/name.") from None
    except Exception as error:
        offline = constants.HF_HUB_OFFLINE
        cause = "HF_HUB_OFFLINE forbids the download" if offline else _first_line(error.__cause__ or error)
        raise DataError(
            f"The data set {dataset} isn't on this machine, and it couldn't be downloaded: {cause}.",
            fix="Unset HF_HUB_OFFLINE once to download it."
            if offline
            else f"Check the network and the proxy ({constants.ENDPOINT}); set HF_ENDPOINT for a mirror.",
        ) from None
    return files_of_split(Path(root), dataset, subset=subset, split=split, folder=folder)


def download_modelscope(dataset: str, *, subset: str, split: str, folder: str) -> list[str]:
    """The files of a split of a ModelScope data set. Raises MissingExtraError without the package."""
    if importlib.util.find_spec("modelscope") is None:
        raise MissingExtraError(f"The data set {dataset} of ModelScope", "modelscope", "modelscope")
    try:
        module = importlib.import_module("modelscope.hub.snapshot_download")
        root = module.dataset_snapshot_download(dataset, allow_patterns=_PATTERNS)
    except Exception as error:  # its errors come from several packages and change between versions
        raise DataError(
            f"The data set {dataset} couldn't be downloaded from ModelScope: {_first_line(error)}.",
            fix="Check the id on modelscope.cn and the network; private ones need `modelscope login`.",
        ) from None
    return files_of_split(Path(root), dataset, subset=subset, split=split, folder=folder)


def files_of_split(root: Path, dataset: str, *, subset: str, split: str, folder: str) -> list[str]:
    """The files of one subset and split in a downloaded repository. DataError for none or several kinds."""
    base = root / folder
    files = _configured(root, dataset, subset, split) if not folder else None
    if files is None:
        files = _by_name(_data_files(base), base, dataset, subset, split)
    families = {FAMILIES[KINDS[file.suffix.lower()]] for file in files}
    if len(families) > 1:
        raise DataError(
            f"The data set {dataset} holds its rows in several kinds: {', '.join(sorted(families))}.",
            details=[str(file.relative_to(root)) for file in files],
            fix='Name one folder of it in dataset_info.json: "folder": "…".',
        )
    return [str(file) for file in files]


def _configured(root: Path, dataset: str, subset: str, split: str) -> list[Path] | None:
    """The files that README.md lists for the split; None where it lists none."""
    configs = {
        str(config.get("config_name", "default")): config
        for config in _front_matter(root / "README.md").get("configs") or []
        if isinstance(config, dict) and config.get("data_files")
    }
    if not configs:
        return None
    default = [name for name, config in configs.items() if config.get("default") or name == "default"]
    name = subset or (default[0] if default else next(iter(configs)) if len(configs) == 1 else "")
    if name not in configs:
        raise DataError(
            f"The data set {dataset} has no subset {subset!r}{nearest(subset, list(configs))}."
            if subset
            else f"The data set {dataset} has several subsets.",
            fix=f'Write "subset" in dataset_info.json: {", ".join(configs)}.',
        )
    entries = configs[name]["data_files"]
    if isinstance(entries, str | dict):
        entries = [entries]
    splits: dict[str, list[str]] = {}
    for entry in entries:
        of_split, paths = (
            (str(entry.get("split", "train")), entry.get("path", []))
            if isinstance(entry, dict)
            else ("train", entry)
        )
        splits.setdefault(of_split, []).extend([paths] if isinstance(paths, str) else paths)
    if split not in splits:
        raise _no_split(dataset, split, list(splits))
    # A README is somebody else's text: it must not name files outside its repository.
    if outside := [p for p in splits[split] if p.startswith("/") or ".." in p.split("/") or ":" in p]:
        raise DataError(
            f"README.md of {dataset} names files outside of it: {', '.join(outside)}.",
            fix="Download them yourself and write file_name.",
        )
    files = [
        file
        for pattern in splits[split]
        for file in sorted(root.glob(pattern))
        if file.suffix.lower() in KINDS
    ]
    if not files:
        raise DataError(
            f"The data set {dataset} has no file {', '.join(splits[split])} for its split {split!r}.",
            fix="Look at its page; another split or folder may hold rows.",
        )
    return files


_SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}


def _by_name(files: Sequence[Path], base: Path, dataset: str, subset: str, split: str) -> list[Path]:
    """The files whose path speaks of the subset and split; all are train where none speaks of any split."""
    if subset:
        files = [
            file for file in files if subset in _words(file, base) or subset in file.relative_to(base).parts
        ]
    if not files:
        raise DataError(
            f"The data set {dataset} has no file to read{f' of the subset {subset!r}' if subset else ''}.",
            fix=f"Known kinds: {', '.join(sorted(set(KINDS.values())))}. Scripts of data sets are never run.",
        )
    found = {
        name: [file for file in files if _words(file, base) & set(words)] for name, words in _SPLITS.items()
    }
    wanted = next((name for name, words in _SPLITS.items() if split in words), split)
    if not any(found.values()) and wanted == "train":
        return list(files)
    if not found.get(wanted):
        raise _no_split(dataset, split, [name for name, members in found.items() if members])
    return found[wanted]


def _words(file: Path, base: Path) -> set[str]:
    return set(re.split(r"[^a-z0-9]+", str(file.relative_to(base).with_suffix("")).lower()))


def _data_files(base: Path) -> list[Path]:
    files = sorted(file for file in base.rglob("*") if file.is_file() and file.suffix.lower() in KINDS)
    return [file for file in files if not any(is_beside_data(part) for part in file.relative_to(base).parts)]


def _front_matter(readme: Path) -> dict[str, Any]:
    try:
        text = readme.read_text(encoding="utf-8")
        head = re.match(r"---\s*\n(.*?)\n---", text, re.DOTALL)
        content = yaml.safe_load(head[1]) if head else {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


def _no_split(dataset: str, split: str, known: Sequence[str]) -> DataError:
    return DataError(
        f"The data set {dataset} has no split {split!r}{nearest(split, known)}.",
        fix=f'Write "split" in dataset_info.json: {", ".join(known) or "it has none"}.',
    )


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).rstrip(".")
