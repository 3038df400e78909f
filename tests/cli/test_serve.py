"""`tunesmith serve` as a process: how it starts, what it tells, how it ends."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import stat
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.infer.made_run import made_run
from tests.warm import Child, Warm

ASK = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 120, "temperature": 0, "stream": True}
SLOW = ("tests.serve.slow_steps", "slow_steps")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With runs/tang-1 over base."""
    found = tmp_path_factory.mktemp("served")
    (found / "runs").mkdir()
    made_run(found / "runs" / "tang-1", None)
    (found / "runs" / "base").rename(found / "base")
    config = found / "runs/tang-1/adapter/tunesmith.json"
    config.write_text(config.read_text().replace(str(found / "runs/base"), str(found / "base")))
    adapter = found / "runs/tang-1/adapter/adapter_config.json"
    adapter.write_text(adapter.read_text().replace(str(found / "runs/base"), str(found / "base")))
    return found


class Server:
    """A process that serves, and what it printed."""

    def __init__(self, child: Child, errors: Path) -> None:
        self.child, self.errors = child, errors
        assert child.until(lambda: child.file.exists() and child.file.read_text("utf-8").endswith("\n")), (
            errors.read_text(encoding="utf-8")
        )
        self.printed = child.file.read_text(encoding="utf-8")

    def told(self) -> str:
        return self.errors.read_text(encoding="utf-8")

    @contextmanager
    def stream(self) -> Iterator[http.client.HTTPResponse]:
        """An answer that is being written."""
        found = json.loads(self.printed)
        connection = http.client.HTTPConnection("127.0.0.1", port_of(found["url"]), timeout=60)
        key = Path(found["key_file"]).read_text().strip()
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        connection.request("POST", "/v1/chat/completions", json.dumps({"model": "tang-1", **ASK}), headers)
        with closing(connection), closing(connection.getresponse()) as answer:
            assert answer.status == 200
            yield answer


def port_of(url: str) -> int:
    return int(url.rsplit(":", 1)[1].split("/")[0])


@contextmanager
def started(warm: Warm, folder: Path, tmp_path: Path, *words: object, **options: Any) -> Iterator[Server]:
    errors = tmp_path / "errors"
    child = warm.start("serve", *words, folder=folder, printed=tmp_path / "printed", errors=errors, **options)
    try:
        yield Server(child, errors)
    finally:
        if child.pid in warm.running:
            child.kill()


def test_it_tells_how_to_ask_and_ends_with_ctrl_c(warm: Warm, folder: Path, tmp_path: Path) -> None:
    with started(warm, folder, tmp_path, "runs/tang-1", "--port", 0, "temperature=0.3") as server:
        url = server.printed.strip()
        told = server.told()
        assert url.startswith("http://127.0.0.1:")
        for words in (f"URL    {url}", "model  tang-1", f"curl {url}/chat/completions", "import OpenAI",
                      "temperature 0.3", "max_new_tokens 512", "base  (512 tokens"):  # fmt: skip
            assert words in told
        file = Path(told.split("key    in ")[1].split("\n")[0])
        key = file.read_text().strip()
        assert key not in told + server.printed, "a key is for a person's screen, and not for a log"
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        connection = http.client.HTTPConnection("127.0.0.1", port_of(url), timeout=60)
        connection.request("GET", "/v1/models", headers={"Authorization": f"Bearer {key}"})
        assert [m["id"] for m in json.loads(connection.getresponse().read())["data"]] == ["tang-1", "base"]
        connection.close()
        assert server.child.until(lambda: "GET  /v1/models  200" in server.told())
        server.child.send(signal.SIGINT)
        assert server.child.wait().code == 130
        assert "\nStopped.\n" in server.told()
        assert not file.exists()


