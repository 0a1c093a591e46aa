"""Faults between settings: each is well-formed alone, but together they cannot work."""

from __future__ import annotations

from collections.abc import Iterator

from halfbyte.config.settings import Config


def cross_faults(config: Config) -> list[str]:
    """Every combination that cannot work, in words that say what to change."""
    return [*_method_faults(config), *_train_faults(config), *_data_faults(config)]


def _method_faults(config: Config) -> Iterator[str]:
    if config.method == "full" and config.lora.model_fields_set:
        given = ", ".join(f"lora.{name}" for name in sorted(config.lora.model_fields_set))
        if config.lora != type(config.lora)():
            yield f"{given}: method full has no adapter; use method lora or qlora"
    if config.lora.dora and config.lora.rslora:
        yield "lora.dora, lora.rslora: choose one of them"
    if isinstance(config.lora.targets, tuple) and not config.lora.targets:
        yield "lora.targets: an empty list would train nothing"
    if config.method == "full" and config.model.compute == "fp16":
        yield "model.compute: fp16 weights lose small updates in full training; use bf16 or fp32"


def _train_faults(config: Config) -> Iterator[str]:
    train = config.train
    if isinstance(train.micro_batch, int):
        if train.micro_batch < 1:
            yield "train.micro_batch: at least 1, or auto"
        elif train.micro_batch > train.batch_size:
            yield (
                f"train.micro_batch: {train.micro_batch} rows at once, but a step has only "
                f"train.batch_size={train.batch_size}"
            )
    if isinstance(train.micro_tokens, int) and train.micro_tokens < config.data.max_length:
        yield (
            f"train.micro_tokens: {train.micro_tokens} is less than one row may have "
            f"(data.max_length={config.data.max_length})"
        )
    for name in ("eval_every", "save_every"):
        value = getattr(train, name)
        if isinstance(value, int) and value < 1:
            yield f"train.{name}: at least 1, or epoch"
    if train.share_prefixes and not train.pack and "share_prefixes" in train.model_fields_set:
        yield "train.share_prefixes: needs train.pack"


def _data_faults(config: Config) -> Iterator[str]:
    if config.data.valid_size > 1 and config.data.valid_size != int(config.data.valid_size):
        yield "data.valid_size: a fraction below 1, or a whole number of rows"
    if config.eval.judge and not config.eval.judge_model:
        yield "eval.judge_model: which model shall judge? eval.judge is set"
