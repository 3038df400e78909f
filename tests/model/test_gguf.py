"""GGUF files: sound ones give the model they were written from; damaged ones one message, never a crash."""

from __future__ import annotations

import fcntl
import json
import random
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from tests.model import tiny_gguf
from tunesmith.device import Device
from tunesmith.errors import ModelError
from tunesmith.model import gguf_file
from tunesmith.model.load import (
    end_ids,
    fingerprint,
    first_use,
    load_model,
    load_tokenizer,
    local_folder,
    outline,
)
from tunesmith.model.source import resolve

FP32 = Device(torch.device("cpu"), torch.float32, "CPU")


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    return tiny_gguf.write(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNESMITH_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_a_gguf_file_gives_the_model_and_tokenizer_it_was_written_from(file, home, capfd):
    source = resolve(str(file))
    assert source.kind == "gguf"
    model = load_model(source, FP32)
    expected = tiny_gguf.tiny_llama()
    ids = torch.arange(3, 40)[None]
    torch.testing.assert_close(model(ids).logits, expected(ids).logits, atol=1e-5, rtol=0)
    tokenizer = load_tokenizer(source)
    assert tokenizer("hello").input_ids == [tiny_gguf.WORDS.index("hello")]
    assert tokenizer.chat_template == tiny_gguf.TEMPLATE
    assert end_ids(model) == end_ids(source) == {2}
    # the copy is a normal folder, made once, in bf16; nothing was printed on the way
    folder = local_folder(source)
    assert folder.parent == home / "models"
    assert model.name_or_path == str(folder)
    assert {p.name for p in folder.iterdir()} >= {"config.json", "model.safetensors", "tokenizer.json"}
    assert [p.name for p in folder.parent.iterdir() if not p.name.startswith(".")] == [folder.name]
    assert capfd.readouterr() == ("", "")
    # the same model whether it is named by the file or by its copy
    assert fingerprint(source) == fingerprint(resolve(str(folder)))


def test_who_waits_for_the_copy_is_told(file):
    source = resolve(str(file))
    assert "unpacked to bf16, once" in str(first_use(source))
    local_folder(source)
    assert first_use(source) is None
    assert first_use(resolve(str(local_folder(source)))) is None


def test_its_outline_may_be_asked_for_before_there_is_a_copy(file):
    model = outline(resolve(str(file)))
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


def test_the_copy_is_made_once_and_belongs_to_the_content(file, tmp_path):
    first = local_folder(resolve(str(file)))
    written = (first / "model.safetensors").stat().st_mtime_ns
    assert local_folder(resolve(str(file))) == first
    assert (first / "model.safetensors").stat().st_mtime_ns == written
    content = bytearray(file.read_bytes())
    content[-4:] = struct.pack("<f", 0.5)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "tiny.gguf").write_bytes(content)
    assert local_folder(resolve(str(tmp_path / "other" / "tiny.gguf"))) != first


def test_a_damaged_copy_is_made_again(file):
    folder = local_folder(resolve(str(file)))
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-1])
    assert local_folder(resolve(str(file))) == folder
    assert (folder / "model.safetensors").read_bytes() == whole


def test_two_at_once_make_one_copy(file):
    """While another one holds the lock, nobody begins; when it's done, its copy is used."""
    folder = local_folder(resolve(str(file)))
    kept = folder.rename(folder.with_name("kept"))
    lock = folder.parent / f".{folder.name}.lock"
    with ThreadPoolExecutor() as pool, lock.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        second = pool.submit(local_folder, resolve(str(file)))
        with pytest.raises(TimeoutError):
            second.result(timeout=1.5)  # five times what it takes
        assert not folder.exists()
        kept.rename(folder)
        written = (folder / "model.safetensors").stat().st_mtime_ns
        fcntl.flock(handle, fcntl.LOCK_UN)
        assert second.result(timeout=60) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == written


