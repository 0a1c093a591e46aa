"""The frozen records that travel between stages: Example → Encoded → Batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. An assistant turn of weight 0 is shown to the model but not trained."""

    role: Role
    content: str
    weight: int = 1


@dataclass(frozen=True, slots=True)
class Example:
    """One row as the user gave it: a conversation, or plain text.

    `messages` ends with the assistant's answer (the reference). `context` is kept apart from the
    instruction, for templates that have a place for it. `text` rows have no messages and are
    trained whole. `facts` are the key facts an answer should hold; `extra` is every other column.
    """

    messages: tuple[Message, ...] = ()
    context: str | None = None
    text: str | None = None
    facts: tuple[str, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def prompt(self) -> tuple[Message, ...]:
        """Everything before the last answer."""
        return self.messages[:-1]

    @property
    def reference(self) -> str:
        """The last answer: what a generated one is compared with."""
        return self.messages[-1].content if self.messages else (self.text or "")


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """One row as tokens.

    `ids`: int32 [n]. `trained`: bool [n], true where the token is a target (never the first).
    `prompt_length`: ids before the last answer; generation for this row starts from
    `ids[:prompt_length]` (0 for plain text).
    """

    ids: np.ndarray[Any, np.dtype[np.int32]]
    trained: np.ndarray[Any, np.dtype[np.bool_]]
    prompt_length: int = 0

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of tokens `start:stop` in sequence `row` of a batch, which attend to themselves
    causally and to every token of their ancestors (`parent`: index of a segment, -1 for none).

    A plain row is one segment without a parent; rows with a common beginning are children of it.
    """

    row: int
    start: int
    stop: int
    parent: int = -1


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """One micro-batch, ready for the model.

    Shapes: R sequences of L places; N targets.

    - `input_ids`, `position_ids`: int64 [R, L]. Positions restart with each example (a child
      segment goes on where its parent ended). Places of no segment are padding.
    - `segments`: in preorder, parents before children; they never overlap.
    - `predict`: int64 [N], flat places (row * L + column) whose hidden state predicts `target`.
      A place occurs more than once where the children of a shared prefix begin differently.
    - `target`: int64 [N]. `weight`: float32 [N], how many rows share this target (1 without
      sharing): the loss is sum(weight * nll) over the step, divided by the step's sum of weights.
    - `rows`: the data-set indices of its examples. `tokens`: their real tokens counted one by one.
    - `owned`: for each of `rows`, int64 [n], which of the N targets are its own.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    segments: tuple[Segment, ...]
    predict: torch.Tensor
    target: torch.Tensor
    weight: torch.Tensor
    rows: tuple[int, ...]
    tokens: int
    owned: tuple[torch.Tensor, ...] = ()

    def to(self, device: torch.device | str) -> Batch:
        """The same batch with its tensors on `device`."""
        return Batch(
            self.input_ids.to(device),
            self.position_ids.to(device),
            self.segments,
            self.predict.to(device),
            self.target.to(device),
            self.weight.to(device),
            self.rows,
            self.tokens,
            self.owned,
        )
