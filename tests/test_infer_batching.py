"""Continuous batching: who enters, what is shared, what is counted, and how answers end."""

from __future__ import annotations

import random
from typing import Any

import psutil
import pytest
import torch

from halfbyte.errors import InputError
from halfbyte.infer import Engine, Limits, Request, Sampling, Update
from halfbyte.infer.backend import Span
from halfbyte.infer.cache import KVCache
from tests.test_infer_engine import greedy, prompts, reference, shake, with_adapters
from tests.tiny import VOCAB, tiny_model, tiny_tokenizer

MODEL = tiny_model("llama")


def engine(**limits: Any) -> Engine:
    return Engine(MODEL, tiny_tokenizer(), Limits(**limits))


def watched(made: Engine) -> list[list[Span]]:
    """The spans of every step the engine takes from now on."""
    steps: list[list[Span]] = []
    forward = made.backend.forward

    def spy(spans: list[Span]) -> torch.Tensor:
        steps.append(spans)
        return forward(spans)

    made.backend.forward = spy  # type: ignore[method-assign]  # watching is the point
    return steps


def test_rows_that_end_make_room_at_once() -> None:
    """With two slots and answers of different lengths a slot is never idle while rows wait."""
    made = engine(max_batch=2)
    steps = watched(made)
    lengths = (2, 9, 3, 4)
    requests = [Request((i + 1,), greedy(n)) for i, n in enumerate(lengths)]
    answers = made.generate(requests)
    assert [len(a.ids) for a in answers] == list(lengths)
    assert all(len(spans) <= 2 for spans in steps)
    assert len(steps) == 9  # 2 + 3 + 4 tokens beside the 9


def test_a_common_beginning_is_computed_once() -> None:
    """Prompts are computed as the prefix tree they form: each distinct beginning once."""
    rng = random.Random(3)
    stem = [rng.randrange(256) for _ in range(40)]
    left, right = ([*stem, *(rng.randrange(256) for _ in range(20))] for _ in range(2))
    rows = [(*side, i, i + 1) for side in (left, right) for i in range(4)]
    rng.shuffle(rows)
    made = engine()
    steps = watched(made)
    answers = made.generate([Request(ids, greedy(1)) for ids in rows])
    computed = sum(len(span.ids) for spans in steps for span in spans)
    assert computed == 40 + 2 * 20 + 8 * 2
    assert sum(len(r) for r in rows) == computed + sum(a.cached_tokens for a in answers)
    assert [a.ids for a in answers] == [reference(MODEL, ids, new=1) for ids in rows]


def test_a_chat_goes_on_where_it_was() -> None:
    """The next turn of a conversation computes only what was added, in whatever slot it lies."""
    made = engine(max_batch=3)
    first = tuple(range(50))
    answer = made.generate([Request(first, greedy(5))])[0]
    made.generate([Request((200, 201), greedy(2))])
    second = (*first, *answer.ids, 7, 8)
    again = made.generate([Request(second, greedy(5))])[0]
    assert again.cached_tokens == len(first) + 4  # the last token of an answer is never fed
    assert again.ids == reference(MODEL, second, new=5)


def test_a_chat_is_remembered_while_others_take_every_place() -> None:
    """Conversations outlast the places: more of them than rows at once, each computes what is new.
    The same prompt again and again pushes nobody out."""
    made = engine(max_batch=2, kept=16)
    chats = [tuple(range(start, start + 30)) for start in range(0, 180, 30)]
    answers = made.generate([Request(ids, greedy(4)) for ids in chats])
    for _ in range(20):
        made.generate([Request(chats[0], greedy(4))])
    turns = [(*ids, *one.ids, 7, 8) for ids, one in zip(chats, answers, strict=True)]
    for again, ids in zip(
        made.generate([Request(t, greedy(3)) for t in turns]), turns, strict=True
    ):
        assert again.cached_tokens == 30 + 3
        assert again.ids == reference(MODEL, ids, new=3)


