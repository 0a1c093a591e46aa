"""What a finished training leaves: adapter or model, its tokenizer and template, a model card."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from halfbyte.config import Config
from halfbyte.data.prepare import Prepared
from halfbyte.data.templates import Template
from halfbyte.model.adapters import save
from halfbyte.model.catalogue import find
from halfbyte.run import RunFolder, atomic_folder, read_metrics
from halfbyte.ship.card import CardFacts, model_card

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def write_result(
    run: RunFolder,
    config: Config,
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    data: Prepared,
) -> None:
    """Write `adapter/` (PEFT format) or, for full training, `model/`, whole or not at all."""
    target = run.model if config.method == "full" else run.adapter
    with atomic_folder(target, 0) as folder:
        if config.method == "full":
            model.save_pretrained(folder, safe_serialization=True)
        else:
            save(model, folder)
        copy_template(tokenizer, data.template, folder)
        generation = getattr(model, "generation_config", None)
        if generation is not None:
            generation.save_pretrained(folder)
        (folder / "README.md").write_text(_card(run, config, data), encoding="utf-8")


def copy_template(tokenizer: PreTrainedTokenizerBase, template: Template, folder: Any) -> None:
    """Save the tokenizer with the template of the training as its chat template."""
    before = tokenizer.chat_template
    try:
        tokenizer.chat_template = template.source
        tokenizer.save_pretrained(folder)
    finally:
        tokenizer.chat_template = before


def _card(run: RunFolder, config: Config, data: Prepared) -> str:
    entry = find(config.model.base)
    settings = {
        "rows": f"{len(data.train):,} of {config.data.train} ({len(data.valid):,} held out)",
        "template": f"{data.template.name}, stored as the tokenizer's chat template",
        "trained tokens": config.data.train_on,
        "longest row": f"{config.data.max_length} tokens",
        "epochs": config.train.epochs,
        "rows a step": config.train.batch_size,
        "learning rate": config.learning_rate,
    }
    if config.method != "full":
        settings |= {"rank": config.lora.rank, "alpha": config.lora.alpha}
    facts = CardFacts(
        run.name,
        config.model.base if entry is None else entry.hub,
        config.model.revision,
        None if entry is None else entry.licence,
        config.method,
        config.method == "full",
        settings,
        _held_out_losses(run),
    )
    return model_card(facts)


def _held_out_losses(run: RunFolder) -> dict[str, object]:
    """The held-out loss before training, and the best one."""
    losses = [one["loss"] for one in read_metrics(run.metrics) if one["event"] == "evaluated"]
    if not losses:
        return {}
    return {"loss before": f"{losses[0]:.4f}", "loss": f"{min(losses):.4f}"}
