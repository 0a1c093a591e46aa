"""Which parts of the fast path a model takes, and why it does not take the others."""

from __future__ import annotations

import inspect
from typing import Any, Literal, NamedTuple

from peft.tuners.lora import LoraLayer
from torch import nn

from halfbyte.model.fast import (
    alloc,
    attention,
    blocks,
    flex,
    fused,
    linear,
    narrow,
    residual,
    selfattn,
    weights,
)

__all__ = [
    "Part",
    "Route",
    "causal_model",
    "head_fault",
    "install",
    "packing_fault",
    "route_of",
    "status",
]

# How rows of one batch are kept apart: by the layout of their segments, by FlexAttention's block
# mask, by a mask [R, 1, L, L], or only by standing in rows of their own.
Route = Literal["segments", "flex", "mask", "rows"]

# Architectures whose head was read: the plain product, or one scaled or capped by the values of the
# config that `loss.TokenLoss` knows.
_PLAIN_HEADS = frozenset(
    {"llama", "mistral", "mixtral", "ministral", "ministral3", "qwen2", "qwen2_moe", "qwen3"}
    | {"qwen3_moe", "gemma", "gemma2", "gemma3_text", "phi", "phi3", "phimoe", "smollm3", "gpt2"}
    | {"gpt_neox", "gpt_bigcode", "gpt_oss", "olmo", "olmo2", "olmo3", "olmoe", "flex_olmo"}
    | {"cohere", "cohere2", "granite", "granitemoe", "granitemoeshared", "stablelm", "starcoder2"}
    | {"apertus", "arcee", "bloom", "cwm", "diffllama", "doge", "ernie4_5", "ernie4_5_moe"}
    | {"exaone4", "glm", "glm4", "helium", "hunyuan_v1_dense", "hunyuan_v1_moe", "jais2"}
    | {"minimax", "minimax_m2", "nanochat", "nemotron", "opt", "persimmon", "seed_oss"}
)
# Their layers keep from attention what they are called with, though they say otherwise.
_DEAF = frozenset({"nemotron"})
_KNOWN_LAYERS = frozenset({"full_attention", "sliding_attention"})


class Part(NamedTuple):
    """One part of the fast path: its name, whether this model takes it, and why (not)."""

    name: str
    active: bool
    reason: str


def causal_model(model: nn.Module) -> Any:
    """The transformers model itself, adapters inside it."""
    get = getattr(model, "get_base_model", None)
    return model if get is None else get()


def install(model: nn.Module) -> Route:
    """Set a model up for the fast path as far as it goes, and say how rows are kept apart.

    Idempotent. Exchanges norms and MLPs for equal ones that keep less (fused.py), chooses the
    attention implementation and keeps bitsandbytes from repacking weights. Of small quantized
    layers it makes the constants whole and lays the weights of one decoder layer side by side.
    """
    causal = causal_model(model)
    weights.keep_as_quantized(causal)
    weights.unfold(causal)
    blocks.join(causal)
    fused.replace(causal)
    residual.replace(causal)
    route, _ = route_of(causal)
    if route in ("segments", "flex"):
        attention.register()
        causal.set_attn_implementation(attention.NAME)
        selfattn.replace(causal)
    elif route == "mask" and getattr(_config(causal), "attn_logit_softcapping", None):
        causal.set_attn_implementation("eager")  # the others would leave the cap out
    return route


def route_of(causal: Any, device: str | None = None) -> tuple[Route, str]:
    """How rows of one batch are kept apart in this model, and the reason; `device`: the type of
    another device than the one it is on."""
    fault = packing_fault(causal)
    if fault is not None:
        return "rows", fault
    config = _config(causal)
    rates = {name: getattr(config, name, 0.0) for name in ("attention_dropout", "attn_pdrop")}
    for name, rate in rates.items():
        if rate:
            return "mask", f"{name} is {rate}"
    if getattr(config, "attn_logit_softcapping", None):
        return "mask", "attention scores are capped"
    if any(hasattr(module, "sinks") for module in causal.modules()):
        return "mask", "attention has sinks"
    if config.model_type in _DEAF:
        return "mask", f"layers of {config.model_type} pass no layout on"
    device = device or causal.device.type
    return _on_card(causal, device) if device != "cpu" else ("segments", "batched products")