def test_what_is_remembered_makes_room_for_rows() -> None:
    """Beginnings are only kept in what the budget leaves beside the rows under way."""
    made = engine(max_batch=2, max_tokens=128, kept=16)
    first = tuple(range(40))
    made.generate([Request(first, greedy(3))])
    others = [Request(tuple(range(start, start + 40)), greedy(3)) for start in (50, 100, 150)]
    made.generate(others)
    assert made.backend.cache.slots == 2
    again = made.generate([Request((*first, 5), greedy(3))])[0]
    assert again.cached_tokens == 0
    assert again.ids == reference(MODEL, (*first, 5), new=3)


def test_the_cache_keeps_to_its_budget() -> None:
    """Slots times capacity stay within the tokens allowed; long rows then run with fewer others."""
    made = engine(max_batch=8, max_tokens=256)
    requests = [Request(ids, greedy(20)) for ids in prompts(6)]
    requests.insert(3, Request(tuple(range(200)), greedy(50)))
    sizes = []
    for request in requests:
        made.submit(request)
    done = {}
    while not made.idle:
        done.update({u.ticket: u.done for u in made.step() if u.done})
        cache = made.backend.cache
        sizes.append(cache.slots * cache.capacity)
    assert max(sizes) <= 256
    for request, (_, answer) in zip(requests, sorted(done.items()), strict=True):
        assert answer.ids == reference(MODEL, request.ids, new=request.sampling.max_new_tokens)


def test_the_cache_takes_memory_only_where_it_is_written() -> None:
    """Places that no token has reached cost nothing, also in memory that was used before."""
    cache = KVCache(torch.float32, torch.device("cpu"))
    held = psutil.Process().memory_info
    for capacity in (1 << 14, 1 << 15):
        before = held().rss
        cache.reshape(32, capacity, [(0, 0, 10)] if cache.slots else [])
        keys, values = cache.layer(0, 4, (64, 64))  # 0.5 and 1 GB each
        keys[0, :, :10], values[0, :, :10] = 1, 2
        assert not keys[1].count_nonzero()
        assert held().rss - before < 64 << 20
        assert (keys[0, :, :10] == 1).all()


def test_longer_rows_do_not_take_more_places() -> None:
    """What grows is what was too small: the places' length here, not their number."""
    made = engine(max_batch=64)
    for new in (20, 100, 180):
        answers = made.generate([Request((i + 1, 5), greedy(new)) for i in range(5)])
        assert [len(one.ids) for one in answers] == [new] * 5
        assert made.backend.cache.slots == 5


def test_rows_that_come_together_take_as_many_places_as_they_are() -> None:
    """Places between rows are attended to in vain, so none are made for rows that are in."""
    made = engine()
    made.generate([Request((1, 2), greedy(2))])
    made.generate([Request((i, 2), greedy(2)) for i in range(8)])
    assert made.backend.cache.slots == 8


def test_a_long_prompt_does_not_stall_the_others() -> None:
    """While a long prompt is computed in pieces, running answers get a token every step."""
    made = engine(prefill_tokens=16)
    ticket = made.submit(Request((1, 2, 3), greedy(20)))
    made.step()
    made.submit(Request(tuple(range(100)), greedy(3)))
    for _ in range(6):
        updates = made.step()
        assert [len(u.ids) for u in updates if u.ticket == ticket] == [1]
        assert not [u for u in updates if u.ticket != ticket]
    assert len(made.step()) == 2


def test_cancelling_frees_the_slot_before_the_next_token() -> None:
    """A cancelled answer says so in the next step, and a waiting row takes its place there."""
    made = engine(max_batch=1)
    gone, waiting, kept = (made.submit(Request((i, 5), greedy(30))) for i in (1, 2, 3))
    first = [u for _ in range(4) for u in made.step()]
    made.cancel(gone)
    made.cancel(waiting)
    updates = {u.ticket: u for u in made.step()}
    assert updates[gone].done is not None
    assert updates[gone].done.finish == "cancelled"
    assert updates[gone].done.ids == tuple(token for u in first for token in u.ids)
    assert updates[waiting].done is not None
    assert updates[waiting].done.ids == ()
    assert len(updates[kept].ids) == 1
    assert (made.running, made.waiting) == (1, 0)
    made.cancel(999)  # a ticket that is not there changes nothing
    assert [u.ticket for u in made.step()] == [kept]