def test_json_is_one_object_for_scripts(warm: Warm, folder: Path, tmp_path: Path) -> None:
    words = ("runs/tang-1", "--port", 0, "--json", "--token-file", tmp_path / "own.key")
    with started(warm, folder, tmp_path, *words) as server:
        found = json.loads(server.printed)
        assert found["models"] == ["tang-1", "base"]
        assert (found["key_file"], found["contexts"]["base"]) == (str(tmp_path / "own.key"), 512)
        assert found["settings"] == {"temperature": 0.7, "top_p": 0.9}
        assert (tmp_path / "own.key").read_text().strip() not in server.printed
        server.child.send(signal.SIGTERM)
        assert server.child.wait().code == 143
        assert (tmp_path / "own.key").exists(), "it was asked to be kept"


@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM])
def test_a_running_answer_may_end(warm: Warm, folder: Path, tmp_path: Path, number: signal.Signals) -> None:
    slow = [*SLOW, 0.002, 60.0]
    with (
        started(warm, folder, tmp_path, "runs/tang-1", "--port", 0, "--json", before=slow) as server,
        server.stream() as answer,
    ):
        server.child.send(number)
        content = answer.read()
        assert content.endswith(b"data: [DONE]\n\n")
        assert b'"finish_reason": "length"' in content or b'"finish_reason": "stop"' in content
        assert server.child.wait().code == 128 + number


def test_what_takes_too_long_is_told_to_its_client(warm: Warm, folder: Path, tmp_path: Path) -> None:
    slow = [*SLOW, 0.5, 0.6]
    with (
        started(warm, folder, tmp_path, "runs/tang-1", "--port", 0, "--json", before=slow) as server,
        server.stream() as answer,
    ):
        server.child.send(signal.SIGINT)
        last = answer.read().decode().rstrip("\n").split("\n\n")[-1]
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "server_stopping"
        assert server.child.wait().code == 130


def test_a_second_ctrl_c_waits_for_nothing(warm: Warm, folder: Path, tmp_path: Path) -> None:
    slow = [*SLOW, 1.0, 600.0]
    with (
        started(warm, folder, tmp_path, "runs/tang-1", "--port", 0, "--json", before=slow) as server,
        server.stream(),
    ):
        key_file = Path(json.loads(server.printed)["key_file"])
        server.child.send(signal.SIGINT)
        port = port_of(json.loads(server.printed)["url"])
        assert server.child.until(lambda: refused(port)), "it takes nothing more in"
        assert server.child.alive()
        server.child.send(signal.SIGINT)
        assert server.child.ends_within(30)
        assert server.child.wait().code == 130
        assert not key_file.exists()


def refused(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=10).close()
    except ConnectionRefusedError:
        return True
    except ConnectionResetError:  # the port is closed this moment
        return False
    return False


def test_a_taken_port_is_told_before_a_model_is_loaded(warm: Warm, folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = warm.call("serve", "runs/tang-1", "--port", port, cwd=folder)
    assert done.returncode == 2
    assert f"Port {port} of 127.0.0.1 can't be used" in done.stderr
    assert f"--port {port + 1}" in done.stderr


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["runs/tang-9"], 1, "Did you mean runs/tang-1?"),
        ([], 2, "There is nothing to serve."),
        (["runs/tang-1", "temprature=1"], 2, "temperature"),
        (["runs/tang-1", "--host", "0.0.0.0"], 2, "needs a key that you keep"),
        (["http://127.0.0.1:1/v1#m"], 2, "is served already"),
        (["runs/tang-1", "num_beams=2"], 2, "num_beams"),
        (["runs/tang-1", "max_length=9", "temperature=1"], 2, "max_length"),
        (["runs/tang-1", "runs/tang-1"], 2, "named twice"),
        (["base", "other/base"], 2, "Two models would be called 'base'"),
    ],
)  # fmt: skip
def test_mistakes_are_told(warm: Warm, folder: Path, words: list[str], code: int, said: str) -> None:
    if "other/base" in words and not (folder / "other").exists():
        (folder / "other").mkdir()
        (folder / "other" / "base").symlink_to(folder / "base")
    done = warm.call("serve", *words, cwd=folder)
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
