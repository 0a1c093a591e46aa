"""The loss of a batch: the one place where a model meets its targets.

Works for any causal model of transformers, whole, quantized or inside PEFT. Hidden states come from
the decoder; only the places that predict something go through the output head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from halfbyte.data.records import Batch
from halfbyte.model.fast import attention
from halfbyte.model.fast.head import Head, nll_sum, nll_values
from halfbyte.model.fast.layout import additive_mask, allowed, blocks, longest

__all__ = ["TokenLoss"]


class TokenLoss(nn.Module):
    """sum(weight * nll) of a batch under `model`, a causal model of transformers or PEFT's wrap.

    It is a module so that DDP or FSDP can wrap it whole: its parameters are the model's.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.fast = True
        attention.register()
        self._causal.set_attn_implementation(attention.NAME)

    def forward(self, batch: Batch) -> torch.Tensor:
        """The sum of the batch's token losses, a float32 scalar, not divided by anything."""
        hidden = self._hidden(batch)
        return nll_sum(self._head(), hidden, batch.target, batch.weight)

    @torch.no_grad()
    def token_nll(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """nll in nats (float32 [N]) of each target and whether it was the likeliest (bool [N])."""
        return nll_values(self._head(), self._hidden(batch), batch.target)

    @property
    def _causal(self) -> Any:
        """The transformers model itself, adapters inside it."""
        get = getattr(self.model, "get_base_model", None)
        return self.model if get is None else get()

    def _hidden(self, batch: Batch) -> torch.Tensor:
        """Hidden states [N, H] of the places that predict."""
        decoder = self._causal.base_model
        layout = None
        if self.fast:
            layout = attention.Layout(blocks(batch, self._causal.dtype))
            extra = {"layout": layout, "attention_mask": batch.input_ids.new_zeros(1,1,1,1)}
        else:
            extra = {"attention_mask": self._mask(batch)}
        output = decoder(
            input_ids=batch.input_ids,
            position_ids=batch.position_ids,
            use_cache=False,
            **extra,
        )
        assert layout is None or layout.layers
        return output.last_hidden_state.flatten(0, 1).index_select(0, batch.predict)

    def _mask(self, batch: Batch) -> torch.Tensor | dict[str, torch.Tensor]:
        """Who sees whom, as the layers take it: one mask, or one for each kind of layer."""
        config = self._causal.config.get_text_config()
        window = getattr(config, "sliding_window", None)
        kinds = set(getattr(config, "layer_types", None) or ())
        dtype = self._causal.dtype
        full = additive_mask(allowed(batch), dtype)
        if window is None or longest(batch) <= window:
            return full
        slid = additive_mask(allowed(batch, window), dtype)
        both = {"full_attention": full, "sliding_attention": slid}
        return both if len(kinds) > 1 else both.get(next(iter(kinds), ""), slid)

    def _head(self) -> Head:
        layer = self._causal.get_output_embeddings()
        config = self._causal.config.get_text_config()
        scale = getattr(config, "logit_scale", None)
        if scale is None:
            scale = 1 / getattr(config, "logits_scaling", 1.0)
        cap = getattr(config, "final_logit_softcapping", None)
        return Head(layer.weight, layer.bias, scale, cap)
