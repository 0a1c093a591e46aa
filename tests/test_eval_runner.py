"""Asking a loaded model: likelihoods that do not depend on batching, adapters on and off."""

import contextlib
import math

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from halfbyte.data.batches import MicroLimits, plan_step
from halfbyte.data.records import Encoded, Example, Message
from halfbyte.errors import InputError
from halfbyte.evaluate.records import Answer, Likelihood
from halfbyte.evaluate.rows import rows_from
from halfbyte.evaluate.runner import (
    Plan,
    Subject,
    adapter_state,
    answerable,
    evaluate_model,
    likelihoods,
)
from halfbyte.infer import Engine, Sampling
from tests.tiny import tiny_model, tiny_tokenizer

SHORT = Plan(Sampling(max_new_tokens=6), answered=4)


@pytest.fixture(scope="module")
def tuned():
    """A tiny model with an adapter that does something."""
    torch.manual_seed(0)
    model = get_peft_model(
        tiny_model(), LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    )
    return model.eval()


def subject(model, name, adapter):
    return Subject(name, model, Engine(model, tiny_tokenizer()), adapter)


def encoded_rows(count, seed=0):
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        size, prompt = int(rng.integers(8, 60)), int(rng.integers(2, 6))
        trained = np.arange(size) >= prompt
        found.append(Encoded(rng.integers(0, 256, size).astype(np.int32), trained, prompt))
    return found


def examples(count):
    return [
        Example(
            (Message("user", f"What is {i}?"), Message("assistant", f"It is {i}.\nAnswer: {i}"))
        )
        for i in range(count)
    ]


def plain_likelihood(model, row):
    """A plain transformers loop over one row."""
    ids = torch.tensor(row.ids[None].astype(np.int64))
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0, :-1].float()
    losses = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none")
    wanted = torch.tensor(row.trained[1:])
    hits = (logits.argmax(-1) == ids[0, 1:])[wanted]
    return losses[wanted].double().sum().item(), int(wanted.sum()), int(hits.sum())


def test_likelihood_is_a_plain_loops(tuned):
    """Per row and in all, perplexity is a plain transformers loop's to 1e-5, adapter on and off."""
    rows = encoded_rows(12)
    for adapter in (None, "default"):
        found = likelihoods(subject(tuned, "m", adapter), rows)
        with adapter_state(tuned, adapter):
            expected = [plain_likelihood(tuned, row) for row in rows]
        for one, (nll, tokens, correct) in zip(found, expected, strict=True):
            assert one.nll == pytest.approx(nll, rel=1e-5)
            assert (one.tokens, one.correct) == (tokens, correct)
        ours = math.exp(sum(one.nll for one in found) / sum(one.tokens for one in found))
        plain = math.exp(sum(e[0] for e in expected) / sum(e[1] for e in expected))
        assert ours == pytest.approx(plain, rel=1e-5)


def test_likelihood_does_not_depend_on_batching(tuned):
    """One row at a time, packed, padded and with a budget of a few tokens give the same rows."""
    rows = encoded_rows(9, seed=3)
    who = subject(tuned, "m", "default")
    limits = [
        MicroLimits(1, 64),
        MicroLimits(64, 4096),
        MicroLimits(4, 100, pack=False),
        MicroLimits(3, 90, share=True),
    ]
    first, *others = [likelihoods(who, rows, one) for one in limits]
    for other in others:
        assert [one.nll for one in other] == pytest.approx([one.nll for one in first], rel=1e-5)
        assert [one.tokens for one in other] == [one.tokens for one in first]


@pytest.mark.parametrize("prompt", [30, 12], ids=["trained apart", "trained in common"])
def test_shared_beginnings_are_computed_once_and_given_to_every_row(tuned, prompt):
    """Rows that begin alike, trained tokens in common or not, have each their own likelihood."""
    rng = np.random.default_rng(5)
    start = rng.integers(0, 256, 30)
    rows = []
    for extra in (0, 6, 9, 9, 14):
        ids = np.concatenate([start, rng.integers(0, 256, extra + 1)]).astype(np.int32)
        rows.append(Encoded(ids, np.arange(len(ids)) >= prompt, prompt))
    rows.append(rows[1])  # the very same row twice
    limits = MicroLimits(64, 4096, share=True)
    (batch,) = plan_step(list(enumerate(rows)), limits)
    assert batch.input_ids.numel() < sum(len(row) - 1 for row in rows)
    found = likelihoods(subject(tuned, "m", "default"), rows, limits)
    with adapter_state(tuned, "default"):
        for one, row in zip(found, rows, strict=True):
            nll, tokens, correct = plain_likelihood(tuned, row)
            assert one.nll == pytest.approx(nll, rel=1e-5)
            assert (one.tokens, one.correct) == (tokens, correct)


