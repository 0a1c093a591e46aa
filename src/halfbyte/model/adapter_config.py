"""adapter_config.json under our own schema: what PEFT writes, and nothing that changes the base."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final, Literal

from peft import LoraConfig, TaskType
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from halfbyte.errors import IntegrityError
from halfbyte.model.untrusted import read_json

CONFIG_FILE: Final = "adapter_config.json"
WEIGHTS_FILE: Final = "adapter_model.safetensors"
_MAX_CONFIG: Final = 1 << 20
_SHOWN: Final = 3

# A module's name, or the end of one. PEFT also takes regular expressions; from a file they are
# refused, as matching one can take forever.
Name = Annotated[str, Field(pattern=r"^[A-Za-z_0-9][A-Za-z_0-9.]{0,199}$")]


def _off(value: Any) -> None:
    if value:
        raise ValueError("halfbyte does not support this part of PEFT")


# A part of PEFT that must be absent or switched off.
Off = Annotated[None, BeforeValidator(_off)]
# Written by PEFT, without meaning for a plain LoRA adapter.
Ignored = Any


class AdapterConfig(BaseModel):
    """What an adapter_config.json may say (fields of PEFT 0.4 to 0.21)."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    peft_type: Literal["LORA"]
    task_type: Literal["CAUSAL_LM"] | None = None
    base_model_name_or_path: Annotated[str, Field(max_length=4096)] | None = None
    revision: Annotated[str, Field(max_length=200)] | None = None
    r: int = Field(8, ge=1, le=65_536)
    lora_alpha: float = 8
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: tuple[Name, ...] | Literal["all-linear"]
    exclude_modules: tuple[Name, ...] | None = None
    layers_to_transform: int | tuple[int, ...] | None = None
    layers_pattern: Name | tuple[Name, ...] | None = None
    rank_pattern: dict[Name, Annotated[int, Field(ge=1, le=65_536)]] = Field(default_factory=dict)
    alpha_pattern: dict[Name, float] = Field(default_factory=dict)
    use_rslora: bool = False
    use_dora: bool = False
    fan_in_fan_out: bool = False
    # the others change the base's weights, which an adapter file does not carry
    init_lora_weights: bool | Literal["gaussian", "eva", "orthogonal"] = True
    bias: Literal["none"] = "none"

    inference_mode: Ignored = None
    peft_version: Ignored = None
    auto_mapping: Ignored = None
    megatron_core: Ignored = None
    qalora_group_size: Ignored = None
    eva_config: Ignored = None
    ensure_weight_tying: Ignored = None
    runtime_config: Ignored = None

    alora_invocation_tokens: Off = None
    arrow_config: Off = None
    corda_config: Off = None
    enable_lora: Off = None
    kasa_config: Off = None
    layer_replication: Off = None
    loftq_config: Off = None
    lora_bias: Off = None
    lora_ga_config: Off = None
    megatron_config: Off = None
    merge_weights: Off = None
    modules_to_save: Off = None
    monteclora_config: Off = None
    target_parameters: Off = None
    trainable_token_indices: Off = None
    use_bdlora: Off = None
    use_qalora: Off = None
    velora_config: Off = None

    def to_peft(self) -> LoraConfig:
        """PEFT's config of the same adapter, for inference; its weights are set afterwards."""
        return LoraConfig(
            task_type=TaskType.CAUSAL_LM,
            inference_mode=True,
            base_model_name_or_path=self.base_model_name_or_path,
            revision=self.revision,
            r=self.r,
            lora_alpha=self.lora_alpha,  # type: ignore[arg-type]  # PEFT only divides by it
            lora_dropout=self.lora_dropout,
            target_modules=_plain(self.target_modules),
            exclude_modules=_plain(self.exclude_modules),
            layers_to_transform=_plain(self.layers_to_transform),
            layers_pattern=_plain(self.layers_pattern),
            rank_pattern=dict(self.rank_pattern),
            alpha_pattern=dict(self.alpha_pattern),
            use_rslora=self.use_rslora,
            use_dora=self.use_dora,
            fan_in_fan_out=self.fan_in_fan_out,
            bias="none",
        )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def read_adapter_config(folder: Path) -> AdapterConfig:
    """The adapter's config, every key of it understood.

    Raises:
        IntegrityError: not there, not JSON, unknown keys, or parts of PEFT we do not support.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise IntegrityError(f"{folder}: has no {CONFIG_FILE}: not an adapter in PEFT's format")
    try:
        return AdapterConfig.model_validate(read_json(path, _MAX_CONFIG))
    except ValidationError as error:
        faults = [_explain(dict(fault)) for fault in error.errors(include_url=False)]
        more = f" (and {len(faults) - _SHOWN} more)" if len(faults) > _SHOWN else ""
        raise IntegrityError(f"{path}: cannot be used{more}:", faults[:_SHOWN]) from None


def _explain(fault: dict[str, Any]) -> str:
    name = ".".join(str(part) for part in fault["loc"][:2])[:200]
    if fault["type"] == "extra_forbidden":
        return f"{name}: unknown key"
    if fault["type"] == "missing":
        return f"{name}: missing"
    given = repr(fault["input"])[:100]
    return f"{name}: {str(fault['msg']).removeprefix('Value error, ')} (it says {given})"
