"""What quantization does to a weight: quantized and back, exactly as training held it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from halfbyte.errors import IntegrityError
from halfbyte.model import targets

Kind = Literal["nf4", "fp4", "int8"]
_FOUR_BIT: Final = ("nf4", "fp4")


@dataclass(frozen=True, slots=True)
class Quantized:
    """How a training held its base: bitsandbytes' type, and the type weights were loaded in.

    `dtype` is the compute type of the run: weights are cast to it before they are quantized, and
    it is the type that dequantized weights come out in.
    """

    kind: Kind
    double_quant: bool = True
    dtype: torch.dtype = torch.bfloat16

    def round_trip(self, weight: Tensor) -> Tensor:
        """The weight [out, in] as the quantized layer computes with it.

        4-bit layers dequantize into `dtype`; int8 layers scale integer products in float32.
        """
        given = weight.to(self.dtype).contiguous()
        if self.kind in _FOUR_BIT:
            return _four_bit(given, self.kind, self.double_quant)
        return _eight_bit(given)


def _four_bit(weight: Tensor, kind: str, double_quant: bool) -> Tensor:
    import bitsandbytes.functional as bnb

    packed, state = bnb.quantize_4bit(weight, compress_statistics=double_quant, quant_type=kind)
    return bnb.dequantize_4bit(packed, state)


def _eight_bit(weight: Tensor) -> Tensor:
    """Row by row, as LLM.int8 holds weights (its layer quantizes from float16)."""
    import bitsandbytes.functional as bnb

    rows, scales, _ = bnb.int8_vectorwise_quant(weight.to(torch.float16))
    return bnb.int8_vectorwise_dequant(rows, scales)


@dataclass(frozen=True, slots=True)
class Linear:
    """A linear layer of a model: the name of its weight, and whether that is stored [in, out]."""

    weight: str
    transposed: bool


def linear_layers(folder: Path) -> dict[str, Linear]:
    """Module name → its linear layer, for every one but the head, by the folder's config.

    These are the layers that quantization replaces; the model is built without memory.

    Raises:
        IntegrityError: the config is of no causal language model that transformers knows.
    """
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except (ValueError, KeyError, OSError) as error:
        raise IntegrityError(f"{folder}/config.json: cannot be used: {error}") from None
    return {
        name: Linear(f"{name}.weight", isinstance(module, Conv1D))
        for name, module in targets.linear_layers(model).items()
    }


def oriented(weight: Tensor, transposed: bool) -> Tensor:
    """Between the stored orientation and [out, in]; its own inverse."""
    return weight.T if transposed else weight