def test_code_that_lies_beside_a_gguf_file_never_runs(file, tmp_path, monkeypatch):
    """transformers would ask on the terminal, and run it after a "y"."""
    folder = tmp_path / "downloaded"
    folder.mkdir()
    (folder / "tiny.gguf").write_bytes(file.read_bytes())
    auto_map = {"AutoTokenizer": ["code.Odd", "code.Odd"], "AutoConfig": "code.Odd"}
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "Odd", "auto_map": auto_map}), encoding="utf-8"
    )
    (folder / "config.json").write_text(
        json.dumps({"model_type": "odd", "auto_map": auto_map}), encoding="utf-8"
    )
    (folder / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n", encoding="utf-8")
    asked = []
    monkeypatch.setattr("builtins.input", lambda prompt="": asked.append(prompt) or "y")
    with pytest.raises(ModelError, match="never runs a model's code") as caught:
        local_folder(resolve(str(folder / "tiny.gguf")))
    assert not asked
    assert not (tmp_path / "ran").exists()
    assert "trust_remote_code" not in str(caught.value)


def test_an_architecture_that_transformers_cannot_read_is_named(tmp_path):
    path = tiny_gguf.write(tmp_path / "odd.gguf", architecture="rwkv9")
    with pytest.raises(ModelError, match=r"'rwkv9', which transformers can't read from GGUF"):
        local_folder(resolve(str(path)))


def test_a_file_cut_anywhere_is_refused_before_a_parser_sees_it(file, tmp_path):
    content = file.read_bytes()
    header_end = len(content) - sum(p.numel() * 4 for p in tiny_gguf.tiny_llama().model.parameters())
    short = tmp_path / "short.gguf"
    lengths = [0, 3, 4, 23, 24, 100, header_end - 1, header_end, len(content) // 2, len(content) - 1]
    for length in lengths + random.Random(0).sample(range(len(content)), 60):
        short.write_bytes(content[:length])
        with pytest.raises(ModelError, match=r"short\.gguf can't be used"):
            gguf_file.check(short)


def test_random_damage_to_the_header_never_escapes_as_another_error(file, tmp_path):
    content = file.read_bytes()
    chance = random.Random(1)
    damaged = tmp_path / "damaged.gguf"
    refused = 0
    for _ in range(400):
        changed = bytearray(content)
        for _ in range(chance.randint(1, 4)):
            changed[chance.randrange(4000)] = chance.randrange(256)
        damaged.write_bytes(changed)
        try:
            gguf_file.check(damaged)
        except ModelError:
            refused += 1
    assert refused > 50


HUGE = 1 << 62


@pytest.mark.parametrize(
    ("offset", "form", "value", "words"),
    [
        (0, "<I", 0, "doesn't start with GGUF"),
        (4, "<I", 1, "version 1 is not supported"),
        (4, ">I", 3, "big-endian"),
        (8, "<Q", HUGE, "more than fit"),
        (16, "<Q", HUGE, "more than fit"),
        (24, "<Q", HUGE, "cut off, or a length"),  # the length of the first key
    ],
)
def test_hostile_numbers_in_the_header(file, tmp_path, offset, form, value, words):
    assert words in damage(file, tmp_path, offset, form, value)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("dimensions", 9, "entry of tensor"),
        ("size", HUGE, "cut off"),
        ("size", 0, "sizes of tensor"),
        ("type", 999, "unknown number format 999"),
        ("offset", HUGE, "cut off"),
        ("offset", 7, "wrong place"),
    ],
)
def test_hostile_tensor_entries(file, tmp_path, field, value, words):
    content = file.read_bytes()
    name = b"token_embd.weight"
    start = content.index(name) + len(name)
    place = {"dimensions": (0, "<I"), "size": (4, "<Q"), "type": (20, "<I"), "offset": (24, "<Q")}[field]
    assert words in damage(file, tmp_path, start + place[0], place[1], value)


def test_a_list_longer_than_the_file(file, tmp_path):
    content = file.read_bytes()
    start = content.index(b"tokenizer.ggml.tokens") + len(b"tokenizer.ggml.tokens") + 4 + 4
    assert "longer than the file" in damage(file, tmp_path, start, "<Q", 1 << 60)


def test_a_part_of_a_split_file_is_refused(tmp_path):
    path = tmp_path / "model-00001-of-00002.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint16("split.count", 2)
    writer.add_tensor("a", np.zeros((2, 2), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ModelError, match="one part of several"):
        resolve(str(path))


def damage(file: Path, folder: Path, offset: int, form: str, value: int) -> str:
    changed = bytearray(file.read_bytes())
    changed[offset : offset + struct.calcsize(form)] = struct.pack(form, value)
    (folder / "damaged.gguf").write_bytes(changed)
    with pytest.raises(ModelError) as caught:
        resolve(str(folder / "damaged.gguf"))
    return str(caught.value)
