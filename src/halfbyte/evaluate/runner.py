"""Asking a loaded model: answers and likelihoods of rows, with the adapter on or off.

Base and tuned are the same weights: `adapter=None` computes with every adapter switched off. Rows
come as stored ids, the ones of the training: nothing is decoded and encoded again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import PeftModel
from torch import nn

from halfbyte.data.batches import MicroLimits, plan_step
from halfbyte.data.records import Encoded
from halfbyte.errors import InputError
from halfbyte.evaluate.records import Answer, Evaluation, Likelihood, Row
from halfbyte.evaluate.scores import (
    REGISTRY,
    Score,
    likelihood_columns,
    macro_f1_column,
    score_answers,
)
from halfbyte.infer import Engine, Request, Sampling
from halfbyte.model.loss import TokenLoss

Progress = Callable[[str, int, int], None]
# as training packs them: about 2,000 tokens keep the products at full speed on a CPU
LIMITS = MicroLimits(rows=64, tokens=2048, pack=True, share=True)


def silent(_what: str, _done: int, _total: int) -> None:
    """No progress."""


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """Who is judged: a loaded model under a name, and the adapter that answers (None: none)."""

    name: str
    model: nn.Module
    engine: Engine
    adapter: str | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What is asked: at most `answered` rows (spread evenly over all) are answered under `sampling`
    and scored with `scores`; with `likelihood`, every row's is computed."""

    sampling: Sampling
    answered: int = 100
    likelihood: bool = True
    scores: Mapping[str, Score] = field(default_factory=lambda: REGISTRY)
    limits: MicroLimits = LIMITS


def evaluate_model(
    subject: Subject,
    rows: Sequence[Row],
    encoded: Sequence[Encoded],
    plan: Plan,
    progress: Progress = silent,
) -> Evaluation:
    """Everything about one model on these rows.

    A row that is longer than the model's context has no likelihood, one whose prompt leaves no room
    for an answer is not answered; both models of a comparison leave out the same.

    Raises:
        InputError: there are no rows, or rows and their ids are not as many.
    """
    if not rows:
        raise InputError(
            "no held-out rows to evaluate", "Give some with --data FILE, or raise data.valid_size."
        )
    if len(rows) != len(encoded):
        raise InputError(f"{len(rows)} rows, but ids of {len(encoded)}")
    context = positions(subject.model)
    items: list[Likelihood | None] = [None] * len(rows)
    if plan.likelihood:
        items = likelihoods(subject, encoded, plan.limits, progress, context)
    chosen = answerable(rows, encoded, plan, context)
    answers: list[Answer | None] = [None] * len(rows)
    for place, answer in zip(chosen, ask(subject, encoded, chosen, plan, progress), strict=True):
        answers[place] = answer
    columns = {
        **likelihood_columns(items),
        **score_answers(rows, answers, plan.scores),
        **macro_f1_column(rows, answers),
    }
    return Evaluation(subject.name, tuple(rows), tuple(answers), columns, tuple(items))


def answerable(
    rows: Sequence[Row], encoded: Sequence[Encoded], plan: Plan, context: int
) -> list[int]:
    """The places of the rows to be answered: those with a prompt, a reference and room for an
    answer, thinned out evenly to `plan.answered`."""
    fit = [
        place
        for place, (row, one) in enumerate(zip(rows, encoded, strict=True))
        if row.references and 0 < one.prompt_length <= context - plan.sampling.max_new_tokens
    ]
    if len(fit) <= plan.answered:
        return fit
    return [fit[i * len(fit) // plan.answered] for i in range(plan.answered)]


def ask(
    subject: Subject,
    encoded: Sequence[Encoded],
    places: Sequence[int],
    plan: Plan,
    progress: Progress = silent,
) -> list[Answer]:
    """The model's answers to the prompts at these places, in their order."""
    requests = [
        Request(
            tuple(int(token) for token in encoded[place].ids[: encoded[place].prompt_length]),
            plan.sampling,
            subject.adapter,
        )
        for place in places
    ]
    if not requests:
        return []
    done = subject.engine.generate(
        requests, lambda count, total, _tokens: progress("answers", count, total)
    )
    return [Answer(one.text, one.finish == "stop", len(one.ids)) for one in done]


def likelihoods(
    subject: Subject,
    encoded: Sequence[Encoded],
    limits: MicroLimits = LIMITS,
    progress: Progress = silent,
    context: int | None = None,
) -> list[Likelihood | None]:
    """Every row's likelihood; None for rows without a trained token or beyond the context.

    The sums are float64 over float32 token losses, so that neither the order of rows nor how they
    are packed shows in the first five digits.
    """
    found: list[Likelihood | None] = [None] * len(encoded)
    usable = [
        (place, one)
        for place, one in enumerate(encoded)
        if one.trained.any() and (context is None or len(one) <= context)
    ]
    device = next(subject.model.parameters()).device
    loss = TokenLoss(subject.model)
    done = 0
    # rows that begin alike meet in one part: their beginning is computed once
    usable.sort(key=lambda item: item[1].ids.astype(">u4").tobytes())
    with adapter_state(subject.model, subject.adapter):
        for start in range(0, len(usable), limits.rows):
            part = usable[start : start + limits.rows]
            for batch in plan_step(part, limits):
                nll, correct = loss.token_nll(batch.to(device))
                values, hits = nll.double().cpu(), correct.cpu()
                for place, own in zip(batch.rows, batch.owned, strict=True):
                    total, right = float(values[own].sum()), int(hits[own].sum())
                    found[place] = Likelihood(total, len(own), right)
            done += len(part)
            progress("likelihood", done, len(usable))
    return found


@contextmanager
def adapter_state(model: nn.Module, adapter: str | None) -> Iterator[None]:
    """For the block: this adapter is active, or with None every adapter is off; gradients and
    dropout are off. Afterwards everything is as before.

    Raises:
        InputError: the model has no adapter of this name.
    """
    held = model.peft_config if isinstance(model, PeftModel) else {}
    if adapter is not None and adapter not in held:
        raise InputError(f"the model has no adapter {adapter}", f"It has: {', '.join(held) or '-'}")
    training = model.training
    # PEFT makes an adapter trainable whenever it is switched on
    trainable = {name: one.requires_grad for name, one in model.named_parameters()}
    model.eval()
    try:
        with torch.no_grad(), _switched(model, adapter):
            yield
    finally:
        model.train(training)
        for name, one in model.named_parameters():
            one.requires_grad_(trainable[name])


@contextmanager
def _switched(model: nn.Module, adapter: str | None) -> Iterator[None]:
    if not isinstance(model, PeftModel):
        yield
    elif adapter is None:
        with model.disable_adapter():
            yield
    elif model.active_adapter == adapter:
        yield
    else:
        before = model.active_adapter
        model.set_adapter(adapter)
        try:
            yield
        finally:
            model.set_adapter(before)


def positions(model: nn.Module) -> int:
    """How many tokens the model can see at once."""
    inner: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    config = inner.config.get_text_config()
    return int(getattr(config, "max_position_embeddings", None) or 2**31)
