"""`tunesmith.serve`: models and runs behind OpenAI's API, until it is interrupted."""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.errors import UsageError
from tunesmith.rundir import RunDir
from tunesmith.serve.address import BATCH_SIZE, HOST, PORT, QUEUE, check_address
from tunesmith.serve.asking import defaults_of
from tunesmith.serve.engine import Engine
from tunesmith.serve.key import kept_key, new_key, passing_key
from tunesmith.serve.models import load_all
from tunesmith.serve.names import check_served
from tunesmith.serve.openai import ApiServer, Seen

GRACE = 5.0  # seconds that running answers may go on for when the server is told to end
WRITING = 2.0  # and then for clients to take what is left


@dataclass(frozen=True)
class Ready:
    """What clients need to know. `key_file` holds the key, readable for its owner alone."""

    url: str
    key: str
    key_file: Path
    models: Sequence[str]
    contexts: Mapping[str, int]
    defaults: Mapping[str, Any]
    notes: Sequence[str]


def serve(
    *models: str | Path | RunDir,
    host: str = HOST,
    port: int = PORT,
    token_file: str | Path | None = None,
    batch_size: int = BATCH_SIZE,
    queue: int = QUEUE,
    dtype: str = "auto",
    template: str | None = None,
    ready: Callable[[Ready], None] = lambda _: None,
    log: Callable[[Seen], None] = lambda _: None,
    note: Callable[[str], None] = lambda _: None,
    **sampling: Any,
) -> None:
    """Answer OpenAI's API on this machine until KeyboardInterrupt; `ready` is told where and with which key.

    `batch_size` answers are computed at once by each model, `queue` more wait, and others are told to come
    again. `sampling` holds where a request says nothing. Another `host` than the loopback's needs a
    `token_file`. `log` is told of each request from several threads, `note` of what isn't as usual.

    Raises UsageError, RunError, ModelError, TemplateError, SettingsError before anything is served.
    """
    names = [str(one.path if isinstance(one, RunDir) else one) for one in models]
    with opened(
        names, sampling, host=host, port=port, token_file=token_file, batch_size=batch_size, queue=queue,
        dtype=dtype, template=template, log=log, note=note,
    ) as (server, found):  # fmt: skip
        ready(found)
        try:
            server.serve_forever(poll_interval=0.2)
        except (KeyboardInterrupt, SystemExit):
            server.server_close()
            server.engine.close(GRACE)
            _wait_for_writers(server)
            raise


@contextmanager
def opened(
    names: Sequence[str],
    sampling: Mapping[str, Any],
    *,
    host: str = HOST,
    port: int = PORT,
    token_file: str | Path | None = None,
    batch_size: int = BATCH_SIZE,
    queue: int = QUEUE,
    dtype: str = "auto",
    template: str | None = None,
    log: Callable[[Seen], None] = lambda _: None,
    note: Callable[[str], None] = lambda _: None,
) -> Iterator[tuple[ApiServer, Ready]]:
    """A server with its models loaded, which listens, and whose `serve_forever` is the caller's."""
    check_served(names)
    defaults = defaults_of(sampling)
    address = check_address(host, port, token_file)
    key = kept_key(Path(token_file)) if token_file is not None else new_key()
    with ExitStack() as stack:
        server = _bound(port, address, key, defaults, log)
        stack.callback(server.server_close)
        server.models = load_all(names, dtype=dtype, template=template, width=batch_size, note=note)
        server.engine = Engine(server.models.lanes, room=batch_size + queue)
        number = server.server_port
        try:
            server.server_activate()
        except OSError as error:
            raise _taken(number, error, address) from None
        # Only now: another start may have had the port until here, and the file beside it.
        passing = passing_key(key, address, number) if token_file is None else nullcontext(Path(token_file))
        file = stack.enter_context(passing)
        server.engine.start()
        stack.callback(server.engine.close, 0.0)
        contexts = {name: one.context for name, one in server.models.by_name.items()}
        url = f"http://{_asked_at(address)}:{number}/v1"
        yield server, Ready(url, key, file, list(contexts), contexts, defaults, server.models.notes)


def _asked_at(address: str) -> str:
    if ipaddress.ip_address(address).is_unspecified:
        return HOST
    return f"[{address}]" if ":" in address else address


def _bound(
    port: int, address: str, key: str, defaults: Mapping[str, Any], log: Callable[[Seen], None]
) -> ApiServer:
    """The server with its port, before any model is loaded: a taken one is told at once."""
    try:
        return ApiServer(port, address=address, token=key, defaults=defaults, log=log)
    except OSError as error:
        raise _taken(port, error, address) from None


def _taken(port: int, error: OSError, address: str) -> UsageError:
    return UsageError(
        f"Port {port} of {address} can't be used: {error.strerror}.",
        fix=f"Another server may run there (another `tunesmith serve`?). Take another port, "
        f"--port {port + 1}, or any free one, --port 0.",
    )


def _wait_for_writers(server: ApiServer) -> None:
    """Requests that have just got their end still have to write it."""
    until = time.monotonic() + WRITING
    while server.under_way and time.monotonic() < until:
        time.sleep(0.02)
