"""A compact forward pass for Llama-shaped models: packed tokens, fused products, no modules.

Per token, transformers' modules cost more time in Python than a small model costs in products.
Here a step is one packed pass over all rows, prompts and answers together, without padding.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import psutil
import torch
from peft import PeftModel
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from halfbyte.infer.attention import Layout, attend, plan
from halfbyte.infer.backend import Span, inner_model
from halfbyte.infer.cache import KVCache
from halfbyte.infer.projection import (
    Adapter,
    Group,
    Projection,
    check_known,
    dense_bytes,
    fault,
)
from halfbyte.model.compute import has_cpu_bf16

# what these models compute is written out below; anything else takes transformers' own pass
_KNOWN: Final = {
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "GemmaForCausalLM",
}
_FIXED_ROPE: Final = {"default", "linear", "llama3", "yarn"}  # angles that no length changes
_ACTIVATIONS: Final[dict[str, Callable[[torch.Tensor], torch.Tensor]]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_pytorch_tanh": lambda x: functional.gelu(x, approximate="tanh"),
}
_COPY_SHARE: Final = 0.4  # of free memory that dense copies of the weights may take


@dataclass(frozen=True, slots=True, eq=False)
class _Norm:
    """Root mean square norm over the last dimension."""

    weight: torch.Tensor
    eps: float

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if x.dtype != torch.float32:  # squares are summed in float32
            return functional.rms_norm(x, self.weight.shape, self.weight, self.eps)
        # half the time of rms_norm on a CPU, which is seven operators there
        square = (x * x).sum(-1, keepdim=True)
        return (x * square.mul_(1 / x.shape[-1]).add_(self.eps).rsqrt_()).mul_(self.weight)


@dataclass(frozen=True, slots=True, eq=False)
class _Layer:
    """One decoder layer's weights."""

    before: _Norm
    qkv: Projection
    q_norm: _Norm | None
    k_norm: _Norm | None
    out: Projection
    between: _Norm
    gate_up: Projection
    down: Projection


def unsupported(model: PreTrainedModel | PeftModel) -> str:
    """Why a model cannot take the compact pass; empty where it can."""
    inner = inner_model(model)
    config = inner.config
    rope = getattr(config, "rope_parameters", None) or {}
    if type(inner).__name__ not in _KNOWN:
        return f"{type(inner).__name__} is not Llama-shaped"
    if rope.get("rope_type", "default") not in _FIXED_ROPE:
        return f"rotary positions of type {rope.get('rope_type')}"
    if config.hidden_act not in _ACTIVATIONS:
        return f"activation {config.hidden_act}"
    if len(set(getattr(config, "layer_types", None) or ())) > 1:
        return "layers with different windows"
    if any(parameter.is_meta for parameter in inner.parameters()):
        return "weights that are not in memory"
    return fault(model)


