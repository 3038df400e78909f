"""What a target gets to work with, and what it is: how it's written, read back, and held to what."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tunesmith.data.template import Renderer
from tunesmith.device import Device
from tunesmith.export.config import Request
from tunesmith.export.protocol import Exported
from tunesmith.export.subject import PublicBase, Subject


@dataclass(frozen=True)
class Work:
    """One export: what is exported, and how. `dtype` is that of the weights that are written.

    `device` is where the gate reads it back, in the gate's arithmetic; `note` is told what a person should
    know, `watch` how far it is (what, done, of how many).
    """

    request: Request
    subject: Subject
    base: PublicBase
    renderer: Renderer
    device: Device
    dtype: torch.dtype
    note: Callable[[str], None]
    watch: Callable[[str, int, int], None] = lambda *_: None


@dataclass(frozen=True)
class Written:
    """What a target says of what it wrote.

    `expected` is metadata (protocol.py) that differs from the tuned model's on purpose; `usage` is Markdown
    for the card: how this format is used; `notes` go into the card as well.
    """

    expected: dict[str, Any] = field(default_factory=dict)
    usage: str = ""
    notes: list[str] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    library: str = "transformers"


@dataclass(frozen=True)
class Target:
    """A form of export.

    write   fills an empty folder
    open    reads the folder anew from the disk, for the gate
    needs   bytes on the disk, all that `write` puts there at the same time included
    budget  the largest mean KL from the tuned model; None: reported only
    dtype   the number format to merge in, where --dtype doesn't say it
    """

    write: Callable[[Work, Path], Written]
    open: Callable[[Work, Path], Exported]
    needs: Callable[[Work], int]
    budget: Callable[[Work], float | None]
    needs_adapter: bool = False
    dtype: Callable[[Request, Subject], torch.dtype] | None = None
