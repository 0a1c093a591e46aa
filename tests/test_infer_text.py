"""Text while it arrives: whole characters, nothing lost, no stop string shown."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from halfbyte.infer.text import TextStream, decode
from tests.tiny import TURN_END, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
letters = st.text(st.sampled_from("ab é你🙂न\n�"), max_size=30)


def pieces(text: str, stops: tuple[str, ...] = ()) -> tuple[list[str], str | None]:
    stream = TextStream(TOKENIZER, stops)
    out = []
    for token in TOKENIZER.encode(text):
        out.append(stream.push(token))
        if stream.stop is not None:
            break
    return [*out, stream.flush()], stream.stop


@given(letters)
@settings(max_examples=60, deadline=None)
def test_pieces_add_up_to_the_text(text: str) -> None:
    """With one token a byte, every character comes once, whole, and in order."""
    parts, stop = pieces(text)
    assert "".join(parts) == text
    assert stop is None


@given(letters, st.lists(st.text("ab é", min_size=1, max_size=3), min_size=1, max_size=3))
@settings(max_examples=100, deadline=None)
def test_stop_strings_never_show(text: str, stops: list[str]) -> None:
    """What is shown is the text before the first stop string, at every moment."""
    places = [text.find(stop) for stop in stops if stop in text]
    parts, stop = pieces(text, tuple(stops))
    assert (stop is not None) == bool(places)
    shown = "".join(parts)
    if not places:
        assert shown == text
        return
    # of several, the one that is complete first ends the text
    assert text.startswith(shown + str(stop))
    assert not any(other in shown for other in stops)


@given(st.lists(st.integers(0, 259), max_size=20))
@settings(max_examples=60, deadline=None)
def test_broken_bytes_and_special_tokens_are_as_in_the_decoded_whole(ids: list[int]) -> None:
    """Whatever a model emits, the pieces add up to what decoding all of it gives."""
    stream = TextStream(TOKENIZER)
    shown = "".join(stream.push(token) for token in ids) + stream.flush()
    assert shown == decode(TOKENIZER, ids)


def test_special_tokens_are_not_text() -> None:
    """An end mark in the middle shows nothing."""
    ids = [*TOKENIZER.encode("ab"), *TOKENIZER.encode(TURN_END), *TOKENIZER.encode("c")]
    stream = TextStream(TOKENIZER)
    assert [stream.push(token) for token in ids] == ["a", "b", "", "c"]


def test_text_is_not_held_back_without_need() -> None:
    """Only what may begin a stop string waits; it is shown once it turns out not to."""
    stream = TextStream(TOKENIZER, ("END",))
    ids = TOKENIZER.encode("xENxEN")
    assert [stream.push(token) for token in ids] == ["x", "", "", "ENx", "", ""]
    assert stream.flush() == "EN"
