"""The loss of a batch: the one place where a model meets its targets.

Works for any causal model of transformers, whole, quantized or inside PEFT. Hidden states come from
the decoder; only the places that predict something go through the output head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from halfbyte.data.records import Batch
from halfbyte.model.fast import attention, buffers, flex, linear, parts
from halfbyte.model.fast.head import Head, nll_sum, nll_values
from halfbyte.model.fast.layout import (
    Bundles,
    additive_mask,
    allowed,
    bundles,
    grain,
    longest,
    rounded,
)
from halfbyte.model.fast.narrow import working_dtype

__all__ = ["TokenLoss"]


class TokenLoss(nn.Module):
    """sum(weight * nll) of a batch under `model`, a causal model of transformers or PEFT's wrap.

    It is a module so that DDP or FSDP can wrap it whole: its parameters are the model's. Making it
    sets the model up for the fast path (`parts.install`).
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.route = parts.install(model)
        self._pool = buffers.Pool()
        self._fast = [one for one in model.modules() if isinstance(one, linear.Fast)]

    def forward(self, batch: Batch) -> torch.Tensor:
        """The sum of the batch's token losses, a float32 scalar, not divided by anything.

        Raises:
            ValueError: the batch has rows in one sequence, which this model would mix.
        """
        head, batch = self._head(), self._rounded(batch)
        if head is not None:
            return nll_sum(head, self._hidden(batch), batch.target, batch.weight)
        nll = cross_entropy(self._logits(batch), batch.target, reduction="none")
        return (nll * batch.weight).sum()

    @torch.no_grad()
    def token_nll(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """nll in nats (float32 [N]) of each target and whether it was the likeliest (bool [N])."""
        count = len(batch.target)
        head, batch = self._head(), self._rounded(batch)
        if head is not None:
            nll, hits = nll_values(head, self._hidden(batch), batch.target)
            return nll[:count], hits[:count]
        logits = self._logits(batch)
        nll = cross_entropy(logits, batch.target, reduction="none")
        return nll[:count], (logits.argmax(dim=1) == batch.target)[:count]

    def _rounded(self, batch: Batch) -> Batch:
        """Sizes of which there are few, where every size has its price."""
        if self.route != "segments":
            return batch
        working = working_dtype(parts.causal_model(self.model))
        return rounded(batch, grain(working, batch.input_ids.device))

    def _hidden(self, batch: Batch) -> torch.Tensor:
        """Hidden states [N, H] of the places that predict."""
        causal = parts.causal_model(self.model)
        arguments = self._arguments(causal, batch)
        kind = (working_dtype(causal), batch.input_ids.device.type)
        with buffers.use(self._pool), linear.prepared(self._fast, *kind):
            states = causal.base_model(**arguments).last_hidden_state
        _require_seen(arguments.get("layout"))
        return states.flatten(0, 1).index_select(0, batch.predict)

    def _logits(self, batch: Batch) -> torch.Tensor:
        """Float32 logits [N, V] through the model's own forward pass."""
        causal = parts.causal_model(self.model)
        length = batch.input_ids.shape[1]
        columns, inverse = torch.unique(batch.predict % length, return_inverse=True)
        arguments = self._arguments(causal, batch)
        logits = causal(**arguments, logits_to_keep=columns).logits
        _require_seen(arguments.get("layout"))
        return logits[batch.predict // length, inverse].float()

    def _arguments(self, causal: Any, batch: Batch) -> dict[str, Any]:
        """What the decoder is called with, rows kept apart as this model allows."""
        common = {"input_ids": batch.input_ids, "use_cache": False}
        if self.route == "rows":
            return {**common, "attention_mask": _row_mask(batch)}
        common["position_ids"] = batch.position_ids
        working = working_dtype(causal)
        window = getattr(causal.config.get_text_config(), "sliding_window", None)
        windowed = window is not None and longest(batch) > window
        if self.route in ("segments", "flex") and not windowed:
            # a mask of four dimensions is taken as it is: none is built, and ours needs none
            nothing = torch.zeros(1, 1, 1, 1, dtype=working, device=batch.input_ids.device)
            if self.route == "flex":
                layout = attention.Layout(Bundles([], 0), flex.block_mask(batch))
            else:
                layout = attention.Layout(bundles(batch, working))
            return {**common, "attention_mask": nothing, "layout": layout}
        mask = additive_mask(allowed(batch), working)
        if not windowed:
            return {**common, "attention_mask": mask}
        narrow = additive_mask(allowed(batch, window), working)
        kinds = getattr(causal.config.get_text_config(), "layer_types", None)
        both = {"full_attention": mask, "sliding_attention": narrow}
        return {**common, "attention_mask": narrow if kinds is None else both}

    def _head(self) -> Head | None:
        """The output projection as plain tensors; None where it may be more than that, and the
        model is asked for its scores through its own forward pass.
        """
        causal = parts.causal_model(self.model)
        if parts.head_fault(causal) is not None:
            return None
        layer, config = causal.get_output_embeddings(), causal.config.get_text_config()
        scale = getattr(config, "logit_scale", None)
        if scale is None:
            scale = 1 / getattr(config, "logits_scaling", 1.0)
        cap = getattr(config, "final_logit_softcapping", None)
        return Head(layer.weight, layer.bias, scale, cap)


def _require_seen(layout: attention.Layout | None) -> None:
    if layout is not None and not layout.layers:
        raise RuntimeError("the model did not pass the layout on: rows would have been mixed")


def _row_mask(batch: Batch) -> torch.Tensor:
    """int64 [R, L]: 1 where a row has a token, rows starting at column 0."""
    if any(segment.start for segment in batch.segments):
        raise ValueError("this model mixes rows of one sequence: train with train.pack=false")
    stops = torch.zeros(len(batch.input_ids), 1, dtype=torch.int64)
    for segment in batch.segments:
        stops[segment.row] = segment.stop
    places = torch.arange(batch.input_ids.shape[1])
    return (places < stops).to(batch.input_ids)