class DecoderBackend:
    """The compact pass as a backend. Weights are read once, adapters when first asked for."""

    def __init__(self, model: PreTrainedModel | PeftModel) -> None:
        inner = inner_model(model)
        config, body = inner.config, inner.model
        self._model = model
        self._device = inner.device
        self._dtype = _compute_dtype(inner)
        heads = int(config.num_attention_heads)
        self._kv_heads = int(getattr(config, "num_key_value_heads", None) or heads)
        self._width = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
        self._heads = heads
        self._scale = float(body.layers[0].self_attn.scaling)
        self._layout = Layout(self._kv_heads, _window(config), self._dtype, self._device)
        self._activation = _ACTIVATIONS[config.hidden_act]
        self._projections: list[Projection] = []
        self._adapters: dict[str, Adapter] = {}
        self._read(inner)
        self._rope = _Rope(body.rotary_emb, self._dtype, self._device)
        self.cache = KVCache(self._dtype, self._device)
        self.positions = int(config.max_position_embeddings)
        self.vocabulary = int(inner.get_output_embeddings().out_features)
        kind = str(self._dtype).removeprefix("torch.")
        form = "dense copies" if self._copy else "the model's own layers"
        self.description = f"compact decoder, {kind}, {form}"

    def token_bytes(self) -> int:
        """Bytes of cache a token takes, over all layers."""
        return len(self._layers) * self._kv_heads * self._width * 2 * self._dtype.itemsize

    def adapter(self, name: str) -> Hashable:
        """The adapter's weights as they are now; rows that hold them are not touched by changes."""
        known = list(self._model.peft_config) if isinstance(self._model, PeftModel) else []
        check_known(name, known)
        if name not in self._adapters:
            factors = tuple(projection.factor(name) for projection in self._projections)
            self._adapters[name] = Adapter(name, factors)
        return self._adapters[name]

    def forget(self, name: str) -> None:
        """Read the adapter anew when it is next asked for."""
        self._adapters.pop(name, None)

    def forward(self, spans: list[Span]) -> torch.Tensor:
        """See `Backend.forward`. Rows of one adapter lie side by side, answers before prompts."""
        order = sorted(range(len(spans)), key=lambda i: _order(spans[i]))
        packed = [spans[i] for i in order]
        hidden = self._hidden(packed)
        ends: list[int] = []
        owners: list[int] = []
        stop = 0
        for index, span in zip(order, packed, strict=True):
            stop += len(span.ids)
            ends += range(stop - span.want, stop)
            owners += [index] * span.want
        kept = hidden if len(ends) == len(hidden) else hidden[ends]
        logits = self._head(self._norm(kept), _groups(packed, wanted=True))
        back = sorted(range(len(owners)), key=lambda i: (owners[i], i))
        return logits if back == list(range(len(back))) else logits[back]

    def _hidden(self, spans: Sequence[Span]) -> torch.Tensor:
        """The last layer's output [tokens, width of the model], not yet normalized."""
        device = self._device
        ids = torch.tensor([token for span in spans for token in span.ids], device=device)
        positions = [place for span in spans for place in range(span.start, span.stop)]
        rotation = self._rope(torch.tensor(positions, device=device))
        places = self._places(spans)
        groups, todo = _groups(spans), plan(spans, self._layout)
        x = functional.embedding(ids, self._embedding).to(self._dtype)
        if self._embedding_scale is not None:
            x = x * self._embedding_scale
        for index, layer in enumerate(self._layers):
            keys, values = self.cache.layer(index, self._kv_heads, (self._width, self._width))
            q, k, v = self._rotated(layer, layer.qkv(layer.before(x), groups), rotation)
            keys.view(-1, self._width).index_put_((places,), k)
            values.view(-1, self._width).index_put_((places,), v)
            found = attend(q, keys, values, todo, self._scale)
            layer.out(found, groups, residual=x)
            both = layer.gate_up(layer.between(x), groups)
            half = both.shape[1] // 2
            inner = self._activation(both[:, :half]).mul_(both[:, half:])
            layer.down(inner, groups, residual=x)
        return x

    def _places(self, spans: Sequence[Span]) -> torch.Tensor:
        """Where keys and values go: int64 [tokens * heads], rows of a layer's cache laid flat."""
        heads, capacity = self._kv_heads, self.cache.capacity
        first = [s.slot * heads * capacity + p for s in spans for p in range(s.start, s.stop)]
        steps = torch.arange(heads, device=self._device) * capacity
        return (torch.tensor(first, device=self._device)[:, None] + steps).view(-1)

    def _rotated(
        self, layer: _Layer, qkv: torch.Tensor, rotation: tuple[torch.Tensor, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """From a fused product: queries [n, kv heads, group, width], positions applied; keys,
        positions applied, and values [n * kv heads, width].
        """
        n, heads, kv_heads, width = len(qkv), self._heads, self._kv_heads, self._width
        turned = heads + kv_heads
        both = qkv[:, : turned * width].view(n, turned, width)
        if layer.q_norm is not None and layer.k_norm is not None:
            both = torch.cat([layer.q_norm(both[:, :heads]), layer.k_norm(both[:, heads:])], dim=1)
        # (a, b) → (a cos - b sin, b cos + a sin) on the halves of each head
        halves = both.view(n, turned, 2, width // 2)
        cosine, sine = rotation
        both = torch.addcmul(halves * cosine, halves.flip(2), sine).view(n, turned, width)
        q = both[:, :heads].reshape(n, kv_heads, heads // kv_heads, width)
        return q, both[:, heads:].reshape(-1, width), qkv[:, turned * width :].reshape(-1, width)

    def _read(self, inner: PreTrainedModel) -> None:
        body, head = inner.model, inner.get_output_embeddings()
        self._copy = _fits(body.layers, self._dtype)
        gemma = type(inner).__name__ == "GemmaForCausalLM"
        width = inner.config.hidden_size
        self._embedding = _embedding(inner)
        # Gemma multiplies embeddings by sqrt(width), rounded to the compute dtype
        self._embedding_scale = (
            torch.tensor(width**0.5, dtype=self._dtype, device=self._device) if gemma else None
        )
        self._layers = [self._read_layer(layer, gemma) for layer in body.layers]
        self._norm = self._read_norm(body.norm, gemma)
        self._head = self._project([head])

    def _read_layer(self, layer: Any, gemma: bool) -> _Layer:
        attention, mlp = layer.self_attn, layer.mlp
        q_norm, k_norm = getattr(attention, "q_norm", None), getattr(attention, "k_norm", None)
        return _Layer(
            before=self._read_norm(layer.input_layernorm, gemma),
            qkv=self._project([attention.q_proj, attention.k_proj, attention.v_proj]),
            q_norm=None if q_norm is None else self._read_norm(q_norm, gemma),
            k_norm=None if k_norm is None else self._read_norm(k_norm, gemma),
            out=self._project([attention.o_proj]),
            between=self._read_norm(layer.post_attention_layernorm, gemma),
            gate_up=self._project([mlp.gate_proj, mlp.up_proj]),
            down=self._project([mlp.down_proj]),
        )

    def _read_norm(self, norm: Any, gemma: bool) -> _Norm:
        weight = norm.weight.detach()
        eps = norm.eps if gemma else norm.variance_epsilon
        # Gemma's norms store what they differ from 1 by
        return _Norm((1 + weight.float() if gemma else weight).to(self._dtype), float(eps))

    def _project(self, modules: Sequence[nn.Module]) -> Projection:
        projection = Projection(len(self._projections), modules, self._dtype, self._copy)
        self._projections.append(projection)
        return projection


class _Rope:
    """Cosines and sines of positions, from the model's own rotary module."""

    def __init__(self, module: Any, dtype: torch.dtype, device: torch.device) -> None:
        self._frequencies = module.inv_freq.float().to(device)
        self._factor = float(module.attention_scaling)
        self._dtype = dtype

    def __call__(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """For positions [n]: cosines [n, 1, 1, half] and signed sines [n, 1, 2, half]."""
        angles = positions[:, None].float() * self._frequencies
        cosine = (angles.cos() * self._factor).to(self._dtype)
        sine = (angles.sin() * self._factor).to(self._dtype)
        return cosine[:, None, None], torch.stack([-sine, sine], dim=1)[:, None]


def _compute_dtype(model: PreTrainedModel) -> torch.dtype:
    """The model's own type, but float32 for 16-bit models on CPUs that would emulate it."""
    own = _embedding(model).dtype
    if model.device.type == "cpu" and (own == torch.float16 or not has_cpu_bf16()):
        return torch.float32
    return own if own.is_floating_point else torch.float32


def _embedding(model: PreTrainedModel) -> torch.Tensor:
    weight: torch.Tensor = model.get_input_embeddings().get_parameter("weight")
    return weight.detach()


def _window(config: Any) -> int | None:
    """Keys a token sees at most, where the model limits that."""
    kinds = set(getattr(config, "layer_types", None) or ())
    window = getattr(config, "sliding_window", None)
    return int(window) if window and (not kinds or kinds == {"sliding_attention"}) else None


def _fits(layers: nn.Module, dtype: torch.dtype) -> bool:
    linear = [m for name, m in layers.named_modules() if name.endswith("_proj")]
    device = next(layers.parameters()).device
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    else:
        free = psutil.virtual_memory().available
    return dense_bytes(linear, dtype) <= free * _COPY_SHARE


def _order(span: Span) -> tuple[int, bool, int]:
    return (0 if span.adapter is None else id(span.adapter), len(span.ids) > 1, span.slot)


def _groups(spans: Sequence[Span], wanted: bool = False) -> list[Group]:
    """Neighbouring rows of one adapter, counted in tokens, or in tokens whose logits are wanted."""
    groups: list[Group] = []
    start = 0
    for span in spans:
        stop = start + (span.want if wanted else len(span.ids))
        if isinstance(span.adapter, Adapter) and stop > start:
            if groups and groups[-1].adapter is span.adapter:
                groups[-1] = Group(groups[-1].start, stop, span.adapter)
            else:
                groups.append(Group(start, stop, span.adapter))
        start = stop
    return groups
