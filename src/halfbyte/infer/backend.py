"""What the engine needs of a model: a forward pass over pieces of rows that share a cache."""

from __future__ import annotations

from collections.abc import Collection, Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from halfbyte.errors import InputError
from halfbyte.infer.cache import KVCache


def inner_model(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """The transformers model, out of PEFT's wrapper where there is one."""
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    assert isinstance(inner, PreTrainedModel)
    return inner


def adapter_names(model: PreTrainedModel | PeftModel) -> tuple[str, ...]:
    """The adapters a model holds now; PEFT tells them to the model it wraps, too."""
    return tuple(getattr(inner_model(model), "peft_config", None) or ())


def check_known(name: str, known: Collection[str]) -> None:
    """Raise InputError when the model holds no adapter of this name."""
    if name not in known:
        raise InputError(f"adapter {name!r}: the model holds {', '.join(known) or 'none'}")


def check_new(name: str, *known: Collection[str]) -> None:
    """Raise InputError when an adapter of this name is there already."""
    if any(name in names for names in known):
        raise InputError(f"an adapter called {name!r} is loaded already")


@dataclass(frozen=True, slots=True)
class Span:
    """Tokens `ids` of one row, at places `start`… of cache slot `slot`, whose earlier places are
    computed already. `want`: logits are wanted for so many of its last tokens. `adapter`: a
    handle from `Backend.adapter`, None for the base.
    """

    slot: int
    start: int
    ids: tuple[int, ...]
    want: int = 1
    adapter: Hashable | None = None

    @property
    def stop(self) -> int:
        """The row's length once this span is computed."""
        return self.start + len(self.ids)


class Backend(Protocol):
    """A loaded model behind a cache of slots."""

    cache: KVCache
    positions: int  # longest row the model has positions for, in tokens
    vocabulary: int  # width of the logits
    description: str  # which path runs, and why; for `doctor` and logs

    def token_bytes(self) -> int:
        """Bytes of cache a token takes, over all layers."""

    def adapter(self, name: str) -> Hashable:
        """A handle of the adapter as it is now.

        Raises:
            InputError: when the model holds no adapter of this name, or one it cannot run.
        """

    def load(self, name: str, folder: Path) -> None:
        """Take the adapter of a folder under a name, in memory of our own.

        Raises:
            IntegrityError: it does not fit the model, or is damaged.
            InputError: the name is taken.
        """

    def unload(self, name: str) -> Hashable | None:
        """Forget what was read under this name; one that the model itself holds is read anew when
        it is next asked for. Returns what `adapter(name)` gave; None if it was not asked for."""

    def forward(self, spans: list[Span]) -> torch.Tensor:
        """Compute the spans, of which no two share a slot, and fill their places in the cache.

        Returns:
            Logits [sum of `want`, vocabulary], in the order of the spans.
        """
