"""The only sampler: from a row of logits to a token."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from halfbyte.infer.records import Constraint, Sampling, TokenLogprob


@dataclass(slots=True)
class Chooser:
    """One answer's sampling state: its settings, its own random numbers and its tokens so far."""

    sampling: Sampling
    context: list[int]
    constraint: Constraint | None = None
    random: torch.Generator | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        if not self.sampling.greedy:
            seed = self.sampling.seed
            # its own generator, so that no other row's draws shift this one's
            self.random = torch.Generator().manual_seed(
                secrets.randbits(63) if seed is None else seed
            )

    @property
    def plain(self) -> bool:
        """Whether the token is just the largest logit."""
        s = self.sampling
        return s.greedy and s.repetition_penalty == 1 and self.constraint is None


def choose(logits: torch.Tensor, rows: Sequence[Chooser]) -> list[int]:
    """The next token of each row; `logits` is [rows, vocabulary], in any float type."""
    tokens = logits.argmax(dim=-1).tolist()
    for place, row in enumerate(rows):
        if not row.plain:
            tokens[place] = _choose_one(logits[place].float(), row)
    return tokens


def _choose_one(logits: torch.Tensor, row: Chooser) -> int:
    sampling = row.sampling
    if sampling.repetition_penalty != 1:
        logits = _penalize(logits, row.context, sampling.repetition_penalty)
    if row.constraint is not None:
        logits = logits.masked_fill(~row.constraint.allowed().to(logits.device), -torch.inf)
    if sampling.greedy:
        return int(logits.argmax())
    ids, probabilities = shares(logits, sampling)
    assert row.random is not None
    draw = float(torch.rand((), generator=row.random, dtype=torch.float64))
    # the inverse of the distribution function: one random number a token, whatever the filters
    steps = probabilities.double().cumsum(0)
    place = int(torch.searchsorted(steps, draw * float(steps[-1]), right=True))
    return int(ids[min(place, len(ids) - 1)])


def shares(logits: torch.Tensor, sampling: Sampling) -> tuple[torch.Tensor, torch.Tensor]:
    """The tokens that may be drawn, likeliest first, and their probabilities (sum 1).

    `logits`: float32 [vocabulary]. At least one token is left, whatever the settings.
    """
    values, ids = _ranked(logits / sampling.temperature, sampling)
    probabilities = values.softmax(0)
    if sampling.top_p < 1:
        before = probabilities.cumsum(0) - probabilities
        keep = max(1, int((before < sampling.top_p).sum()))
        ids, probabilities = ids[:keep], probabilities[:keep] / probabilities[:keep].sum()
    if sampling.min_p > 0:
        keep = max(1, int((probabilities >= sampling.min_p * probabilities[0]).sum()))
        ids, probabilities = ids[:keep], probabilities[:keep] / probabilities[:keep].sum()
    return ids, probabilities


def _ranked(logits: torch.Tensor, sampling: Sampling) -> tuple[torch.Tensor, torch.Tensor]:
    if 0 < sampling.top_k < len(logits):
        return logits.topk(sampling.top_k)
    return logits.sort(descending=True, stable=True)


def _penalize(logits: torch.Tensor, context: Sequence[int], penalty: float) -> torch.Tensor:
    ids = torch.tensor(sorted(set(context)), device=logits.device)
    seen = logits[ids]
    return logits.index_copy(0, ids, torch.where(seen < 0, seen * penalty, seen / penalty))


def logprobs(
    logits: torch.Tensor, tokens: Sequence[int], tops: Sequence[int]
) -> list[TokenLogprob]:
    """Log probability of `tokens` [rows] under `logits` [rows, vocabulary], and the likeliest
    `tops[row]` tokens of each row.
    """
    table = logits.float().log_softmax(-1)
    out = []
    for row, token, top in zip(table, tokens, tops, strict=True):
        values, ids = row.topk(min(top, len(row)))
        pairs = tuple(zip(ids.tolist(), values.tolist(), strict=True))
        out.append(TokenLogprob(token, float(row[token]), pairs))
    return out
