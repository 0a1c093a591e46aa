"""Model cards: what the hub and a reader want to know, made from what the run recorded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import yaml


@dataclass(frozen=True, slots=True)
class CardFacts:
    """What a card says. `settings` and `results` are shown as tables, in their order."""

    name: str
    base: str
    revision: str | None = None
    licence: str | None = None
    method: str = "lora"
    merged: bool = False
    settings: Mapping[str, object] = field(default_factory=dict)
    results: Mapping[str, object] = field(default_factory=dict)


def model_card(facts: CardFacts) -> str:
    """A README.md with the hub's front matter."""
    head: dict[str, object] = {
        "base_model": facts.base,
        "library_name": "transformers" if facts.merged else "peft",
        "pipeline_tag": "text-generation",
        "tags": ["halfbyte", facts.method],
    }
    if facts.licence:
        head["license"] = facts.licence.lower()
    at = f" at revision `{facts.revision}`" if facts.revision else ""
    kind = "its adapter merged in" if facts.merged else "an adapter for it"
    if facts.method == "full":
        kind = "all its weights trained"
    parts = [
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---",
        f"# {facts.name}",
        f"`{facts.base}`{at}, {kind} (method `{facts.method}`), trained with halfbyte.",
        _table("Settings", facts.settings),
        _table("Held-out results", facts.results),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _table(title: str, rows: Mapping[str, object]) -> str:
    if not rows:
        return ""
    lines = [f"| {_cell(name)} | {_cell(value)} |" for name, value in rows.items()]
    return "\n".join([f"## {title}", "", "| | |", "|---|---|", *lines])


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")
