"""A judge: another model behind an OpenAI-compatible endpoint prefers one of two answers.

Off unless it is asked for. Every pair is judged in both orders, because judges lean towards what
they read first (Zheng et al. 2023, arXiv:2306.05685): only a preference that survives the swap is a
win, everything else is a tie. Prompts, references and answers leave the machine for the endpoint.
"""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, replace
from http.client import HTTPException
from typing import Any, Final, Literal
from urllib.parse import urlsplit

import numpy as np

from halfbyte.errors import InputError, MissingError
from halfbyte.evaluate.records import Answer, Column, Evaluation, Row, ScoreInfo, mean_stats
from halfbyte.evaluate.runner import Progress, silent

Choice = Literal["first", "second", "tie"]
_LARGEST: Final = 1 << 20  # bytes of a reply that are read

JUDGED: Final = ScoreInfo(
    name="judge_preference",
    group="judge",
    better="higher",
    unit="share",
    binary=False,
    pool="mean",
    definition="1 where the judge prefers this model's answer in both orders, 0 where it prefers "
    "the other's, 0.5 for a tie or a preference that changes with the order. The judge is a model: "
    "it has tastes. Zheng et al. 2023, arXiv:2306.05685.",
)
_SYSTEM: Final = (
    "You compare two answers to one task. Prefer the one that is correct, follows the instruction "
    "and is no longer than needed. Do not let their order or length sway you. Reply with exactly "
    "one of: [[A]], [[B]], [[tie]]."
)


@dataclass(frozen=True, slots=True)
class Judge:
    """An endpoint: `url` of the API (with or without /chat/completions), the model's name there,
    its key (None: none is sent) and the seconds to wait for each reply."""

    url: str
    model: str
    key: str | None = None
    timeout: float = 60.0


def judge(
    judge: Judge, base: Evaluation, tuned: Evaluation, progress: Progress = silent
) -> tuple[Evaluation, Evaluation]:
    """Both evaluations with the column `judge_preference`.

    Raises:
        InputError: the endpoint refuses or does not answer as OpenAI's API does.
        MissingError: it cannot be reached.
    """
    values = np.full(len(base.rows), np.nan)
    places = [
        place
        for place, pair in enumerate(zip(base.answers, tuned.answers, strict=True))
        if all(answer is not None for answer in pair)
    ]
    for done, place in enumerate(places, 1):
        one, two = base.answers[place], tuned.answers[place]
        assert one is not None
        assert two is not None
        values[place] = _preference(judge, base.rows[place], one, two)
        progress("judge", done, len(places))
    return _with(base, 1 - values), _with(tuned, values)


def _preference(judge: Judge, row: Row, base: Answer, tuned: Answer) -> float:
    """How far the tuned answer is preferred: 1, 0, or 0.5."""
    if base.text.strip() == tuned.text.strip():
        return 0.5  # no judge is needed for equal answers
    forth = _ask(judge, row, base.text, tuned.text)
    back = _ask(judge, row, tuned.text, base.text)
    if (forth, back) == ("second", "first"):
        return 1.0
    return 0.0 if (forth, back) == ("first", "second") else 0.5


def _with(evaluation: Evaluation, values: np.ndarray[Any, np.dtype[np.float64]]) -> Evaluation:
    column = Column(JUDGED, values, mean_stats(values))
    return replace(evaluation, columns={**evaluation.columns, JUDGED.name: column})


def _ask(judge: Judge, row: Row, first: str, second: str) -> Choice:
    context = f"\n\nContext:\n{row.context}" if row.context else ""
    text = (
        f"Task:\n{row.prompt}{context}\n\nReference answer:\n{row.reference}\n\n"
        f"Answer A:\n{first}\n\nAnswer B:\n{second}\n\nWhich is better?"
    )
    messages = [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": text}]
    return read_choice(_reply(judge, messages))


def read_choice(text: str) -> Choice:
    """The last verdict in a judge's reply; anything unclear is a tie."""
    found = re.findall(r"\[\[\s*(A|B|tie|C)\s*\]\]", text, re.IGNORECASE)
    if not found:
        bare = re.sub(r"[^a-z]", "", text.strip().lower())
        found = [bare] if bare in {"a", "b"} else []
    choices: dict[str, Choice] = {"a": "first", "b": "second"}
    return choices.get(found[-1].lower(), "tie") if found else "tie"


def _reply(judge: Judge, messages: Sequence[dict[str, str]]) -> str:
    address = judge.url.rstrip("/")
    if urlsplit(address).scheme not in {"http", "https"}:
        raise InputError(f"eval.judge: {judge.url!r} is no http address")
    if not address.endswith("/chat/completions"):
        address += "/chat/completions"
    body = {"model": judge.model, "messages": list(messages), "temperature": 0, "max_tokens": 64}
    headers = {"Content-Type": "application/json"}
    if judge.key:
        headers["Authorization"] = f"Bearer {judge.key}"
    request = urllib.request.Request(address, json.dumps(body).encode(), headers)  # noqa: S310 - http only, checked above
    try:
        with urllib.request.urlopen(request, timeout=judge.timeout) as reply:  # noqa: S310 - as above
            tree = json.loads(reply.read(_LARGEST))
        return str(tree["choices"][0]["message"]["content"] or "")
    except urllib.error.HTTPError as error:
        raise InputError(
            f"eval.judge: {address} refuses: {error.code} {error.reason}",
            "Check eval.judge_model and the key.",
        ) from None
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise InputError(
            f"eval.judge: {address} does not answer as OpenAI's API does: {error!r}"
        ) from None
    except (OSError, HTTPException) as error:
        raise MissingError(
            f"eval.judge: {address} cannot be reached: {error}",
            "Start it, or leave eval.judge out.",
        ) from None
