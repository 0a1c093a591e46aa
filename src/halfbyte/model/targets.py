"""Which linear layers get an adapter, and the shortest names that select exactly those."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final, Literal

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from halfbyte.errors import InputError

Targets = Literal["all-linear", "attention"] | tuple[str, ...]
_ATTENTION: Final = ("attn", "attention")  # part of the block's name in every architecture we test


def linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Full name → layer of all linear layers (GPT-2's Conv1D too) but the head, in model order.

    Where adapters are attached, the name is that of the adapted layer and the layer is the frozen
    one inside it; the adapters' own factors do not count.
    """
    if isinstance(model, PeftModel):
        model = model.get_base_model()
    head = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    found: dict[str, nn.Module] = {}
    adapted: list[str] = []
    for name, module in model.named_modules():  # a module comes before what is inside it
        if any(name.startswith(outer) for outer in adapted[-1:]):
            continue
        if isinstance(module, BaseTunerLayer):
            adapted.append(f"{name}.")
            module = module.get_base_layer()  # noqa: PLW2901  the frozen layer stands for it
        if isinstance(module, nn.Linear | Conv1D) and module is not head:
            found[name] = module
    return found


def target_names(model: nn.Module, targets: Targets) -> list[str]:
    """The shortest names that select exactly the wanted layers, sorted.

    PEFT selects every module whose name ends with one of them. Short names (`q_proj`) keep
    adapter_config.json readable for other tools; GPT-2's attention needs `attn.c_proj`, because
    its MLP has a `c_proj` too.

    Raises:
        InputError: a listed name selects no linear layer.
    """
    linear = list(linear_layers(model))
    if targets == "all-linear":
        wanted = linear
    elif targets == "attention":
        wanted = [name for name in linear if _in_attention(name)]
    else:
        _require_each(targets, linear)
        wanted = [name for name in linear if ends_with(name, targets)]
    if not wanted:
        raise InputError(
            f"lora.targets: {targets} selects no layer of this model",
            f"Its linear layers are called {', '.join(_leaves(linear))}.",
        )
    # names of all modules: a suffix must not select an embedding or the head either
    others = {name for name, _ in model.named_modules()} - set(wanted)
    return sorted({_shortest(name, others) for name in wanted})


def ends_with(name: str, suffixes: Iterable[str]) -> bool:
    """Whether a module's name is one of these, or ends with one after a dot: PEFT's rule."""
    return any(name == suffix or name.endswith(f".{suffix}") for suffix in suffixes)


def _require_each(targets: Iterable[str], linear: list[str]) -> None:
    missing = [
        target for target in targets if not any(ends_with(name, (target,)) for name in linear)
    ]
    if missing:
        raise InputError(
            f"lora.targets: no linear layer is called {', '.join(missing)}",
            f"This model's are {', '.join(_leaves(linear))}.",
        )


def _leaves(names: Iterable[str]) -> list[str]:
    return sorted({name.rpartition(".")[2] for name in names})


def _in_attention(name: str) -> bool:
    return any(mark in part.lower() for part in name.split(".")[:-1] for mark in _ATTENTION)


def _suffixes(name: str) -> Iterator[str]:
    parts = name.split(".")
    for length in range(1, len(parts) + 1):
        yield ".".join(parts[-length:])


def _shortest(name: str, others: set[str]) -> str:
    for suffix in _suffixes(name):
        if not any(ends_with(other, (suffix,)) for other in others):
            return suffix
    return name
