"""What a finished training leaves: adapter or model, its tokenizer and template, a model card."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from halfbyte.config import Config
from halfbyte.data.prepare import Prepared
from halfbyte.data.templates import Template
from halfbyte.model.adapters import save
from halfbyte.run import RunFolder, atomic_folder

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
    lines = [
        "---",
        f"base_model: {config.model.base}",
        "library_name: peft" if config.method != "full" else "library_name: transformers",
        "tags: [halfbyte]",
        "---",
        f"# {run.name}",
        "",
        f"{config.model.base}, fine-tuned by halfbyte with method `{config.method}` on "
        f"{len(data.train):,} rows of `{config.data.train}` ({len(data.valid):,} held out).",
        "",
        f"Template: `{data.template.name}` (stored as the tokenizer's chat template).",
        f"Trained tokens: {config.data.train_on}. Longest row: {config.data.max_length} tokens.",
        "",
        "Scores against the base: see `eval/` and `report/` in the run folder.",
        "",
    ]
    return "\n".join(lines)
