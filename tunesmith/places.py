"""Where tunesmith keeps what it makes for itself."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def home() -> Path:
    """The folder of tunesmith's own cache: TUNESMITH_HOME, else the user's cache folder."""
    if given := os.environ.get("TUNESMITH_HOME"):
        return Path(given).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "tunesmith"
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "tunesmith"
