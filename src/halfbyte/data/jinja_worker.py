"""Renders chat templates. As a script it serves one parent over pipes, under hard limits.

A template that comes with a model is code from strangers. The sandboxed environment keeps it from
reaching Python; it cannot keep it from `'a' * 10**10` or from a loop without end. So templates
from outside run here, in a process whose memory and processor time are limited by the kernel and
which its parent can kill. This file is also imported for the built-in templates, which need no
such care. It imports nothing of halfbyte: the process starts in a tenth of a second.

Frames are a 4-byte length and JSON. In: {"source", "variables", "seconds", "rows": [row, ...]}; a
row is {"messages", "context", "cuts"}, and "holes": true if its texts are such (see `Hole`). Out:
{"rows": [[text, [prompt, ...]] or {"refused": why}, ...], "reads": [the variables the template
reads]}. For each cut k, `prompt` is the rendering of messages[:k] with the generation prompt: its
length where `text` begins with it, else the string itself.
"""

from __future__ import annotations

import datetime as dt
import json
import resource
import signal
import struct
import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import cache, lru_cache
from types import FrameType
from typing import Any, BinaryIO, Final, NoReturn

import jinja2
import jinja2.ext
import jinja2.meta
from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError, TemplateSyntaxError
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

MEMORY: Final = 1 << 30  # bytes of address space; rendering needs some 40 MB
SECONDS_A_ROW: Final = (
    0.02  # processor time, beside the request's "seconds": real ones take 0.00002
)
OUTPUT: Final = 1 << 20  # characters a rendering may have, beside
OUTPUT_PER_INPUT: Final = 8  # this many for each character of its messages
_TODAY: Final = dt.date(2024, 7, 26)  # the day Llama 3's template falls back to


class TooMuchError(Exception):
    """A limit on time or output was met."""


class _RefusedError(TemplateError):
    """The template itself refused the row, by raise_exception."""


# What template code can end in, however broken it is. Anything else ends the process, which the
# parent reports.
_FAILURES: Final = (
    TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
)


class _Generation(jinja2.ext.Extension):
    """Accepts {% generation %} … {% endgeneration %} and renders what is inside."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Namespace(Namespace):
    """A namespace without underscore names, which reach Python's internals."""

    def __init__(*arguments: Any, **values: Any) -> None:
        self, *rest = arguments
        given = dict(*rest, **values)
        for name in given:
            _check_name(name)
        Namespace.__init__(self, given)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: str) -> None:
    if str(name).startswith("_"):
        raise SecurityError(f"a namespace may not hold {name!r}")


def _refuse(message: object) -> NoReturn:
    raise _RefusedError(str(message))


def _dict(*pairs: Any, **values: Any) -> dict[Any, Any]:
    # a function: templates need not reach the type itself
    return dict(*pairs, **values)


def _to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    # jinja2's own tojson escapes for HTML
    known = {key: options[key] for key in ("indent", "separators", "sort_keys") if key in options}
    return json.dumps(value, ensure_ascii=ensure_ascii, **known)


def _today(form: str) -> str:
    # one fixed day: the ids of a row may not change overnight
    return _TODAY.strftime(form)


@cache
def environment() -> jinja2.Environment:
    """What transformers gives to chat templates."""
    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    made.filters["tojson"] = _to_json
    made.globals = {
        "range": made.globals["range"],
        "dict": _dict,
        "namespace": _Namespace,
        "raise_exception": _refuse,
        "strftime_now": _today,
    }
    return made


@lru_cache(maxsize=32)
def compiled(source: str) -> jinja2.Template:
    """The template, ready to be rendered.

    Raises:
        TemplateSyntaxError: it is not Jinja.
    """
    return environment().from_string(source)


class Hole(str):
    """Stands for a text; what is done to it is noted before its last character."""

    __slots__ = ()

    def strip(self, _: str | None = None, /) -> Hole:  # noqa: D102 - str's own
        return self._noted("s")

    def lstrip(self, _: str | None = None, /) -> Hole:  # noqa: D102 - str's own
        return self._noted("l")

    def rstrip(self, _: str | None = None, /) -> Hole:  # noqa: D102 - str's own
        return self._noted("r")

    def _noted(self, what: str) -> Hole:
        return Hole(self[:-1] + what + self[-1])


