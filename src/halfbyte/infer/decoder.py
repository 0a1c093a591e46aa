"""A compact forward pass for Llama-shaped models: packed tokens, fused products, no modules.

Per token, transformers' modules cost more time in Python than a small model costs in products.
Here a step is one packed pass over all rows, prompts and answers together, without padding.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any, Final

import psutil
import torch
from peft import PeftModel
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from halfbyte.infer.attention import Layout, plan
from halfbyte.infer.backend import Span, adapter_names, check_known, check_new, inner_model
from halfbyte.infer.cache import KVCache
from halfbyte.infer.layer import (
    PROJECTIONS,
    Layer,
    Lora,
    Norms,
    Shape,
    adapted,
    rms_norm,
)
from halfbyte.infer.pool import Adapter, Group, Pools, grouped
from halfbyte.infer.products import halves_work
from halfbyte.infer.projection import (
    Projection,
    Source,
    base_layer,
    dense_bytes,
    fault,
    in_peft,
)
from halfbyte.model.adapter_files import LoraWeights, read
from halfbyte.model.compute import has_cpu_bf16
from halfbyte.model.fast.narrow import working_dtype
from halfbyte.model.targets import linear_layers

# what these models compute is written out below; anything else takes transformers' own pass
_KNOWN: Final = {
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "GemmaForCausalLM",
}
_FIXED_ROPE: Final = {"default", "linear", "llama3", "yarn"}  # angles that no length changes
_ACTIVATIONS: Final = {"silu", "gelu", "gelu_pytorch_tanh"}
_COPY_SHARE: Final = 0.4  # of free memory that dense copies of the weights may take


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
        self._copy = _fits(body.layers, working_dtype(inner))
        self._dtype = _compute_dtype(inner, self._copy)
        self._gemma = type(inner).__name__ == "GemmaForCausalLM"
        self._shape = _shape(config, body)
        self._layout = Layout(self._shape.kv_heads, _window(config), self._dtype, self._device)
        self._embedding = _embedding(inner)
        self._projections = [
            [Projection(modules, self._dtype, self._copy) for modules in linear_groups(layer)]
            for layer in body.layers
        ]
        self._layers = [
            self._layer(*pair) for pair in zip(body.layers, self._projections, strict=True)
        ]
        self._norm = self._weight(body.norm)
        self._head = Projection([inner.get_output_embeddings()], self._dtype, copy=True)
        self._logits = self._scripted(self._head.product)
        self._rope = _Rope(body.rotary_emb, self._dtype, self._device)
        self._adapters: dict[str, Adapter] = {}
        self._pools = Pools()
        self.cache = KVCache(self._dtype, self._device)
        self.positions = int(config.max_position_embeddings)
        self.vocabulary = int(inner.get_output_embeddings().out_features)
        self.description = self._describe()

    def token_bytes(self) -> int:
        """Bytes of cache a token takes, over all layers."""
        shape = self._shape
        return len(self._layers) * shape.kv_heads * shape.width * 2 * self._dtype.itemsize

    def adapter(self, name: str) -> Hashable:
        """The adapter's weights as they are now; rows that hold them are not touched by changes."""
        if name not in self._adapters:
            check_known(name, adapter_names(self._model))
            self._find_modules()
            self._adapters[name] = self._read(name, in_peft(name))
        return self._adapters[name]

    def load(self, name: str, folder: Path) -> None:
        """See `Backend.load`. The model is not touched: five times faster than PEFT's way there."""
        check_new(name, adapter_names(self._model), self._adapters)
        found = read(self._model, folder)
        names = {layer: layer_name for layer_name, layer in linear_layers(self._model).items()}

        def part(module: nn.Module) -> LoraWeights | None:
            layer_name = names.get(base_layer(module))
            return None if layer_name is None else found.layer(layer_name)

        self._adapters[name] = self._read(name, part)

    def unload(self, name: str) -> Hashable | None:
        """See `Backend.unload`."""
        return self._adapters.pop(name, None)

    def _read(self, name: str, source: Source) -> Adapter:
        layers = [tuple(p.factor(source) for p in layer) for layer in self._projections]
        head = self._head.factor(source)
        return self._pools.add(name, [*layers, (head,) * PROJECTIONS])

    def _find_modules(self) -> None:
        """An adapter that came after the engine may have wrapped layers that none covered."""
        inner = inner_model(self._model)
        for layer, projections in zip(inner.model.layers, self._projections, strict=True):
            for projection, modules in zip(projections, linear_groups(layer), strict=True):
                projection.modules = modules
        self._head.modules = [inner.get_output_embeddings()]

    def forward(self, spans: list[Span]) -> torch.Tensor:
        """See `Backend.forward`. Packed in the order of slots, answers before prompts."""
        self._pools.tidy()
        order = sorted(range(len(spans)), key=lambda i: _order(spans[i]))
        packed = [spans[i] for i in order]
        groups = grouped(_owners(packed, [len(span.ids) for span in packed]))
        hidden = self._hidden(packed, groups)
        ends: list[int] = []
        owners: list[int] = []
        stop = 0
        for index, span in zip(order, packed, strict=True):
            stop += len(span.ids)
            ends += range(stop - span.want, stop)
            owners += [index] * span.want
        if len(ends) < len(hidden):
            hidden = hidden[ends]
            groups = grouped(_owners(packed, [span.want for span in packed]))
        normed = rms_norm(hidden, self._norm, self._shape.eps)
        logits = adapted(self._logits(normed), normed, _lora(groups, -1), 0)
        back = sorted(range(len(owners)), key=lambda i: (owners[i], i))
        return logits if back == list(range(len(back))) else logits[back]

    def _hidden(self, spans: Sequence[Span], groups: Sequence[Group]) -> torch.Tensor:
        """The last layer's output [tokens, width of the model], not yet normalized."""
        device, shape = self._device, self._shape
        tokens = [token for span in spans for token in span.ids]
        positions = [place for span in spans for place in range(span.start, span.stop)]
        ids = torch.tensor(tokens, device=device)
        rotation = self._rope(torch.tensor(positions, device=device))
        places = self._places(spans)
        todo = plan(spans, self._layout)
        x = functional.embedding(ids, self._embedding).to(self._dtype)
        if self._gemma:
            # the factor is rounded to the compute type, as Gemma was trained
            x = x * torch.tensor(x.shape[1] ** 0.5, dtype=self._dtype, device=device)
        for index, layer in enumerate(self._layers):
            keys, values = self.cache.layer(index, shape.kv_heads, (shape.width, shape.width))
            x = layer(x, rotation, (keys, values, places), todo, _lora(groups, index))
        return x

    def _places(self, spans: Sequence[Span]) -> torch.Tensor:
        """Where keys and values go: int64 [tokens * heads], rows of a layer's cache laid flat."""
        heads, capacity = self._shape.kv_heads, self.cache.capacity
        first = [s.slot * heads * capacity + p for s in spans for p in range(s.start, s.stop)]
        steps = torch.arange(heads, device=self._device) * capacity
        return (torch.tensor(first, device=self._device)[:, None] + steps).view(-1)

    def _layer(self, layer: Any, projections: Sequence[Projection]) -> nn.Module:
        attention = layer.self_attn
        empty = torch.empty(0, dtype=self._dtype, device=self._device)
        of_heads = [getattr(attention, name, None) for name in ("q_norm", "k_norm")]
        norms = Norms(
            self._weight(layer.input_layernorm),
            self._weight(layer.post_attention_layernorm),
            *(empty if norm is None else self._weight(norm) for norm in of_heads),
        )
        return self._scripted(Layer(self._shape, norms, [p.product for p in projections]))

    def _scripted(self, module: nn.Module) -> nn.Module:
        """TorchScript saves Python's time, which only counts where products are quick: on a CPU."""
        if self._device.type != "cpu" or not self._copy:
            return module
        scripted: nn.Module = torch.jit.script(module)
        return scripted

    def _weight(self, norm: Any) -> torch.Tensor:
        weight: torch.Tensor = norm.weight.detach()
        # Gemma's norms store what they differ from 1 by
        return (1 + weight.float() if self._gemma else weight).to(self._dtype)

    def _describe(self) -> str:
        products = [p.product for layer in self._projections for p in layer]
        kinds = [type(product).__name__.removesuffix("Product").lower() for product in products]
        counts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))
        name = str(self._dtype).removeprefix("torch.")
        return f"compact decoder in {name} (products: {counts})"


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