def test_closing_a_stream_cancels_it() -> None:
    """Nothing of a stream that nobody reads any more is left in the engine."""
    made = engine()
    stream = made.stream(Request((1, 2), greedy(50)))
    next(stream)
    stream.close()
    assert made.idle


def test_streams_and_lists_give_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    """The updates of a stream add up to the completion that `generate` returns."""
    request = Request(tuple(range(60, 90)), greedy(40, logprobs=2))
    whole = engine().generate([request])[0]
    updates: list[Update] = list(engine().stream(request))
    assert updates[-1].done == whole
    assert "".join(u.text for u in updates) == whole.text
    assert tuple(i for u in updates for i in u.ids) == whole.ids
    assert tuple(e for u in updates for e in u.logprobs) == whole.logprobs


@pytest.mark.parametrize("stop", [(), ("zz",)])
def test_an_answer_that_nobody_streams_has_its_text_at_the_end(stop: tuple[str, ...]) -> None:
    """Its tokens are not decoded one by one, unless a stop string has to be found."""
    made = engine()
    sampling = greedy(12, stop_strings=stop)
    streamed = list(made.stream(Request((5, 6, 7), sampling)))
    quiet = list(made.stream(Request((5, 6, 7), sampling, streamed=False)))
    assert streamed[-1].done is not None
    assert quiet[-1].done is not None
    assert quiet[-1].done.text == streamed[-1].done.text != ""
    assert any(update.text for update in quiet[:-1]) is bool(stop)
    assert "".join(update.text for update in quiet) == quiet[-1].done.text


def test_every_end_mark_stops() -> None:
    """Each stop id ends the answer, is named, and is not in it; None stands for the model's own."""
    ids = reference(MODEL, (1, 2, 3), new=12)
    first = {token: place for place, token in reversed(list(enumerate(ids)))}
    for token, place in first.items():
        sampling = Sampling(12, stop_ids=(VOCAB - 1, token), logprobs=0)
        answer = engine().generate([Request((1, 2, 3), sampling)])[0]
        assert (answer.finish, answer.stop, answer.ids) == ("stop", token, ids[:place])
        assert answer.logprobs is not None
        assert len(answer.logprobs) == place
    made = engine()
    made.end_ids = (ids[4],)
    assert made.generate([Request((1, 2, 3), Sampling(12))])[0].stop == ids[4]


def test_end_marks_come_from_model_and_tokenizer() -> None:
    """Every end id that the configs and the tokenizer name counts, once."""
    model = tiny_model("llama")
    model.generation_config.eos_token_id = [3, 4]
    assert set(Engine(model, tiny_tokenizer()).end_ids) == {3, 4, 258}


def test_log_probabilities_are_those_of_the_model() -> None:
    """They are the log softmax of a plain forward pass over prompt and answer."""
    request = Request((9, 8, 7), greedy(6, logprobs=3))
    answer = engine(prefill_tokens=2).generate([request])[0]
    row = torch.tensor([[9, 8, 7, *answer.ids]])
    with torch.inference_mode():
        table = MODEL(row).logits[0, 2:-1].log_softmax(-1)
    assert answer.logprobs is not None
    for place, entry in enumerate(answer.logprobs):
        assert entry.id == answer.ids[place]
        assert entry.logprob == pytest.approx(float(table[place, entry.id]), abs=1e-4)
        values, ids = table[place].topk(3)
        assert [i for i, _ in entry.top] == ids.tolist()
        assert [v for _, v in entry.top] == pytest.approx(values.tolist(), abs=1e-4)