@lru_cache(maxsize=32)
def reads(source: str) -> list[str]:
    """The variables a template reads from outside."""
    tree = environment().parse(source)
    return sorted(jinja2.meta.find_undeclared_variables(tree))


def render(
    source: str, variables: Mapping[str, Any], row: Mapping[str, Any]
) -> tuple[str, list[int | str]]:
    """The whole of a row, and for each of its cuts the prompt (see the module's docstring)."""
    template = compiled(source)
    messages: Sequence[Mapping[str, str]] = row["messages"]
    context: str | None = row["context"]
    texts = [message["content"] for message in messages]
    limit = OUTPUT + OUTPUT_PER_INPUT * sum(map(len, [*texts, context or ""]))
    if row.get("holes"):
        messages = [{**message, "content": Hole(message["content"])} for message in messages]
        context = context and Hole(context)
    given = {**variables, "tools": None, "documents": None, "context": context}
    text = _bounded(template.generate(given, messages=messages, add_generation_prompt=False), limit)
    prompts: list[int | str] = []
    for cut in row["cuts"]:
        pieces = template.generate(given, messages=messages[:cut], add_generation_prompt=True)
        prompt = _bounded(pieces, limit)
        prompts.append(len(prompt) if text.startswith(prompt) else prompt)
    return text, prompts


def _bounded(pieces: Iterable[str], limit: int) -> str:
    taken: list[str] = []
    size = 0
    for piece in pieces:
        size += len(piece)
        if size > limit:
            raise TooMuchError(f"its output is longer than {limit:,} characters")
        taken.append(piece)
    return "".join(taken)


def answer(request: Mapping[str, Any]) -> dict[str, Any]:
    """The reply to a request; when the template is hostile or no template, only {"hostile"}."""
    try:
        rows = [_one(request, row) for row in request["rows"]]
        return {"rows": rows, "reads": reads(request["source"])}
    except TemplateSyntaxError as error:
        return {"hostile": f"line {error.lineno}: {error.message}"}
    except SecurityError as error:
        return {"hostile": f"the sandbox stopped it: {error}"}
    except TooMuchError as error:
        return {"hostile": str(error)}
    except MemoryError:
        return {"hostile": "it needs more memory than a template may take"}
    except _FAILURES as error:
        return {"hostile": f"{type(error).__name__}: {error}"}


def _one(request: Mapping[str, Any], row: Mapping[str, Any]) -> Any:
    try:
        return render(request["source"], request["variables"], row)
    except (TemplateSyntaxError, SecurityError, TooMuchError, MemoryError):
        raise
    except _RefusedError as error:
        return {"refused": str(error)}
    except _FAILURES as error:
        return {"refused": f"{type(error).__name__}: {error}"}


def _out_of_time(signum: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001 - a handler's
    raise TooMuchError("it takes longer than a template may")


def _read(stream: BinaryIO) -> bytes:
    head = stream.read(4)
    return stream.read(struct.unpack(">I", head)[0]) if len(head) == 4 else b""


def serve(source: BinaryIO, sink: BinaryIO) -> None:
    """Answer requests until the parent closes the pipe."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGPROF, _out_of_time)
    while frame := _read(source):
        request = json.loads(frame)
        # processor time, not wall time: a busy machine makes no template hostile
        seconds = request["seconds"] + SECONDS_A_ROW * len(request["rows"])
        signal.setitimer(signal.ITIMER_PROF, seconds)
        reply = json.dumps(answer(request)).encode()
        signal.setitimer(signal.ITIMER_PROF, 0)
        sink.write(struct.pack(">I", len(reply)) + reply)
        sink.flush()


if __name__ == "__main__":
    serve(sys.stdin.buffer, sys.stdout.buffer)
