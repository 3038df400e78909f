"""The blind test on a local page, for several raters by name.

    GET  /           the page with all prompts and answers, left and right
    POST /ratings    {"rater"} -> that rater's own choices, to go on with
    POST /rate       {"rater", "item", "choice": "left" | "right" | "tie" | null} -> 204 once it is on disk

The server is given test.json's content. No route reads a file, and none knows whose answer is whose: all the
texts come in one answer, and every saved choice gets the same empty one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any

from tunesmith import locks
from tunesmith.disk import disk_errors
from tunesmith.errors import DataError, RunError, UsageError
from tunesmith.evaluate.blind.folder import BlindTest, open_test
from tunesmith.evaluate.blind.page import page, policy
from tunesmith.evaluate.blind.ratings import (
    CHOICES,
    Unsealed,
    append,
    rater_name,
    read_raters,
    timestamp,
)
from tunesmith.serve.loopback import LoopbackHandler, LoopbackServer


def blind_serve(folder: str | Path, *, port: int = 0, ready: Callable[[str], None] = lambda _: None) -> None:
    """Serve a blind test on 127.0.0.1 until it is interrupted; `ready` is told the link for raters.

    Port 0 takes a free one. Raises RunError if the test is unsealed or served already, UsageError if the port
    is taken.
    """
    test = open_test(Path(folder))
    if at := test.unsealed():
        raise RunError(f"The test was unsealed at {at}; ratings are closed.", fix="Make a new test to go on.")
    with disk_errors(test.path):
        handle = (test.path / "serve.lock").open("a", encoding="utf-8")
    with handle:
        if not locks.hold(handle, 1.0):
            raise RunError(
                f"{test.path} is being served by another process.", fix="Use its link, or end it first."
            )
        try:
            server = BlindServer(test, port)
        except OSError as error:
            raise UsageError(
                f"Port {port} can't be used: {error.strerror}.", fix="Give another one, or none: --port 0."
            ) from None
        with server:
            ready(server.link)
            server.serve_forever()


class BlindServer(LoopbackServer):
    """The server of one test."""

    def __init__(self, test: BlindTest, port: int = 0) -> None:
        public = test.public()
        self.test = test
        self.page = page(public, server=True).encode()
        self.items = frozenset(item["id"] for item in public["items"])
        super().__init__(port, _Handler)


class _Handler(LoopbackHandler):
    server: BlindServer
    content_security_policy = policy(server=True)

    def answer_get(self, path: str) -> None:
        if path != "/":
            return self.refuse(HTTPStatus.NOT_FOUND, "there is no such page")
        return self.send(HTTPStatus.OK, self.server.page, "text/html")

    def answer_post(self, path: str, body: Mapping[str, Any]) -> None:
        routes = {"/ratings": self._own_ratings, "/rate": self._rate}
        if path not in routes:
            return self.refuse(HTTPStatus.NOT_FOUND, "there is no such page")
        try:
            return routes[path](rater_name(str(body.get("rater") or "")), body)
        except DataError as error:
            return self.refuse(HTTPStatus.BAD_REQUEST, error.what)
        except Unsealed as error:
            return self.refuse(HTTPStatus.GONE, error.what)
        except RunError as error:  # the disk is full: the page says that nothing was saved
            return self.refuse(HTTPStatus.INSUFFICIENT_STORAGE, error.what)

    def _own_ratings(self, name: str, _: Mapping[str, Any]) -> None:
        raters = [r for r in read_raters(self.server.test) if (r.name, r.session) == (name, "")]
        own = raters[0].choices if raters else {}
        self.send_json({"ratings": [{"item": item, "choice": choice} for item, choice in own.items()]})

    def _rate(self, name: str, body: Mapping[str, Any]) -> None:
        item, choice = body.get("item"), body.get("choice")
        # As texts: a list is no item, and can't be looked up either.
        if str(item) not in self.server.items or (choice is not None and str(choice) not in CHOICES):
            return self.refuse(HTTPStatus.BAD_REQUEST, "there is no such item or choice")
        line = {"rater": name, "session": "", "item": item, "choice": choice, "at": timestamp()}
        append(self.server.test, [line])
        return self.send(HTTPStatus.NO_CONTENT)
