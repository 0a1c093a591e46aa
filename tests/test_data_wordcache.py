"""Looking words up gives the tokenizer's own ids, or is not done."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import (
    Regex,
    Tokenizer,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

from halfbyte.data import wordcache
from halfbyte.data.wordcache import pack, word_ids

LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
RULES = {
    "gpt-2": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "smollm": pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    ),
    "llama-3": pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(LLAMA_3), "isolated"), BYTES]),
    "qwen-2": pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(LLAMA_3.replace("{1,3}", "")), "isolated"), BYTES]
    ),
}
CORPUS = [
    "It's the 1st of 12,345 tests; don't SHE'LL we're I'd you've I'm",
    "  indented\n\n\ttabs  and   spaces \n naïve café日本語 ½ ٣٤ ’quoted’",
]


def trained(rule: pre_tokenizers.PreTokenizer) -> Tokenizer:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = rule
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    core.train_from_iterator(CORPUS * 3, trainer)
    return core


CORES = {name: trained(rule) for name, rule in RULES.items()}

FOUND = {name: word_ids(core, ()) for name, core in CORES.items()}  # remembers what it was asked

texts = st.text(
    alphabet=st.one_of(
        st.sampled_from("aAsStT1290    \n\r\t'.,#é中½²٣\u00a0\u3000\u0301\x1f\x85ſ’🙂"),
        st.characters(exclude_categories=("Cs",)),
    ),
    max_size=40,
)


@pytest.mark.parametrize("name", RULES)
@settings(deadline=None, max_examples=150, derandomize=True)
@given(text=texts)
def test_ids_are_the_tokenizers_own(name: str, text: str) -> None:
    """For every rule we know, and any text at all, whatever was asked before."""
    core, found = CORES[name], FOUND[name]
    assert found is not None
    assert found.packed([[text]]) == [pack(core.encode(text, add_special_tokens=False).ids)]


@pytest.mark.parametrize("name", RULES)
def test_ids_of_words_put_together(name: str) -> None:
    """Long texts of common parts: contractions, runs of white space, digits, marks; asked twice,
    the second time from memory.
    """
    core, found = CORES[name], FOUND[name]
    assert found is not None
    rng = random.Random(5)
    parts = [
        " ",
        " ",
        "a\n\nb",
        " (it",
        "'s",
        "'LL",
        "  ",
        "\n\n",
        " \n",
        "don't",
        "123",
        "4",
        " a",
        "é",
        "!?",
        "\t",
        "’s",
        "²",
    ]
    mixed = ["".join(rng.choices(parts, k=30)) for _ in range(300)]
    expected = [pack(each.ids) for each in core.encode_batch(mixed, add_special_tokens=False)]
    for _ in range(2):
        assert found.packed([[text] for text in mixed]) == expected


def test_threads_share_it() -> None:
    """Each gets the ids of its own texts, whatever the others ask at the same time."""
    core = CORES["gpt-2"]
    found = word_ids(core, ())
    assert found is not None
    mixed = [f"{n} of {n % 7}{n}  rows\n and {n * 31} {'x' * (n % 50)} " for n in range(400)]
    with ThreadPoolExecutor(4) as pool:
        done = [*pool.map(lambda text: found.packed([[text]])[0], mixed * 3)]
    assert done == [pack(each.ids) for each in core.encode_batch(mixed)] * 3


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was seen is forgotten when it grows too much, and the ids stay the same."""
    core = CORES["smollm"]
    found = word_ids(core, ())
    assert found is not None
    for name in ("_MOST", "_MOST_PARTS"):
        monkeypatch.setattr(wordcache, name, 20)
    for number in range(100):
        text = f"{number} rows  of {number * 7} tokens\n and {'long ' * number}"
        assert found.packed([[text]]) == [pack(core.encode(text).ids)]
        assert len(found._words) <= 20
        assert len(found._parts) <= len(found._pieces) <= 20


def test_marks_come_as_ids() -> None:
    """Added tokens are cut out beforehand and stand for themselves."""
    core = CORES["gpt-2"]
    found = word_ids(core, ())
    assert found is not None
    a, b = (core.encode(text).ids for text in ("one ", " two"))
    assert found.packed([["one ", 7, " two"], []]) == [pack([*a, 7, *b]), b""]


def odd_tokenizers() -> dict[str, Tokenizer]:
    prefixed = trained(pre_tokenizers.ByteLevel(add_prefix_space=True))
    whitespace = Tokenizer(models.BPE(vocab={"a": 0}, merges=[]))
    whitespace.pre_tokenizer = pre_tokenizers.Whitespace()
    lower = trained(RULES["gpt-2"])
    lower.normalizer = normalizers.Lowercase()
    unigram = Tokenizer(models.Unigram([("a", 0.0)], unk_id=0))
    unigram.pre_tokenizer = pre_tokenizers.ByteLevel()
    return {"prefixed": prefixed, "whitespace": whitespace, "lower": lower, "unigram": unigram}


@pytest.mark.parametrize("core", odd_tokenizers().values(), ids=odd_tokenizers())
def test_tokenizers_we_cannot_vouch_for_are_left_alone(core: Tokenizer) -> None:
    """Another model, rule or normalizer: no shortcut."""
    assert word_ids(core, ()) is None


def test_composing_normalizer_is_left_to_the_tokenizer_beyond_ascii() -> None:
    """Qwen composes characters first: such texts go to the tokenizer itself."""
    core = trained(RULES["qwen-2"])
    core.normalizer = normalizers.NFC()
    found = word_ids(core, ())
    assert found is not None
    for text in ("plain, it's", "e\u0301 decomposed 12", "é"):
        assert found.packed([[text]]) == [pack(core.encode(text).ids)]