def test_rows_without_targets_or_too_long_have_no_likelihood(tuned):
    """A row with nothing trained, or longer than the context, is left out and said so by None."""
    rows = encoded_rows(3)
    rows[1] = Encoded(rows[1].ids, np.zeros(len(rows[1]), bool), 2)
    found = likelihoods(subject(tuned, "m", None), rows, context=len(rows[2]) - 1)
    assert isinstance(found[0], Likelihood) or len(rows[0]) >= len(rows[2])
    assert found[1] is None
    assert found[2] is None


def test_adapter_state_leaves_the_model_as_it_was(tuned):
    """Mode, active adapter and trainable parameters are as before, also after an error."""
    tuned.train()
    for one in tuned.parameters():
        one.requires_grad_(False)
    for adapter in (None, "default"):
        with contextlib.suppress(ZeroDivisionError), adapter_state(tuned, adapter):
            assert not tuned.training
            1 / 0  # noqa: B018 - any error in the block
        assert tuned.training
        assert tuned.active_adapter == "default"
        assert not any(one.requires_grad for one in tuned.parameters())
    tuned.eval()
    with pytest.raises(InputError, match="no adapter other"), adapter_state(tuned, "other"):
        pass


def test_base_is_the_model_without_adapter(tuned):
    """With the adapter off the likelihood is the bare base's; with it on, another."""
    rows = encoded_rows(4)
    off = likelihoods(subject(tuned, "m", None), rows)
    on = likelihoods(subject(tuned, "m", "default"), rows)
    bare = likelihoods(subject(tiny_model(), "m", None), rows)
    assert [one.nll for one in off] == pytest.approx([one.nll for one in bare], rel=1e-6)
    assert [one.nll for one in on] != pytest.approx([one.nll for one in off], rel=1e-3)


def test_evaluation_answers_evenly_spread_rows(tuned):
    """At most `answered` rows are answered, spread over the set; every row has a likelihood; the
    answers are the engine's for the stored prompt ids."""
    given = examples(10)
    tokenizer = tiny_tokenizer()
    encoded = []
    for example in given:
        turns = [{"role": m.role, "content": m.content} for m in example.messages]
        prompt = tokenizer.apply_chat_template(turns[:1], add_generation_prompt=True)["input_ids"]
        whole = tokenizer.apply_chat_template(turns)["input_ids"]
        trained = np.arange(len(whole)) >= len(prompt)
        encoded.append(Encoded(np.array(whole, np.int32), trained, len(prompt)))
    seen = []
    who = subject(tuned, "tuned", "default")
    found = evaluate_model(who, rows_from(given), encoded, SHORT, lambda *step: seen.append(step))
    assert [i for i, answer in enumerate(found.answers) if answer] == [0, 2, 5, 7]
    assert all(isinstance(answer, Answer) for answer in found.answers if answer)
    assert found.columns["perplexity"].applies.all()
    assert int(found.columns["final_answer_match"].applies.sum()) == 4
    assert ("answers", 4, 4) in seen
    assert ("likelihood", 10, 10) in seen


def test_rows_that_cannot_be_answered_are_left_out(tuned):
    """No prompt, no reference or no room for an answer: not asked."""
    rows = rows_from([*examples(2), Example(text="plain")])
    encoded = encoded_rows(3)
    assert answerable(rows, encoded, SHORT, context=100) == [0, 1]
    assert answerable(rows, encoded, SHORT, context=encoded[0].prompt_length + 5) != [0, 1]


def test_no_rows_is_an_error(tuned):
    """An empty held-out file is refused with the way out."""
    with pytest.raises(InputError, match="no held-out rows"):
        evaluate_model(subject(tuned, "m", None), [], [], SHORT)