def _compute_dtype(model: PreTrainedModel, copy: bool) -> torch.dtype:
    """The model's own type. On a CPU float32 for 16-bit models where that is quicker: where 16 bits
    are emulated, and where weights are copied, since `HalfProduct` reads as few bytes and its
    sums are exact. SmolLM2 with an adapter on AVX512-BF16, two threads: 12 ms a token against
    27 in bf16; prompts of 512 tokens 0.35 s against 0.28. CPUs with AMX were not measured and
    keep bf16.
    """
    own = working_dtype(model)
    if not own.is_floating_point:
        return torch.float32
    if model.device.type != "cpu" or own == torch.float32:
        return own
    emulated = own == torch.float16 or not has_cpu_bf16()
    return torch.float32 if emulated or (copy and halves_work() and not _has_amx()) else own


def _has_amx() -> bool:
    return bool(torch.cpu.get_capabilities().get("amx_bf16"))


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


def _order(span: Span) -> tuple[bool, int]:
    return len(span.ids) > 1, span.slot


def _owners(spans: Sequence[Span], counts: Sequence[int]) -> list[Adapter | None]:
    """The adapter of each place, in a packing of so many places a span."""
    owners: list[Adapter | None] = []
    for span, count in zip(spans, counts, strict=True):
        owners += [span.adapter if isinstance(span.adapter, Adapter) else None] * count
    return owners


def _lora(groups: Sequence[Group], layer: int) -> Lora:
    """What a layer needs of a step's groups; -1: the head."""
    factors = [factor for group in groups for factor in group.layers[layer]]
    return Lora(
        [group.rows for group in groups],
        [group.places for group in groups],
        [group.back for group in groups],
        [factor.down for factor in factors],
        [factor.up for factor in factors],
        [factor.rescale for factor in factors],
    )


def linear_groups(layer: Any) -> tuple[list[nn.Module], ...]:
    """A layer's linear modules, those with the same input together, in the order of `Lora`."""
    attention, mlp = layer.self_attn, layer.mlp
    return (
        [attention.q_proj, attention.k_proj, attention.v_proj],
        [attention.o_proj],
        [mlp.gate_proj, mlp.up_proj],
        [mlp.down_proj],
    )


def _shape(config: Any, body: Any) -> Shape:
    heads = int(config.num_attention_heads)
    return Shape(
        heads=heads,
        kv_heads=int(getattr(config, "num_key_value_heads", None) or heads),
        width=int(getattr(config, "head_dim", None) or config.hidden_size // heads),
        scale=float(body.layers[0].self_attn.scaling),
        eps=float(config.rms_norm_eps),
        activation=str(config.hidden_act),
    )
