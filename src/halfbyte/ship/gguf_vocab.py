"""A tokenizer in GGUF's terms: pieces with kinds, merges or scores, end marks and flags."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from gguf import GGUFWriter, TokenType
from transformers import PreTrainedTokenizerBase

from halfbyte.errors import InputError
from halfbyte.model.pretokenizers import PRETOKENIZERS, rule_of

SPACE: Final = "▁"  # how sentencepiece spells a space inside a piece
_UNNORMALIZED: Final = (
    "llama.cpp does not compose characters as this tokenizer does (Unicode NFC): text with loose "
    "accents gets other ids"
)
_BYTE_PIECES: Final = frozenset(f"<0x{byte:02X}>" for byte in range(256))


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What llama.cpp reads of a tokenizer.

    `model`: `gpt2` (byte-level BPE by merges) or `llama` (sentencepiece BPE by scores). `pre`: the
    rule text is cut by, for `gpt2`. `kinds`: gguf's TokenType of each piece. `space`: whether
    llama.cpp puts a space before text, for `llama`. `marks`: special ids by gguf's names for them.
    `notes`: what llama.cpp does otherwise, in words.
    """

    model: Literal["gpt2", "llama"]
    pre: str
    pieces: tuple[str, ...]
    kinds: tuple[int, ...]
    merges: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()
    space: bool = False
    adds_bos: bool = False
    marks: dict[str, int] = field(default_factory=dict)
    template: str | None = None
    notes: tuple[str, ...] = ()

    def write(self, writer: GGUFWriter) -> None:
        """Add all of it to a GGUF file."""
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.pieces)
        writer.add_token_types(self.kinds)
        if self.model == "gpt2":
            writer.add_token_merges(self.merges)
        else:
            writer.add_token_scores(self.scores)
            writer.add_add_space_prefix(self.space)
        writer.add_add_bos_token(self.adds_bos)
        writer.add_add_eos_token(False)
        for name, value in self.marks.items():
            writer.add_uint32(f"tokenizer.ggml.{name}_token_id", value)
        if self.template is not None:
            writer.add_chat_template(self.template)


def vocabulary(
    tokenizer: PreTrainedTokenizerBase,
    size: int,
    template: str | None,
    stop_ids: tuple[int, ...] = (),
) -> Vocabulary:
    """The vocabulary of a transformers tokenizer, filled up to the embedding's `size` rows.

    Raises:
        InputError: a kind of tokenizer, or a cutting rule, that llama.cpp does not have.
    """
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    model = spec["model"]
    if model["type"] != "BPE":
        raise InputError(f"GGUF: a tokenizer of type {model['type']} cannot be exported, only BPE")
    pieces, kinds = _pieces(model, spec["added_tokens"], size)
    common: dict[str, Any] = {
        "adds_bos": _adds_bos(tokenizer),
        "marks": _marks(tokenizer, stop_ids),
        "template": template,
    }
    merges = [_pair(merge) for merge in model["merges"]]
    if model.get("byte_fallback"):
        return Vocabulary(
            "llama",
            "default",
            pieces,
            kinds,
            scores=_scores(pieces, merges),
            space=_prepends_space(spec),
            **common,
        )
    rule = rule_of(tokenizer.backend_tokenizer)
    if rule is None:
        raise InputError(
            "GGUF: this tokenizer cuts text by a rule halfbyte has no llama.cpp name for; "
            f"it knows {', '.join(PRETOKENIZERS)}",
            "Export with --to safetensors, and convert with llama.cpp's own script.",
        )
    texts = tuple(" ".join(pair) for pair in merges)
    notes = (_UNNORMALIZED,) if spec.get("normalizer") else ()
    return Vocabulary("gpt2", rule, pieces, kinds, merges=texts, notes=notes, **common)


def _pieces(
    model: dict[str, Any], added: list[dict[str, Any]], size: int
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Each id's text and kind; ids without a token are filled, as the embedding has rows there."""
    texts = {index: text for text, index in model["vocab"].items()}
    kinds = dict.fromkeys(texts, int(TokenType.NORMAL))
    if model.get("byte_fallback"):
        kinds |= {i: int(TokenType.BYTE) for i, text in texts.items() if text in _BYTE_PIECES}
    for token in added:
        texts[token["id"]] = token["content"]
        special = TokenType.CONTROL if token["special"] else TokenType.USER_DEFINED
        kinds[token["id"]] = int(special)
    unknown = model["vocab"].get(model.get("unk_token"))
    if unknown is not None and model.get("byte_fallback"):
        kinds[unknown] = int(TokenType.UNKNOWN)
    if max(texts) >= size:
        raise InputError(f"GGUF: the tokenizer has id {max(texts)}, the embedding {size} rows")
    filler = int(TokenType.UNUSED)
    return (
        tuple(texts.get(i, f"[PAD{i}]") for i in range(size)),
        tuple(kinds.get(i, filler) for i in range(size)),
    )


def _pair(merge: Any) -> tuple[str, str]:
    """A merge, which older files write as one text."""
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right


def _scores(pieces: tuple[str, ...], merges: list[tuple[str, str]]) -> tuple[float, ...]:
    """Scores that make llama.cpp merge in the tokenizer's order: minus the first merge's rank."""
    ranks: dict[str, int] = {}
    for rank, (left, right) in enumerate(merges):
        ranks.setdefault(left + right, rank)
    lowest = -float(len(merges) + 1)  # pieces that no merge makes are single characters
    return tuple(-float(ranks[piece]) if piece in ranks else lowest for piece in pieces)


def _prepends_space(spec: dict[str, Any]) -> bool:
    """Whether text gets a space in front, by the normalizer or by the pre-tokenizer."""
    parts = [*_parts(spec.get("normalizer"), "normalizers")]
    parts += _parts(spec.get("pre_tokenizer"), "pretokenizers")
    return any(
        part["type"] == "Prepend"
        or (part["type"] == "Metaspace" and part.get("prepend_scheme", "always") != "never")
        for part in parts
    )


def _parts(node: dict[str, Any] | None, inside: str) -> list[dict[str, Any]]:
    if node is None:
        return []
    return list(node[inside]) if node["type"] == "Sequence" else [node]


def _adds_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    ids = tokenizer("a").input_ids
    return tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id]


def _marks(tokenizer: PreTrainedTokenizerBase, stop_ids: tuple[int, ...]) -> dict[str, int]:
    """Special ids under gguf's names; the first stop id is where a turn ends."""
    found = {
        "bos": tokenizer.bos_token_id,
        "eos": tokenizer.eos_token_id,
        "unknown": tokenizer.unk_token_id,
        "padding": tokenizer.pad_token_id,
        "eot": stop_ids[0] if stop_ids else None,
    }
    return {name: int(value) for name, value in found.items() if value is not None}
