"""What goes beside the weights: config, tokenizer, chat template, generation config, model card."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch

from halfbyte.errors import IntegrityError
from halfbyte.model.untrusted import read_json

CARD: Final = "README.md"
TEMPLATE: Final = "chat_template.jinja"
GENERATION: Final = "generation_config.json"
_TOKENIZER: Final = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)


@dataclass(frozen=True, slots=True)
class ChatForm:
    """How the model is spoken to, as it was trained.

    `template`: Jinja source in the chat-template form (`messages`, `add_generation_prompt`); None
    keeps the tokenizer's own. `stop_ids`: every id that ends an answer. `stop_strings`: texts
    that end one, for templates without an end token.
    """

    template: str | None = None
    stop_ids: tuple[int, ...] = ()
    stop_strings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Companions:
    """Where the files beside the weights come from.

    `base`: a transformers folder. `tokenizer`: the folder whose tokenizer was trained with (the
    adapter's where it has one, else the base's). `card`: the model card's text.
    """

    base: Path
    tokenizer: Path
    chat: ChatForm = field(default_factory=ChatForm)
    card: str = ""

    def write(self, folder: Path, dtype: torch.dtype | None = None) -> None:
        """Write all of them into `folder`; `dtype` is what the weights beside them are stored in.

        Raises:
            IntegrityError: the tokenizer folder has no tokenizer.json.
        """
        config = read_json(self.base / "config.json")
        config.pop("quantization_config", None)
        if dtype is not None:
            config.pop("torch_dtype", None)  # the older name of the same key
            config["dtype"] = str(dtype).removeprefix("torch.")
        _write_json(folder / "config.json", config)
        self.write_tokenizer(folder)

    def write_tokenizer(self, folder: Path) -> None:
        """Write the tokenizer, its template, the generation config and the card."""
        if not (self.tokenizer / "tokenizer.json").is_file():
            raise IntegrityError(
                f"{self.tokenizer}: has no tokenizer.json",
                hint="Load the tokenizer with transformers and save_pretrained() it there.",
            )
        for name in _TOKENIZER:
            if (self.tokenizer / name).is_file():
                shutil.copyfile(self.tokenizer / name, folder / name)
        template = self.template()
        if template is not None:
            _drop_template(folder / "tokenizer_config.json")
            (folder / TEMPLATE).write_text(template, encoding="utf-8")
        _write_json(folder / GENERATION, self.generation())
        if self.card:
            (folder / CARD).write_text(self.card, encoding="utf-8")

    def template(self) -> str | None:
        """The chat template's source: the trained one, else the tokenizer's own."""
        if self.chat.template is not None:
            return self.chat.template
        path = self.tokenizer / TEMPLATE
        if path.is_file():
            return path.read_text(encoding="utf-8")
        config = self.tokenizer / "tokenizer_config.json"
        own = read_json(config).get("chat_template") if config.is_file() else None
        return own if isinstance(own, str) else None

    def generation(self) -> dict[str, Any]:
        """The base's generation config, ending on every stop id of the training."""
        path = self.base / GENERATION
        config = read_json(path) if path.is_file() else {}
        ends = _ids(config.get("eos_token_id"))
        ends += [stop for stop in self.chat.stop_ids if stop not in ends]
        if ends:
            config["eos_token_id"] = ends if len(ends) > 1 else ends[0]
        return config


def _ids(value: Any) -> list[int]:
    if value is None:
        return []
    return [int(item) for item in value] if isinstance(value, list) else [int(value)]


def _drop_template(path: Path) -> None:
    """A template inside tokenizer_config.json would compete with the file beside it."""
    if path.is_file():
        config = read_json(path)
        if config.pop("chat_template", None) is not None:
            _write_json(path, config)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
