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
    step: int,
) -> None:
    """Write `adapter/` (PEFT format) or, for full training, `model/`, whole or not at all. `step`:
    whose weights `model` has.
    """
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
        (folder / "README.md").write_text(_card(run, config, data, step), encoding="utf-8")


def copy_template(tokenizer: PreTrainedTokenizerBase, template: Template, folder: Any) -> None:
    """Save the tokenizer with the template of the training as its chat template."""
    before = tokenizer.chat_template
    try:
        tokenizer.chat_template = template.source
        tokenizer.save_pretrained(folder)
    finally:
        tokenizer.chat_template = before


def _card(run: RunFolder, config: Config, data: Prepared, step: int) -> str:
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
        _held_out_losses(run, step),
    )
    return model_card(facts)


def _held_out_losses(run: RunFolder, step: int) -> dict[str, object]:
    """The held-out loss before training and at a step, as far as they are finite numbers."""
    evaluated = (one for one in read_metrics(run.metrics) if one["event"] == "evaluated")
    losses = {one["step"]: one["loss"] for one in evaluated}
    found = {"loss before": losses.get(0), "loss": losses.get(step)}
    return {name: f"{loss:.4f}" for name, loss in found.items() if loss is not None}