def test_seeds_hold_whatever_shares_the_batch() -> None:
    """The same seed gives the same answer alone, in a batch and again; another seed differs."""

    def sampled(seed: int) -> Sampling:
        return Sampling(12, temperature=1.5, top_p=0.95, seed=seed, stop_ids=())

    rows = [Request(ids, sampled(i)) for i, ids in enumerate(prompts(5))]
    together = engine(max_batch=3).generate(rows)
    alone = [engine().generate([row])[0] for row in rows]
    assert [a.ids for a in together] == [a.ids for a in alone]
    one, other = engine().generate([Request((1,), sampled(1)), Request((1,), sampled(2))])
    assert one.ids != other.ids


def test_a_swapped_adapter_does_not_touch_rows_under_way() -> None:
    """Rows finish with the weights they began with; rows after `unload` get the new ones."""
    model = with_adapters(tiny_model("llama"), names=("one",))
    ids = tuple(range(30))
    old = reference(model, ids, "one")
    made = Engine(model, tiny_tokenizer())
    before = made.submit(Request(ids, greedy(), "one"))
    made.step()
    shake(model, 99)
    made.unload("one")
    after = made.submit(Request(ids, greedy(), "one"))
    done = {}
    while not made.idle:
        done.update({u.ticket: u.done for u in made.step() if u.done})
    new = reference(model, ids, "one")
    assert old != new
    assert (done[before].ids, done[after].ids) == (old, new)


def test_a_constraint_decides_what_may_follow() -> None:
    """Only allowed tokens are chosen, greedy or sampled, and its end is the answer's end."""

    class Counting:
        """Allows just the token after the last one, and is complete after 5."""

        def __init__(self) -> None:
            self.last = 10

        def allowed(self) -> torch.Tensor:
            return torch.arange(VOCAB) == self.last + 1

        def accept(self, token: int) -> None:
            self.last = token

        def finished(self) -> bool:
            return self.last == 15

    for temperature in (0.0, 1.0):
        sampling = Sampling(50, temperature=temperature, stop_ids=())
        answer = engine().generate([Request((1, 2), sampling, constraint=Counting())])[0]
        assert (answer.ids, answer.finish) == ((11, 12, 13, 14, 15), "stop")


def test_progress_counts_answers_and_tokens() -> None:
    """Progress is told at each answer's end, up to all of them and all their tokens."""
    seen: list[tuple[int, int, int]] = []
    engine().generate(
        [Request((1,), greedy(3)), Request((2,), greedy(5))], lambda *a: seen.append(a)
    )
    assert seen == [(1, 2, 6), (2, 2, 8)]


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (Request(()), "no tokens"),
        (Request((1, VOCAB)), "outside the model's 0 to"),
        (Request((-1,)), "outside the model's 0 to"),
        (Request((1,) * 2040, greedy(9)), "context has 2048"),
        (Request((1,), greedy(), adapter="nobody"), "adapter 'nobody'"),
    ],
    ids=["empty", "vocabulary", "negative", "context", "adapter"],
)
def test_what_cannot_be_answered_is_refused_at_once(request_: Request, words: str) -> None:
    """Refused with the reason and, in a list, its place; nothing is queued."""
    made = engine()
    with pytest.raises(InputError, match=words):
        made.submit(request_)
    with pytest.raises(InputError, match="request 1: "):
        made.generate([Request((1,), greedy(1)), request_])
    assert made.idle


def test_a_context_that_would_fit_is_named() -> None:
    """The hint says how many new tokens there is room for."""
    with pytest.raises(InputError, match="max_new_tokens=8 would fit"):
        engine().submit(Request((1,) * 2040, greedy(9)))
    answer = engine().generate([Request(tuple(range(200)) * 10 + (1,) * 40, greedy(8))])[0]
    assert len(answer.ids) == 8


def test_whole_lists_need_the_engine_alone() -> None:
    """`generate` and `stream` would take other clients' updates: they refuse while any run."""
    made = engine()
    made.submit(Request((1,), greedy(5)))
    with pytest.raises(InputError, match="answering other requests"):
        made.generate([Request((1,), greedy(1))])
