"""Which floating type matrix products use on a device, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import torch

from halfbyte.errors import InputError

Setting = Literal["auto", "bf16", "fp16", "fp32"]

_DTYPES: Final[dict[str, torch.dtype]] = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
}
_AMPERE: Final = (8, 0)  # the first NVIDIA generation with bf16 matrix units


@dataclass(frozen=True, slots=True)
class Compute:
    """The chosen type, why, and whether that differs from what was asked for."""

    dtype: torch.dtype
    reason: str
    replaced: bool = False

    @property
    def name(self) -> str:
        """Its name in the settings: bf16, fp16 or fp32."""
        return next(name for name, dtype in _DTYPES.items() if dtype == self.dtype)


def choose_device(wanted: str = "auto") -> torch.device:
    """The device: `auto` is CUDA where there is one, else the CPU.

    Raises:
        InputError: CUDA was asked for and is not there.
    """
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(wanted)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(
            f"device {wanted}: no CUDA device is visible to torch",
            "`halfbyte doctor` shows what is.",
        )
    return device


def choose(setting: Setting, device: torch.device | str) -> Compute:
    """The type of matrix products for this setting on this device.

    A CPU emulates fp16, and bf16 where it lacks the instructions: `auto` takes fp32 there
    (measured on AVX2: bf16 16 GFLOP/s, fp32 135). fp16 on a CPU is replaced by fp32, so that a
    recipe written for a GPU without bf16 (T4) runs unchanged; bf16 is kept when asked for, as it
    gives the numbers of a GPU that has it.
    """
    device = torch.device(device)
    if device.type == "cuda":
        return _on_cuda(setting, device)
    if setting == "fp16":
        return Compute(torch.float32, "a CPU only emulates fp16: computing in fp32", replaced=True)
    if setting != "auto":
        slow = " (emulated here: slow)" if setting == "bf16" and not has_cpu_bf16() else ""
        return Compute(_DTYPES[setting], f"asked for{slow}")
    if has_cpu_bf16():
        return Compute(torch.bfloat16, "this CPU has bf16 instructions")
    return Compute(torch.float32, "this CPU has no bf16 instructions")


def whole_precision(setting: Setting) -> Compute:
    """The type of full training's products: that of the weights. AdamW's steps are smaller than
    bf16's spacing, so weights that it trains are float32.
    """
    reason = "full training computes in the type of its weights"
    return Compute(torch.float32, reason, replaced=setting not in ("auto", "fp32"))


def _on_cuda(setting: Setting, device: torch.device) -> Compute:
    capability = torch.cuda.get_device_capability(device)
    card = torch.cuda.get_device_name(device)
    able = capability >= _AMPERE
    if setting == "auto":
        if able:
            return Compute(torch.bfloat16, f"{card} has bf16")
        return Compute(torch.float16, f"{card} has no bf16")
    if setting == "bf16" and not able:
        return Compute(torch.float16, f"{card} has no bf16 units: computing in fp16", replaced=True)
    return Compute(_DTYPES[setting], "asked for")


def has_cpu_bf16() -> bool:
    """Whether this CPU multiplies bf16 matrices in hardware (AVX512-BF16, AMX or ARM's)."""
    known = torch.cpu.get_capabilities()
    if known.get("architecture") == "x86_64":
        # oneDNN also claims bf16 for plain AVX-512, where it is emulated
        return bool(known.get("avx512_bf16") or known.get("amx_bf16"))
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())  # noqa: SLF001  no public name
