"""Libraries in C++ for training: tiles and vectors say the same, and vectors do where tiles are withheld."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.model import test_attention_native, test_gated_native, test_head_native, test_linear_native
from tests.model.test_attention import tensors
from tunesmith.errors import ModelError
from tunesmith.model import attention_native, gated_native, head_native, linear_native, native
from tunesmith.model.attention import attention
from tunesmith.train import compiling

pytestmark = pytest.mark.skipif(
    not native.supported() or compiling.missing() is not None,
    reason="needs Linux, a C++ compiler and a processor with products in bf16",
)
COMPILER = "g++"
HAS_TILES = native.products() == native.TILES
# The kind that isn't this machine's own: vectors where there are tiles, emulated tiles where there are none.
OTHER = (
    ("-U__AMX_BF16__",)
    if HAS_TILES
    else ("-D__AMX_BF16__", "-include", str(Path(__file__).with_name("emulated_tiles.h")))
)


KERNELS = {"attention": attention_native, "linear": linear_native, "gated": gated_native, "head": head_native}
Libraries = dict[str, tuple[ctypes.CDLL, ctypes.CDLL]]


@pytest.fixture(scope="module")
def both() -> Libraries:
    """Each library of this machine's own kind and of the other."""
    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(2) as pool:
        own = list(pool.map(lambda kernel: kernel.build(COMPILER), KERNELS.values()))
        patch.setattr(native, "FLAGS", (*native.FLAGS, *OTHER))
        other = list(pool.map(lambda kernel: kernel.build(COMPILER), KERNELS.values()))
    assert not {library._name for library in own} & {library._name for library in other}
    return dict(zip(KERNELS, zip(own, other, strict=True), strict=True))


def same(kernel: str, both: Libraries, compute: Callable[[], list[Tensor]]) -> None:
    """Emulated tiles sum in the order of vectors; those of hardware may round another way."""
    found = []
    for library in both[kernel]:
        with KERNELS[kernel].using(library):
            found.append(compute())
    for a, b in zip(*found, strict=True):
        assert torch.isfinite(a).all()
        if HAS_TILES:
            torch.testing.assert_close(a.float(), b.float(), rtol=2e-2, atol=1e-2)
        else:
            assert torch.equal(a, b)


@pytest.mark.parametrize("shape", test_linear_native.SHAPES.values(), ids=test_linear_native.SHAPES)
def test_a_layer_by_tiles_and_by_vectors(shape: tuple[int, int, int, int], both: Libraries) -> None:
    given = test_linear_native.given(*shape)
    same("linear", both, lambda: test_linear_native.computed(linear_native.lora_linear, *given))


@pytest.mark.parametrize("shape", test_gated_native.SHAPES.values(), ids=test_gated_native.SHAPES)
def test_a_block_by_tiles_and_by_vectors(
    shape: tuple[int, int, int, tuple[int, ...]], both: Libraries
) -> None:
    block = test_gated_native.given(*shape)
    same("gated", both, lambda: test_gated_native.computed(test_gated_native.in_one, *block))


@pytest.mark.parametrize("kind", test_head_native.KINDS.values(), ids=test_head_native.KINDS)
@pytest.mark.parametrize("shape", test_head_native.SHAPES.values(), ids=test_head_native.SHAPES)
def test_the_head_by_tiles_and_by_vectors(
    shape: tuple[int, int, int], kind: dict[str, float], both: Libraries
) -> None:
    given = test_head_native.given(*shape)
    same("head", both, lambda: test_head_native.ours(*given, **kind))


@pytest.mark.parametrize("size", [32, 64, 96])
def test_attention_by_tiles_and_by_vectors(size: int, both: Libraries) -> None:
    layout = test_attention_native.TREES["drawn 3"]
    *qkv, dout = (x.bfloat16() for x in tensors(sum(n for _, n, _ in layout), 6, 2, size))

    def computed() -> list[Tensor]:
        leaves = [x.detach().requires_grad_() for x in qkv]
        out, lse = attention(*leaves, torch.tensor(layout), size**-0.5, 0, 0.0)
        return [out.detach(), lse, *torch.autograd.grad(out, leaves, dout)]

    same("attention", both, computed)


@pytest.mark.parametrize("permitted", [True, False])
def test_where_the_system_withholds_tiles_code_is_for_vectors(
    permitted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNESMITH_HOME", str(tmp_path))
    monkeypatch.setattr(native, "_processor", lambda: frozenset({"avx512bw", "avx512_bf16", "amx_bf16"}))
    monkeypatch.setattr(native, "_tiles_permitted", lambda: permitted)
    monkeypatch.setattr(native, "FLAGS", (*native.FLAGS, "-mamx-tile", "-mamx-bf16"))
    source = tmp_path / "kind.cpp"
    source.write_text(
        "#include <immintrin.h>\n"  # whose own pragmas must not bring them back
        "#ifdef __AMX_BF16__\n"
        'extern "C" int kind_tiles() { return 1; }\n'
        "#endif\n",
        encoding="utf-8",
    )
    assert native.products() == (native.TILES if permitted else native.VECTORS)
    assert hasattr(native.build("kind", [source], COMPILER), "kind_tiles") == permitted


def test_it_is_built_once_and_a_failure_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESMITH_HOME", str(tmp_path))
    source = tmp_path / "small.cpp"
    source.write_text('extern "C" int small() { return 1; }\n', encoding="utf-8")
    native.build("small", [source], COMPILER)
    (made,) = (tmp_path / "kernels").iterdir()
    stamp = made.stat().st_mtime_ns
    assert native.is_built("small", [source], COMPILER)
    native.build("small", [source], COMPILER)
    assert made.stat().st_mtime_ns == stamp
    source.write_text(source.read_text("utf-8") + "not C++\n", encoding="utf-8")
    with pytest.raises(ModelError, match="The small kernel can't be compiled") as told:
        native.build("small", [source], COMPILER)
    assert any("error" in line for line in told.value.details)
    assert list((tmp_path / "kernels").iterdir()) == [made], "nothing half-made stays"
