"""The sampler: the distribution is the one the settings define, and draws follow it."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from halfbyte.errors import InputError
from halfbyte.infer import PRESETS, Sampling
from halfbyte.infer.sampler import Chooser, choose, logprobs, shares

LOGITS = torch.randn(500, generator=torch.Generator().manual_seed(0)) * 3

CASES = [
    Sampling(temperature=0.7),
    Sampling(temperature=1.3, top_k=20),
    Sampling(temperature=1.0, top_p=0.8),
    Sampling(temperature=1.0, min_p=0.1),
    Sampling(temperature=0.9, top_k=50, top_p=0.9, min_p=0.02),
    Sampling(temperature=1.0, top_p=1e-6),
    Sampling(temperature=1.0, min_p=1.0),
]


@pytest.mark.parametrize("sampling", CASES)
def test_the_distribution_is_that_of_transformers(sampling: Sampling) -> None:
    """Temperature, top-k, top-p and min-p in this order leave the same shares as its warpers."""
    warpers = LogitsProcessorList([TemperatureLogitsWarper(sampling.temperature)])
    if sampling.top_k:
        warpers.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        warpers.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p:
        warpers.append(MinPLogitsWarper(sampling.min_p))
    expected = warpers(torch.tensor([[0]]), LOGITS[None].clone())[0].softmax(-1)
    ids, probabilities = shares(LOGITS, sampling)
    found = torch.zeros_like(expected).index_copy(0, ids, probabilities)
    torch.testing.assert_close(found, expected)


def test_the_repetition_penalty_is_that_of_transformers() -> None:
    """Tokens of prompt and answer, however often they occur, are made less likely once."""
    context = [1, 2, 2, 7, 400]
    processor = RepetitionPenaltyLogitsProcessor(1.7)
    expected = processor(torch.tensor([context]), LOGITS[None].clone())[0]
    row = Chooser(Sampling(repetition_penalty=1.7), context)
    for top in range(3):  # the best token is penalized in turn, so the second best shows
        assert choose(LOGITS[None], [row]) == [int(expected.argmax())], top
        context.append(int(expected.argmax()))
        expected = processor(torch.tensor([context]), LOGITS[None].clone())[0]


def test_draws_follow_the_distribution() -> None:
    """5,000 draws of one row match its shares within four standard errors."""
    sampling = Sampling(temperature=1.0, top_k=6, seed=5)
    ids, probabilities = shares(LOGITS, sampling)
    row = Chooser(sampling, [0])
    draws = torch.tensor([choose(LOGITS[None], [row])[0] for _ in range(5_000)])
    for token, share in zip(ids, probabilities, strict=True):
        error = float((share * (1 - share) / len(draws)).sqrt())
        assert abs(float((draws == token).float().mean()) - float(share)) < 4 * error


def test_greedy_takes_the_largest_logit() -> None:
    """Temperature 0 and top-k 1 are greedy, ties go to the lower id, no seed is needed."""
    tied = torch.zeros(3, 9)
    tied[:, 4] = tied[:, 6] = 2.0
    rows = [Chooser(Sampling(), [0]), Chooser(Sampling(temperature=2, top_k=1), [0])]
    assert choose(tied[:2], rows) == [4, 4]


def test_log_probabilities_list_the_likeliest_first() -> None:
    """The chosen token's is its own even when it is not among the likeliest."""
    entry = logprobs(LOGITS[None], [3], [5])[0]
    table = LOGITS.log_softmax(-1)
    assert entry.logprob == pytest.approx(float(table[3]))
    assert [value for _, value in entry.top] == sorted(table.tolist(), reverse=True)[:5]
    assert logprobs(LOGITS[None], [3], [0])[0].top == ()


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_new_tokens": 0},
        {"temperature": float("nan")},
        {"temperature": -1.0},
        {"top_p": 0.0},
        {"top_k": -1},
        {"min_p": 1.5},
        {"repetition_penalty": 0.0},
        {"repetition_penalty": float("inf")},
        {"seed": -1},
        {"stop_strings": ("",)},
        {"logprobs": 21},
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    """Each fault names its setting."""
    with pytest.raises(InputError, match=next(iter(wrong))):
        Sampling(**wrong)  # type: ignore[arg-type]  # wrong on purpose


def test_all_faults_are_named_at_once() -> None:
    """Two wrong settings are two faults in one message."""
    with pytest.raises(InputError, match=r"temperature.*top_p"):
        Sampling(temperature=-1, top_p=2)


def test_presets_are_settings() -> None:
    """Every preset is valid; only the deterministic one is greedy."""
    assert {name: Sampling(**values).greedy for name, values in PRESETS.items()} == {
        "creative": False,
        "balanced": False,
        "deterministic": True,
    }
