"""A model's shape: what its arithmetic needs of it, from its config alone, without a weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from halfbyte.errors import IntegrityError
from halfbyte.model.fast import fused
from halfbyte.model.fast.checkpoint import layers
from halfbyte.model.fast.parts import Route, head_fault, packing_fault, route_of
from halfbyte.model.sizes import Sizes
from halfbyte.model.targets import Targets, ends_with, linear_layers, target_names

__all__ = ["Linear", "Shape", "catalogue_config", "shape_of"]


@dataclass(frozen=True, slots=True)
class Linear:
    """A linear layer: its full name, inputs, outputs, and whether it gets an adapter."""

    name: str
    inputs: int
    outputs: int
    adapted: bool = False

    @property
    def weights(self) -> int:
        """Its weights, without the bias."""
        return self.inputs * self.outputs


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a causal language model.

    `linear`: every linear layer but the head. `others`: weights elsewhere (embeddings, norms,
    biases, an untied head). `inner`: width of the MLP. `heads` of `head_width` share `groups` keys
    and values. `blocks`: layers that can be checkpointed. `lean`: norms and MLPs are exchanged for
    ours, which keep less. `route`: how rows of a batch are kept apart (`fast.parts.Route`);
    `mixes`: why rows may not share a sequence; None where they may. `chunked`: the vocabulary's
    scores are computed in chunks. `idle`: layers below the lowest adapter, which keep nothing.
    `halves`: its files hold 16-bit weights, by its config.
    """

    kind: str
    layers: int
    width: int
    inner: int
    heads: int
    groups: int
    head_width: int
    vocabulary: int
    tied: bool
    linear: tuple[Linear, ...]
    others: int
    blocks: int
    lean: bool
    route: Route
    mixes: str | None = None
    chunked: bool = True
    idle: int = 0
    halves: bool = False

    @property
    def linear_weights(self) -> int:
        """Weights in linear layers: what quantization covers."""
        return sum(one.weights for one in self.linear)

    @property
    def parameters(self) -> int:
        """All weights."""
        return self.linear_weights + self.others

    @property
    def ends(self) -> int:
        """Weights of the embeddings, and of a head of its own."""
        return self.vocabulary * self.width * (1 if self.tied else 2)

    @property
    def widest(self) -> int:
        """Weights of the largest linear layer."""
        return max((one.weights for one in self.linear), default=0)

    def adapter(self, rank: int) -> int:
        """Trained weights of an adapter of this rank on the adapted layers."""
        return rank * sum(one.inputs + one.outputs for one in self.linear if one.adapted)


def shape_of(
    config: PretrainedConfig, targets: Targets | None = None, device: str = "cpu"
) -> Shape:
    """The shape a config describes; `targets` are the layers that get an adapter (None: none),
    `device` the type of the one it is trained on.

    The model is built without memory for its weights, so that every architecture is counted by
    its own code.

    Raises:
        IntegrityError: the config describes no model that transformers can build.
        InputError: a target names no linear layer.
    """
    text = config.get_text_config()
    try:
        with torch.device("meta"):
            model: Any = AutoModelForCausalLM.from_config(config)
        model.tie_weights()
    except (ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise IntegrityError(f"config.json describes no causal model: {error}") from None
    chosen = [] if targets is None else target_names(model, targets)
    named: dict[str, Any] = dict(linear_layers(model))
    found = {name: tuple(layer.weight.shape) for name, layer in named.items()}
    turned = model.config.model_type == "gpt2"  # Conv1D holds its weight as [in, out]
    linear = tuple(
        Linear(name, *((a, b) if turned else (b, a)), ends_with(name, chosen))
        for name, (a, b) in found.items()
    )
    heads = int(text.num_attention_heads)
    parameters = sum(one.numel() for one in model.parameters())
    route, _ = route_of(model, device)
    mixes, chunked = packing_fault(model), head_fault(model) is None
    blocks = len(layers(model))
    idle = _idle(layers(model), {named[one.name] for one in linear if one.adapted})
    counts = fused.replace(model)
    return Shape(
        kind=str(text.model_type),
        layers=int(text.num_hidden_layers),
        width=int(text.hidden_size),
        inner=_inner(linear, int(text.hidden_size)),
        heads=heads,
        groups=int(getattr(text, "num_key_value_heads", None) or heads),
        head_width=int(getattr(text, "head_dim", None) or text.hidden_size // heads),
        vocabulary=int(text.vocab_size),
        tied=bool(text.tie_word_embeddings),
        linear=linear,
        others=parameters - sum(one.weights for one in linear),
        blocks=blocks,
        lean=counts["norms"] > 0 and counts["mlps"] > 0,
        route=route,
        mixes=mixes,
        chunked=chunked,
        idle=idle,
        halves=getattr(config, "dtype", None) in (torch.bfloat16, torch.float16),
    )


def catalogue_config(sizes: Sizes) -> PretrainedConfig:
    """The transformers config of a base of the catalogue that is not on this machine."""
    table = sizes.config()
    return AutoConfig.for_model(table.pop("model_type"), dtype="bfloat16", **table)


def _idle(blocks: list[Any], adapted: set[Any]) -> int:
    """How many of the first layers have no adapter, where others have one."""
    with_one = (place for place, block in enumerate(blocks) if adapted & set(block.modules()))
    return next(with_one, 0)


def _inner(linear: tuple[Linear, ...], width: int) -> int:
    """The MLP's width: the widest output of one of its layers, whatever the config calls it."""
    return max((one.outputs for one in linear if "attn" not in one.name), default=4 * width)
