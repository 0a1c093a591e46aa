"""Any transformers causal model as a backend, through its own forward pass.

Slower than the compact decoder, since the model's Python runs for every token, but it takes
whatever has attention caches: GPT-2 shaped models, DoRA adapters, hybrid windows.
"""

from __future__ import annotations

import inspect
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import Cache, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin

from halfbyte.errors import InputError
from halfbyte.infer.backend import Span, adapter_names, check_known, check_new, inner_model
from halfbyte.infer.cache import KVCache
from halfbyte.model.adapter_files import load
from halfbyte.model.fast.narrow import working_dtype

_KNOWN_LAYERS: Final = {"full_attention", "sliding_attention"}


@dataclass(frozen=True, slots=True)
class _Place:
    """Where the tokens of one forward pass go: row i to slots[i], from place starts[i] on."""

    slots: tuple[int, ...]
    starts: tuple[int, ...]
    length: int

    @property
    def longest(self) -> int:
        return max(self.starts) + self.length


class _SlotLayer(CacheLayerMixin):
    """One layer of our cache, in the shape a transformers model expects of its own."""

    def __init__(self, index: int, store: KVCache, place: _Place) -> None:
        super().__init__()
        self._index, self._store, self._place = index, store, place

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing to do: the store makes its tensors itself."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store [rows, heads, n, width]; return the rows' keys and values up to the longest."""
        widths = (key_states.shape[-1], value_states.shape[-1])
        keys, values = self._store.layer(self._index, key_states.shape[1], widths)
        place = self._place
        rows = torch.tensor(place.slots, device=keys.device)
        for store, new in ((keys, key_states), (values, value_states)):
            for row, (slot, start) in enumerate(zip(place.slots, place.starts, strict=True)):
                store[slot, :, start : start + place.length] = new[row]
        longest = place.longest
        return keys[rows, :, :longest], values[rows, :, :longest]

    def get_seq_length(self) -> int:
        """Tokens before those of this pass, in the longest row."""
        return max(self._place.starts)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Keys that `update` will return, and the place of the first."""
        return max(self._place.starts) + query_length, 0

    def get_max_length(self) -> int:
        """Tokens a slot can hold."""
        return self._store.capacity


class TransformersBackend:
    """The model's own forward pass over our cache; rows of one adapter at a time."""

    def __init__(self, model: PreTrainedModel | PeftModel, reason: str = "") -> None:
        self._model = model
        self._own: set[str] = set()
        inner = inner_model(model)
        config = inner.config.get_text_config()
        kinds = set(getattr(config, "layer_types", None) or ())
        if kinds - _KNOWN_LAYERS:
            raise InputError(
                f"{type(inner).__name__}: layers of kind {', '.join(sorted(kinds - _KNOWN_LAYERS))}"
                " keep a state that cannot be shared between rows: generation is not supported"
            )
        self._config, self._kinds = config, kinds
        self._keeps = "logits_to_keep" in inspect.signature(inner.forward).parameters
        self._device = next(inner.parameters()).device
        self._dtype = working_dtype(inner)
        self.cache = KVCache(self._dtype, self._device)
        self.positions = int(getattr(config, "max_position_embeddings", 0) or 2**20)
        self.vocabulary = int(inner.get_output_embeddings().weight.shape[0])
        self.description = f"transformers' forward pass{f' ({reason})' if reason else ''}"

    def token_bytes(self) -> int:
        """Bytes of cache a token takes, over all layers, from the config."""
        config = self._config
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = getattr(config, "head_dim", None)
        width = width or config.hidden_size // config.num_attention_heads
        return int(config.num_hidden_layers * heads * width * 2 * self._dtype.itemsize)

    def adapter(self, name: str) -> Hashable:
        """The name itself: the weights stay in the model."""
        check_known(name, adapter_names(self._model))
        return name

    def load(self, name: str, folder: Path) -> None:
        """See `Backend.load`; the weights go into the model."""
        check_new(name, adapter_names(self._model))
        self._model = load(self._model, folder, name).eval()
        self._own.add(name)

    def unload(self, name: str) -> Hashable:
        """See `Backend.unload`; nothing is kept of the model's own adapters."""
        if name in self._own:
            assert isinstance(self._model, PeftModel)
            self._model.delete_adapter(name)
            self._own.remove(name)
        return name

    def forward(self, spans: list[Span]) -> torch.Tensor:
        """See `Backend.forward`."""
        out: dict[int, torch.Tensor] = {}
        for adapter in dict.fromkeys(span.adapter for span in spans):
            places = [i for i, span in enumerate(spans) if span.adapter == adapter]
            with _active(self._model, adapter):
                for group in _groups(spans, places):
                    logits = self._run([spans[i] for i in group])
                    out.update(zip(group, logits, strict=True))
        wanted = [out[i][len(out[i]) - span.want :] for i, span in enumerate(spans)]
        return torch.cat(wanted)

    def _run(self, spans: Sequence[Span]) -> torch.Tensor:
        """Logits [rows, n, vocabulary] of spans of one length n (or only their last places)."""
        length = len(spans[0].ids)
        place = _Place(tuple(s.slot for s in spans), tuple(s.start for s in spans), length)
        layers = [_SlotLayer(i, self.cache, place) for i in range(self._config.num_hidden_layers)]
        starts = torch.tensor(place.starts, device=self._device)
        positions = starts[:, None] + torch.arange(length, device=self._device)
        keep = {"logits_to_keep": max(1, *(s.want for s in spans))} if self._keeps else {}
        return self._model(
            input_ids=torch.tensor([s.ids for s in spans], device=self._device),
            position_ids=positions,
            attention_mask=self._masks(positions, place.longest),
            past_key_values=Cache(layers=list(layers)),
            use_cache=True,
            **keep,
        ).logits

    def _masks(
        self, positions: torch.Tensor, longest: int
    ) -> torch.Tensor | dict[str, torch.Tensor]:
        """Additive masks [rows, 1, n, longest]; one a kind of layer where the model has kinds."""
        keys, queries = torch.arange(longest, device=self._device), positions[:, None, :, None]
        window = getattr(self._config, "sliding_window", None) or longest
        full = self._additive(keys <= queries)
        near = full
        if window < longest:
            near = self._additive((keys <= queries) & (keys > queries - window))
        # without kinds, a window is every layer's (Mistral, Phi-3)
        return {"full_attention": full, "sliding_attention": near} if self._kinds else near

    def _additive(self, seen: torch.Tensor) -> torch.Tensor:
        mask = torch.zeros(seen.shape, dtype=self._dtype, device=self._device)
        return mask.masked_fill_(~seen, torch.finfo(self._dtype).min)


def _groups(spans: Sequence[Span], places: Sequence[int]) -> Iterator[list[int]]:
    """Spans that can run together: all single tokens at once, longer ones alone."""
    single = [i for i in places if len(spans[i].ids) == 1]
    if single:
        yield single
    yield from ([i] for i in places if len(spans[i].ids) > 1)


@contextmanager
def _active(model: PreTrainedModel | PeftModel, adapter: Hashable | None) -> Iterator[None]:
    """Run with this adapter alone, in eval mode; leave the model as it was."""
    training = [module for module in model.modules() if module.training]
    layers = [m for m in model.modules() if isinstance(m, BaseTunerLayer)]
    before = [(layer, layer.active_adapters, layer.disable_adapters) for layer in layers]
    flags = [(p, p.requires_grad) for layer in layers for p in layer.parameters()]
    model.eval()
    try:
        for layer in layers:
            layer.enable_adapters(adapter is not None)
            if adapter is not None:
                layer.set_adapter([str(adapter)])
        yield
    finally:
        for layer, names, disabled in before:
            layer.set_adapter(list(names))
            layer.enable_adapters(not disabled)
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        for module in training:
            module.training = True
