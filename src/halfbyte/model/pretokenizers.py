"""How byte-level BPE tokenizers cut text before merging, under the names GGUF files use for it.

A GGUF file holds vocabulary and merges, but only the name of the cutting rule. transformers reads
such a file with GPT-2's rule whatever the name, which gives other ids wherever white space meets
digits: "\\n\\n1" is one token shorter in SmolLM2's own tokenizer.
"""

from __future__ import annotations

from typing import Final

from tokenizers import Regex, Tokenizer
from tokenizers.pre_tokenizers import ByteLevel, Digits, PreTokenizer, Sequence, Split

# The rules as in the tokenizer.json of each family's own release.
_LLAMA3: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2: Final = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_TEKKEN: Final = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Texts on which any two of the rules differ.
_PROBES: Final = (
    "  two  spaces 12345 6\n\n1. a\r\n\t b\n \n",
    "it's IT'S CamelCase HTTPServer x=y; a/b//c\n/d 3.14 € ½ Ⅷ",
    "naïve Ünïcode Привет मानक हिन्दी 你好 😀👍🏽 e\u0301",
)


def _split(pattern: str) -> PreTokenizer:
    return Sequence(
        [
            Split(Regex(pattern), "isolated"),
            ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _gpt2() -> PreTokenizer:
    return ByteLevel(add_prefix_space=False, use_regex=True)


PRETOKENIZERS: Final[dict[str, PreTokenizer]] = {
    "gpt-2": _gpt2(),
    "smollm": Sequence([Digits(individual_digits=True), _gpt2()]),
    "llama-bpe": _split(_LLAMA3),
    "qwen2": _split(_QWEN2),
    "tekken": _split(_TEKKEN),
}


def rule_of(tokenizer: Tokenizer) -> str | None:
    """The name of the rule a byte-level tokenizer cuts by; None if it is none of these.

    Found by what it does to texts on which all of them differ, as the same rule can be written
    in several ways.
    """
    if tokenizer.pre_tokenizer is None:
        return None
    cuts = [_cut(tokenizer.pre_tokenizer, text) for text in _PROBES]
    for name, rule in PRETOKENIZERS.items():
        if cuts == [_cut(rule, text) for text in _PROBES]:
            return name
    return None


def _cut(rule: PreTokenizer, text: str) -> list[str]:
    return [piece for piece, _ in rule.pre_tokenize_str(text)]