def _on_card(causal: Any, device: str) -> tuple[Route, str]:
    config = _config(causal)
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    fault = flex.fault(device, narrow.working_dtype(causal), int(width))
    if fault is None:
        return "flex", "FlexAttention, tried against a masked softmax on this card"
    return "mask", f"a mask goes to torch's kernels: {fault}"


def head_fault(causal: Any) -> str | None:
    """Why all scores of a micro-batch are computed at once; None where they come in chunks."""
    head, kind = causal.get_output_embeddings(), _config(causal).model_type
    if type(head) not in (nn.Linear, narrow.NarrowLinear):
        return f"the head is a {type(head).__name__}"
    return None if kind in _PLAIN_HEADS else f"what {kind} does to its scores was not read"


def packing_fault(causal: Any) -> str | None:
    """Why several rows may not share one sequence in this model; None where they may."""
    config = _config(causal)
    if getattr(causal, "_is_stateful", False):
        return "a recurrent state would run from one row into the next"
    unknown = set(getattr(config, "layer_types", None) or ()) - _KNOWN_LAYERS
    if unknown:
        return f"layers of type {', '.join(sorted(unknown))} would mix rows"
    if not getattr(causal, "_supports_attention_backend", False):
        return "its attention does not go through transformers' registry"
    if "position_ids" not in inspect.signature(causal.base_model.forward).parameters:
        return "its positions cannot be given"
    return None


def status(model: nn.Module) -> list[Part]:
    """What is active for this model: for `halfbyte doctor` and the training summary."""
    causal = causal_model(model)
    fault = packing_fault(causal)
    route, reason = route_of(causal)
    kept = [m for m in causal.modules() if isinstance(m, fused.RmsNorm | fused.GatedMlp)]
    whole = head_fault(causal)
    return [
        _lora_part(causal),
        Part("packing", fault is None, fault or "rows share a sequence, positions restart"),
        Part("shared prefixes", fault is None, fault or "each computed once"),
        Part("segment attention", route in ("segments", "flex"), reason),
        Part("vocabulary in chunks", whole is None, whole or "only trained tokens"),
        Part(
            "lean norms and MLPs",
            bool(kept),
            f"{len(kept)} modules" if kept else "none of a form known here",
        ),
        _allocator_part(causal.device.type),
    ]


def _allocator_part(device: str) -> Part:
    said = alloc.state()
    if said != "on":
        return Part("allocator", False, said.removeprefix("off: "))
    held = "freed memory is kept for the next step"
    if device == "cpu" and not alloc.finds_again():
        held += f", with holes: start with {alloc.SETTING}"
    return Part("allocator", True, held if device == "cpu" else f"{held}, on the CPU's side")


def _lora_part(causal: Any) -> Part:
    layers = [module for module in causal.modules() if isinstance(module, LoraLayer)]
    if not layers:
        return Part("LoRA in one function", False, "no adapter")
    ours = [module for module in layers if isinstance(module, linear.Fast)]
    reasons = {weights.fault(m.get_base_layer(), narrow.working_dtype(causal)) for m in ours} - {
        None
    }
    if len(ours) < len(layers):
        reasons.add(f"{len(layers) - len(ours)} layers are PEFT's own")
    if any(one.lora_variant for one in layers):
        reasons.add("layers with lora.dora are computed by PEFT")
    if reasons:
        return Part("LoRA in one function", False, "; ".join(sorted(map(str, reasons))))
    return Part("LoRA in one function", True, f"{len(ours)} layers")


def _config(causal: Any) -> Any:
    return causal.config.get_text_config()
