"""Does a template only carry the texts of messages, or does it look into them?

A template that only puts texts beside one another, trimmed at most, renders all conversations of
the same roles alike but for the texts, so it need be rendered only once for them (see `shapes`).
Whether it is one is read off its syntax tree; it is not run. Whatever is not known to be harmless
counts as looking.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import Enum, auto
from typing import Final

from jinja2 import nodes
from jinja2.exceptions import TemplateError

from halfbyte.data.jinja_worker import environment


class _Kind(Enum):
    """What an expression may be. `FREE`: nothing that depends on a text; any other may also be
    free. `ONE`: a text, perhaps stripped. `TEXT`: has texts in it. `TURNS`: messages, or one.
    """

    FREE = auto()
    ONE = auto()
    TEXT = auto()
    TURNS = auto()
    NAMESPACE = auto()


FREE, ONE, TEXT, TURNS, NAMESPACE = _Kind
_STRIPS: Final = {"strip", "lstrip", "rstrip"}
_TYPES: Final = {"defined", "undefined", "none", "string", "mapping", "iterable", "sequence"}
_COUNTERS: Final = {"index", "index0", "revindex", "revindex0", "length"}
_FLAGS: Final = {"first", "last"}
_NEIGHBOURS: Final = {"previtem", "nextitem"}
_METHODS: Final = {*dir(dict), *dir(list), *dir(str)}


class _LooksError(Exception):
    pass


def is_opaque(source: str) -> bool:
    """Whether the template's output is literal text and the texts of messages, stripped or not,
    which ones depending only on the messages' roles, as long as no text is blank.

    Call it only with a template that has been rendered under limits: parsing has none here.
    """
    try:
        check = _Check()
        tree = environment().parse(source)
        seen: dict[str, _Kind] = {}
        while seen != check.kinds:  # what a loop assigns holds for what stands before it, too
            seen = dict(check.kinds)
            check.body(tree.body)
    except (_LooksError, TemplateError, RecursionError):
        return False
    return True


class _Check:
    """`kinds`: of variables, and of a namespace's as `name.attribute`; the widest they ever are."""

    def __init__(self) -> None:
        self.kinds = {"messages": TURNS, "context": ONE}

    def body(self, statements: Iterable[nodes.Node]) -> None:
        for statement in statements:
            self._statement(statement)

    def _statement(self, node: nodes.Node) -> None:
        match node:
            case nodes.Output():
                self._need(node.nodes, FREE, ONE, TEXT)
            case nodes.If():
                self.kind(node.test)
                self.body([*node.body, *node.elif_, *node.else_])
            case nodes.For(recursive=False):
                self._loop(node)
            case nodes.Assign():
                self._assign(node.target, node.node)
            case nodes.Break() | nodes.Continue():
                pass
            case _:
                raise _LooksError

    def _loop(self, node: nodes.For) -> None:
        self._need([node.iter], FREE, TURNS)
        self._note(node.target, self.kind(node.iter))
        if node.test is not None:
            self.kind(node.test)
        self.body([*node.body, *node.else_])

    def _assign(self, target: nodes.Node, value: nodes.Node) -> None:
        match target, value:
            case nodes.Name(), nodes.Call(node=nodes.Name(name="namespace"), dyn_kwargs=None):
                self._need([*value.args, *([value.dyn_args] if value.dyn_args else [])], FREE)
                for each in value.kwargs:
                    self._widen(f"{target.name}.{each.key}", self.kind(each.value))
                self._widen(target.name, NAMESPACE)
            case nodes.NSRef(), _:
                kind = self.kind(value)
                if kind is not FREE and self.kinds.get(target.name) is not NAMESPACE:
                    raise _LooksError
                self._widen(f"{target.name}.{target.attr}", kind)
            case _:
                self._note(target, self.kind(value))

    def _note(self, target: nodes.Node, kind: _Kind) -> None:
        if isinstance(target, nodes.Name) and kind is not NAMESPACE:  # under one name only
            self._widen(target.name, kind)
        elif isinstance(target, nodes.Tuple) and kind is FREE:
            for each in target.items:
                self._note(each, FREE)
        else:
            raise _LooksError

    def _widen(self, name: str, kind: _Kind) -> None:
        if name in {"loop", "namespace"} or kind is NAMESPACE is not self.kinds.get(
            name, NAMESPACE
        ):
            raise _LooksError
        self.kinds[name] = _wider(self.kinds.get(name, kind), kind)

    def _need(self, expressions: Iterable[nodes.Node], *kinds: _Kind) -> None:
        if any(self.kind(each) not in kinds for each in expressions):
            raise _LooksError

    def kind(self, node: nodes.Node) -> _Kind:
        """The kind of an expression."""
        match node:
            case nodes.Name(name=name) if name != "loop":
                return self.kinds.get(name, FREE)
            case (
                nodes.Getattr(node=base, attr=key)
                | nodes.Getitem(node=base, arg=nodes.Const(value=str(key)))
            ):
                return self._member(base, key)
            case nodes.Getitem(node=base, arg=arg) if self.kind(base) is TURNS:
                self._need_place(arg)
                return TURNS
            case nodes.Call() | nodes.Filter() | nodes.Test():
                return self._applied(node)
            case _:
                return self._operation(node)

    def _member(self, base: nodes.Expr, key: str) -> _Kind:
        match base:
            case nodes.Name(name="loop") if key in _COUNTERS | _FLAGS:
                return FREE
            case nodes.Name(name="loop") if key in _NEIGHBOURS:
                return TURNS
            case nodes.Name(name=name) if self.kinds.get(name) is NAMESPACE:
                return self.kinds.get(f"{name}.{key}", FREE)
        kind = self.kind(base)
        if kind is TURNS and key == "content":
            return ONE
        if kind is FREE or (kind is TURNS and key not in _METHODS):
            return FREE
        raise _LooksError

    def _need_place(self, node: nodes.Node) -> None:
        """An index into a list; a name could hold "content"."""
        match node:
            case nodes.Const(value=int()):
                pass
            case nodes.Getattr(node=nodes.Name(name="loop"), attr=key) if key in _COUNTERS:
                pass
            case nodes.Filter(name="length" | "count"):
                self.kind(node)
            case nodes.Neg():
                self._need_place(node.node)
            case nodes.Add() | nodes.Sub():
                self._need_place(node.left)
                self._need_place(node.right)
            case nodes.Slice():
                self._need(filter(None, (node.start, node.stop, node.step)), FREE)
            case _:
                raise _LooksError

    def _applied(self, node: nodes.Call | nodes.Filter | nodes.Test) -> _Kind:
        """A call, a filter or a test: of texts, those that do not depend on what they say."""
        given = _given(node)
        match node:
            case nodes.Call(node=nodes.Getattr(node=base, attr=name)) if name in _STRIPS:
                if not given and self.kind(base) is ONE:
                    return ONE
            case nodes.Filter(node=nodes.Expr() as base, name="trim"):
                if not given and self.kind(base) is ONE:
                    return ONE
            case nodes.Filter(node=nodes.Expr() as base, name="length" | "count"):
                if not given and self.kind(base) is TURNS:
                    return FREE
            case nodes.Test(node=base, name=name) if name in _TYPES:
                self.kind(base)
                return FREE
            case nodes.Filter(name="random") | nodes.Filter(node=None):
                raise _LooksError
        self._need([node.node, *given] if node.node else given, FREE)
        return FREE

    def _operation(self, node: nodes.Node) -> _Kind:
        match node:
            case nodes.Not():
                self.kind(node.node)  # no text is blank, so each is true
                return FREE
            case nodes.And() | nodes.Or():
                self._need([node.left, node.right], FREE, ONE, TEXT)
                return _wider(self.kind(node.left), self.kind(node.right))
            case nodes.CondExpr():
                self.kind(node.test)
                other = self.kind(node.expr2) if node.expr2 else FREE
                return _wider(self.kind(node.expr1), other)
            case nodes.Add() | nodes.Concat():
                parts = [node.left, node.right] if isinstance(node, nodes.Add) else node.nodes
                self._need(parts, FREE, ONE, TEXT)
                return FREE if all(self.kind(part) is FREE for part in parts) else TEXT
            case nodes.Compare(expr=left, ops=ops) if all(map(_with_no_text, ops)):
                self._need([left], FREE, ONE, TEXT)
                return FREE
            case (
                nodes.Literal()
                | nodes.Pair()
                | nodes.Compare()
                | nodes.Operand()
                | nodes.BinExpr()
                | nodes.UnaryExpr()
                | nodes.Slice()
                | nodes.Getitem()
            ):
                self._need(node.iter_child_nodes(), FREE)
                return FREE
        raise _LooksError


def _wider(one: _Kind, other: _Kind) -> _Kind:
    if one is other:
        return one
    if NAMESPACE in (one, other) or {one, other} in ({ONE, TURNS}, {TEXT, TURNS}):
        raise _LooksError
    return max(one, other, key=[FREE, ONE, TEXT, TURNS].index)


def _given(node: nodes.Call | nodes.Filter | nodes.Test) -> Sequence[nodes.Node]:
    """Everything between the parentheses."""
    more = [each for each in (node.dyn_args, node.dyn_kwargs) if each is not None]
    return [*node.args, *(pair.value for pair in node.kwargs), *more]


def _with_no_text(operand: nodes.Operand) -> bool:
    """A comparison with true, false or none, to which no text is equal."""
    plain = isinstance(operand.expr, nodes.Const) and operand.expr.value in (True, False, None)
    return plain and operand.op in {"eq", "ne"}
