"""A step of generation in C++ (decode_cpu.cpp): the next scores of all rows in a call, for models like llama.

Torch's own step reads the weights of a 135M model at less than half the speed of the memory and spends as
long again between its operations. Here a step is one call that reads every weight once, where it is.

The library is built on first use wherever the machine has a compiler. Whether it is used depends on the model
and the machine alone, not on what is asked, so that the same command takes the same path.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tunesmith.model import native
from tunesmith.model.cache import ALIGN, Cache, Chunk, Spans
from tunesmith.model.fused_lora import at_work, is_idle
from tunesmith.model.peft_parts import lora

SOURCES = native.sources("decode")
FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "phi3", "smollm3")
# Tokens of prompts in one call: enough to hide reading the weights, few for a core's cache. Not a power
# of two, which would put the rows of a tile into the same few places of that cache.
AT_ONCE = 240
LARGEST_GROUP = 16  # query heads of a key head: columns of a tile


class _Linear(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("weight", "bias", "a", "b")),
        *((name, ctypes.c_int64) for name in ("outputs", "inputs", "rank")),
        ("scale", ctypes.c_float),
    ]


class _Layer(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("norm", "post_norm", "q_norm", "k_norm")),
        *((name, _Linear) for name in ("q", "k", "v", "o", "gate", "up", "down")),
        *((name, ctypes.c_void_p) for name in ("keys", "values")),
        *((name, ctypes.c_int64) for name in ("rotary", "window")),
    ]


class _Model(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("embedding", "norm", "cosine", "sine")),
        ("layers", ctypes.POINTER(_Layer)),
        ("head", _Linear),
        *(
            (name, ctypes.c_int64)
            for name in ("depth", "hidden", "inner", "heads", "kv_heads", "size", "rotated", "store")
        ),
        *((name, ctypes.c_float) for name in ("eps", "scale")),
    ]


class _Rows(ctypes.Structure):
    _fields_ = [
        *(
            (name, ctypes.c_void_p)
            for name in ("tokens", "positions", "slots", "offsets", "spans", "wanted", "adapter", "logits")
        ),
        *((name, ctypes.c_int64) for name in ("count", "outputs", "together")),
    ]


def why_not(model: PreTrainedModel) -> str | None:
    """Why this model's steps aren't taken in C++, in a few words; None where they can be."""
    config: Any = model.config
    if model.device.type != "cpu" or model.dtype is not torch.bfloat16:
        return "its steps in C++ are for bf16 on a CPU"
    if config.model_type not in FAMILIES:
        return f"its steps in C++ don't know the {config.model_type} family"
    if not native.supported() or native.compiler() is None:
        return "this machine has no C++ compiler, or no products in bf16"
    base: Any = model.model
    first = base.layers[0]
    size = _head_size(config)
    group = config.num_attention_heads // config.num_key_value_heads
    if size % ALIGN or group > LARGEST_GROUP or config.hidden_act != "silu":
        return "its heads or activation are of another shape"
    if _rotated(config, size) % 2 or config.hidden_size % ALIGN or config.intermediate_size % ALIGN:
        return "its sizes aren't multiples of 32"
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear or head.bias is not None or type(base.embed_tokens) is not nn.Embedding:
        return "its vocabulary's layers are of another kind"
    if _linear(head, whole=False) is None or head.weight.shape[0] < ALIGN:
        return "its vocabulary is too small or not in bf16"
    kind = type(first.input_layernorm).__name__
    if not kind.endswith("RMSNorm") or any(
        _linear(module) is None for layer in base.layers for module in _modules(layer)
    ):
        return "it has layers of another kind"
    return None


def library(note: Callable[[str], None] = lambda _: None) -> ctypes.CDLL:
    """The library, built where it isn't; `note` is told before that. Raises ModelError where it can't be."""
    compiler = native.compiler()
    assert compiler is not None
    if not native.is_built("decode", SOURCES, compiler):
        note("Answers are computed in C++ here: it is built for this machine now, once (about 10 s).")
    return native.build("decode", SOURCES, compiler)


@dataclass
class NativeStep:
    """A model's weights as the library takes them. Raises ModelError where it can't be built."""

    model: PreTrainedModel
    cache: Cache
    _kept: list[Tensor] = field(default_factory=list, init=False)  # what pointers point at

    def __post_init__(self) -> None:
        self._library = library()
        self._model = self._described()

    def step(
        self, tokens: Sequence[int], spans: Sequence[Spans], adapter: Sequence[bool], out: Tensor
    ) -> None:
        """Scores of the next token of each row into out [R, V] fp32.

        `tokens` are the rows' newest, whose keys and values this call puts at the end of the rows' `spans`.
        """
        ends = torch.tensor([sum(b - a for a, b in row) for row in spans])
        slots = torch.tensor([row[-1][1] for row in spans]) - 1
        offsets = torch.tensor([0, *accumulate(map(len, spans))])
        edges = torch.tensor([edge for row in spans for span in row for edge in span])
        self._run(
            torch.tensor(tokens), ends - 1, slots, offsets, edges, torch.arange(len(tokens)), adapter, out
        )

    def read(
        self, chunks: Sequence[Chunk], tokens: Sequence[int], adapter: Sequence[bool], out: Tensor
    ) -> None:
        """Read the chunks' tokens, all of them in `tokens` [T]; scores after the last of each that is wanted.

        `adapter` is of each chunk; out [wanted chunks, V] fp32.
        """
        parts = [_rows_of(chunk) for chunk in chunks]
        positions, slots, spans = (torch.cat([part[i] for part in parts]) for i in range(3))
        counts = torch.tensor([chunk.count for chunk in chunks])
        widths = torch.tensor([len(chunk.spans) for chunk in chunks]).repeat_interleave(counts)
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), widths.cumsum(0)])
        on = [a for a, chunk in zip(adapter, chunks, strict=True) for _ in range(chunk.count)]
        ends = counts.cumsum(0) - 1
        wanted = ends[torch.tensor([chunk.wanted for chunk in chunks])]
        ids = torch.tensor(tokens)
        done = 0
        for start in range(0, len(ids), AT_ONCE):
            stop = min(start + AT_ONCE, len(ids))
            here = wanted[(wanted >= start) & (wanted < stop)]
            first, last = offsets[start], offsets[stop]
            self._run(
                ids[start:stop], positions[start:stop], slots[start:stop], offsets[start : stop + 1] - first,
                spans[2 * first : 2 * last], here - start, on[start:stop], out[done : done + len(here)],
                together=True,
            )  # fmt: skip
            done += len(here)

    def _run(
        self,
        tokens: Tensor,
        positions: Tensor,
        slots: Tensor,
        offsets: Tensor,
        spans: Tensor,
        wanted: Tensor,
        adapter: Sequence[bool],
        out: Tensor,
        *,
        together: bool = False,
    ) -> None:
        assert out.shape == (len(wanted), self._model.head.outputs)
        assert out.dtype is torch.float32
        on = torch.tensor(adapter, dtype=torch.float32)
        whole = [x.contiguous() for x in (tokens, positions, slots, offsets, spans, wanted, on, out)]
        rows = _Rows(*native.pointers(*whole), len(tokens), len(wanted), together)
        self._library.decode_step(
            ctypes.byref(self._model), ctypes.byref(rows), *native.sizes(torch.get_num_threads())
        )

    def _described(self) -> _Model:
        config: Any = self.model.config
        base: Any = self.model.model
        size = _head_size(config)
        rotated = _rotated(config, size)
        layers = (_Layer * len(base.layers))()
        for number, layer in enumerate(base.layers):
            layers[number] = self._layer(layer, number, config, size)
        places = torch.arange(self.cache.tokens)[None]
        # In fp32: a model's own rotary embedding rounds to the format of what it's given.
        cosine, sine = base.rotary_emb(torch.zeros(1, 1, 1), places)
        return _Model(
            self._at(base.embed_tokens.weight), self._numbers(base.norm.weight),
            *(self._at(x[0, :, : rotated // 2].float().contiguous()) for x in (cosine, sine)),
            layers, self._linear(self.model.get_output_embeddings()), len(layers),
            config.hidden_size, config.intermediate_size, config.num_attention_heads,
            config.num_key_value_heads, size, rotated, self.cache.tokens,
            config.rms_norm_eps, base.layers[0].self_attn.scaling,
        )  # fmt: skip

    def _layer(self, layer: Any, number: int, config: Any, size: int) -> _Layer:
        attention, mlp = layer.self_attn, layer.mlp
        widths = [config.num_attention_heads * size, *[config.num_key_value_heads * size] * 2]
        if hasattr(attention, "qkv_proj"):
            queries = self._parts(attention.qkv_proj, widths)
        else:
            queries = [self._linear(getattr(attention, name)) for name in ("q_proj", "k_proj", "v_proj")]
        if hasattr(mlp, "gate_up_proj"):
            inner = self._parts(mlp.gate_up_proj, [config.intermediate_size] * 2)
        else:
            inner = [self._linear(mlp.gate_proj), self._linear(mlp.up_proj)]
        like = torch.zeros(1, config.num_key_value_heads, size, dtype=torch.bfloat16)
        keys, values = self.cache.layer(number, like)
        norms = [getattr(attention, name, None) for name in ("q_norm", "k_norm")]
        return _Layer(
            self._numbers(layer.input_layernorm.weight), self._numbers(layer.post_attention_layernorm.weight),
            *(None if norm is None else self._numbers(norm.weight) for norm in norms),
            *queries, self._linear(attention.o_proj), *inner, self._linear(mlp.down_proj),
            self._at(keys), self._at(values),
            int(getattr(attention, "use_rope", 1)),
            getattr(attention, "sliding_window", getattr(config, "sliding_window", None)) or 0,
        )  # fmt: skip

    def _linear(self, module: Any) -> _Linear:
        (one,) = self._parts(module, [module.weight.shape[0]])
        return one

    def _parts(self, module: nn.Module, widths: Sequence[int]) -> list[_Linear]:
        """A linear layer, or several that lie in one, with the adapter that is at work on it."""
        plain: Any = module.get_base_layer() if isinstance(module, lora.Linear) else module
        weight, bias = plain.weight.detach(), plain.bias
        a: Tensor | None = None
        bs: Sequence[Tensor | None] = [None] * len(widths)
        scale = 0.0
        if isinstance(module, lora.Linear) and (name := at_work(module)) is not None:
            # fp32 masters in the base's format, as in training; filled up to whole tiles.
            a = _filled(module.lora_A[name].weight, 0)
            bs = [_filled(b, 1) for b in module.lora_B[name].weight.split(list(widths))]
            scale = module.scaling[name]
        biases = [None] * len(widths) if bias is None else bias.detach().split(list(widths))
        return [
            _Linear(
                *(None if x is None else self._at(x) for x in (w, c, a, b)),
                w.shape[0], w.shape[1], 0 if a is None else a.shape[0], scale,
            )
            for w, c, b in zip(weight.split(list(widths)), biases, bs, strict=True)
        ]  # fmt: skip

    def _at(self, x: Tensor) -> int:
        assert x.is_contiguous()
        self._kept.append(x)
        return x.data_ptr()

    def _numbers(self, x: Tensor) -> int:
        return self._at(x.detach().float().contiguous())


def _rows_of(chunk: Chunk) -> tuple[Tensor, Tensor, Tensor]:
    """Of each of its tokens position [N], place in the cache [N], and the spans it sees, laid flat."""
    *before, (begin, end) = chunk.spans
    slots = torch.arange(end - chunk.count, end)
    positions = slots - begin + sum(b - a for a, b in before)
    spans = torch.empty(chunk.count, len(chunk.spans), 2, dtype=torch.int64)
    spans[:, :-1] = torch.tensor(before, dtype=torch.int64).view(-1, 2)
    spans[:, -1, 0] = begin
    spans[:, -1, 1] = slots + 1
    return positions, slots, spans.flatten()


def _modules(layer: Any) -> list[nn.Module]:
    """The linear layers of a decoder layer."""
    attention, mlp = layer.self_attn, layer.mlp
    names = ("q_proj", "k_proj", "v_proj", "qkv_proj", "o_proj")
    inner = ("gate_proj", "up_proj", "gate_up_proj", "down_proj")
    found = [getattr(attention, name, None) for name in names] + [getattr(mlp, name, None) for name in inner]
    return [module for module in found if module is not None]


def _linear(module: nn.Module, *, whole: bool = True) -> nn.Linear | None:
    """The plain linear layer in bf16 that this is, with a plain adapter or none; None for anything else.

    `whole`: its outputs must be a multiple of 16.
    """
    base = module
    if isinstance(module, lora.Linear):
        if not is_idle(module) and at_work(module) is None:
            return None
        base = module.get_base_layer()
    if type(base) is not nn.Linear or base.weight.dtype is not torch.bfloat16:
        return None
    outputs, inputs = base.weight.shape
    fits = (outputs % 16 == 0 or not whole) and inputs % ALIGN == 0 and base.weight.is_contiguous()
    return base if fits and (base.bias is None or base.bias.dtype is torch.bfloat16) else None


def _filled(x: Tensor, axis: int) -> Tensor:
    """In bf16, with zeros up to a multiple of 32 along an axis."""
    more = -x.shape[axis] % ALIGN
    pad = (0, more) if axis == 1 else (0, 0, 0, more)
    return torch.nn.functional.pad(x.detach(), pad).to(torch.bfloat16).contiguous()


def _head_size(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _rotated(config: Any, size: int) -> int:
    parameters = getattr(config, "rope_parameters", None) or {}
    return int(size * parameters.get("partial_rotary_factor", getattr(config, "partial_rotary_factor", 1.0)))
