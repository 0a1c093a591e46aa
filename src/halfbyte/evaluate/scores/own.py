"""A user's own scores: `file.py:function`, called as function(answer, reference, row) -> float."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable
from math import isfinite
from pathlib import Path
from typing import Any

from halfbyte.errors import InputError
from halfbyte.evaluate.records import Answer, Row
from halfbyte.evaluate.scores.registry import REGISTRY, Kind, Score, always, make_score

_FORM = "A score reads `file.py:function`, called as function(answer, reference, row) -> float."


def load_own(name: str, folder: Path | None = None) -> Score:
    """The score that `file.py:function` names, its file relative to `folder` (default: here).

    The function gets the answer and the reference as text and the row as a dict with `prompt`,
    `context`, `references`, `facts`, `labels` and the row's other columns. It returns a finite
    number or a bool; bools make a right/wrong score. Attributes on the function may say more:
    `better` ("higher", "lower", "neither"), `unit` ("share", "points", "ratio", "plain"), `binary`.

    Raises:
        InputError: when the name, the file or the function is not as it should be.
    """
    file, colon, function = name.rpartition(":")
    if not colon or not file.endswith(".py") or not function.isidentifier():
        raise InputError(f"eval.scores: {name!r} names no function in a file", _FORM)
    path = (folder or Path()) / file
    if not path.is_file():
        raise InputError(f"eval.scores: {path}: no such file", _FORM)
    called = getattr(_load(path, name), function, None)
    if not callable(called):
        raise InputError(f"eval.scores: {path} has no function {function}", _FORM)
    if function in REGISTRY:
        raise InputError(
            f"eval.scores: {name}: a built-in score is named {function}",
            "Give your function another name.",
        )
    return _score(called, function, name)


def _load(path: Path, name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"halfbyte_own_{path.stem}", path)
    assert spec is not None  # a .py file always has a loader
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise InputError(
            f"eval.scores: {name}: its file fails to load: {type(error).__name__}: {error}", _FORM
        ) from error
    return module


def _score(called: Callable[..., Any], function: str, name: str) -> Score:
    def measure(answer: Answer, row: Row) -> float:
        tree = {
            **row.extra,
            "prompt": row.prompt,
            "context": row.context,
            "references": list(row.references),
            "facts": list(row.facts),
            "labels": list(row.labels),
        }
        try:
            value = float(called(answer.text, row.reference, tree))
        except Exception as error:
            raise InputError(
                f"eval.scores: {name} fails on row {row.index}: {type(error).__name__}: {error}",
                _FORM,
            ) from error
        if not isfinite(value):
            raise InputError(f"eval.scores: {name} gives {value} on row {row.index}", _FORM)
        return value

    measure.__name__ = function
    measure.__doc__ = inspect.getdoc(called) or f"Your own score, {name}."
    kind = Kind(
        group="your own",
        better=getattr(called, "better", "higher"),
        unit=getattr(called, "unit", "plain"),
        binary=bool(getattr(called, "binary", _says_bool(called))),
    )
    return make_score(measure, kind, always)


def _says_bool(called: Callable[..., Any]) -> bool:
    return inspect.signature(called).return_annotation in {bool, "bool"}
