"""Where the server listens, and what its options are when nobody says anything. No torch."""

from __future__ import annotations

import ipaddress
from pathlib import Path

from tunesmith.errors import UsageError

HOST, PORT = "127.0.0.1", 8000
BATCH_SIZE, QUEUE = 8, 64  # answers computed at once, and waiting besides


def check_address(host: str, port: int, token_file: str | Path | None) -> str:
    """The address to listen on. Raises UsageError for one beyond this machine without a token file."""
    try:
        number = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
    except ValueError:
        raise UsageError(
            f"--host takes an address in numbers, and {host!r} isn't one.",
            fix="Leave it out for this machine alone; 0.0.0.0 listens on all of its addresses.",
        ) from None
    if not 0 <= port <= 65535:
        raise UsageError(f"There is no port {port}.", fix="Give one of 1024 to 65535, or 0 for a free one.")
    if not number.is_loopback and token_file is None:
        raise UsageError(
            f"--host {host} lets other machines ask this one, and needs a key that you keep.",
            fix=f"Write --host {host} --token-file serve.key (it is made, for your eyes alone). What is sent "
            "isn't encrypted: use it in networks that you trust.",
        )
    return str(number)
