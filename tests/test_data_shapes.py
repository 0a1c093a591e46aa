"""Rows put together from a shape are the template's own renderings, or are rendered by it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from halfbyte.data.jinja_sandbox import Reply, Row, render_trusted
from halfbyte.data.opaque import is_opaque
from halfbyte.data.shapes import Shapes
from halfbyte.data.template_sources import BUILT_IN, WITH_BOS, WITH_END
from halfbyte.model import bases

VARIABLES = {"bos_token": "<s>", "eos_token": "</s>"}
CHATML = bases.load_tokenizer(bases.resolve("smollm2-135m")).chat_template
BODY = "{% for m in messages %}{{ m.role + m.content + eos_token }}{% endfor %}"

OPAQUE = {
    "chatml": CHATML,
    "instruction": BUILT_IN["instruction"],
    "alpaca": BUILT_IN["alpaca"],
    "plain": BUILT_IN["plain"],
    "with bos": WITH_BOS + CHATML,
    "llama-3": (
        "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = "
        "'<|start|>' + message['role'] + '<|end|>\n\n' + message['content'] | trim + '<|eot|>' %}"
        "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant<|end|>\n\n' }}{% endif %}"
    ),
    "system apart": (
        "{% if messages[0].role == 'system' %}{% set sys = messages[0]['content'].strip() %}"
        "{% set messages = messages[1:] %}{% else %}{% set sys = '' %}{% endif %}"
        "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('roles must alternate') }}{% endif %}{% if m.role == 'user' %}"
        "{{ '[INST] ' ~ (sys + '\n' if loop.first and sys else '') ~ m.content.strip() ~ '[/INST]' "
        "}}{% else %}{{ m.content.lstrip() + eos_token }}{% endif %}{% endfor %}"
    ),
    "tools": (
        "{%- if tools %}{{ tools | tojson }}{%- endif %}{%- for message in messages %}"
        "{%- if message.role == 'user' or (message.role == 'assistant' and not message.tool_calls)"
        " %}{{- '<' + message.role + '>' + message.content + '</>' }}"
        "{%- elif message.role == 'assistant' %}{%- if message.content %}{{- message.content }}"
        "{%- endif %}{%- for call in message.tool_calls %}{{- call.name }}{%- endfor %}"
        "{%- else %}{%- if loop.previtem is defined %}{{- loop.previtem.content }}{%- endif %}"
        "{{- message.content is string }}{%- endif %}{%- if loop.last %}{% break %}{% endif %}"
        "{%- endfor %}"
    ),
    "namespace": (
        "{% set ns = namespace(said='', turn=none) %}{% for m in messages if m.role != 'system' %}"
        "{% set ns.said = ns.said + m.content %}{% set ns.turn = m %}{% endfor %}"
        "{{ ns.said }}|{{ ns.turn.content | trim }}|{{ messages | length }}|{{ messages[-1].role }}"
    ),
}
LOOKS = {
    "in": "{% for m in messages %}{{ 'yes' if 'a' in m.content else m.content }}{% endfor %}",
    "equal": "{% for m in messages %}{{ m.content == 'a' }}{% endfor %}",
    "split": "{% for m in messages %}{{ m.content.split('a')[-1] }}{% endfor %}",
    "upper": "{% for m in messages %}{{ m.content | upper }}{% endfor %}",
    "length": "{% for m in messages %}{{ m.content | length }}{% endfor %}",
    "letter": "{% for m in messages %}{{ m.content[0] }}{% endfor %}",
    "letters": "{% for m in messages %}{% for c in m.content %}{{ c }}-{% endfor %}{% endfor %}",
    "strip letters": "{% for m in messages %}{{ m.content.strip('a') }}{% endfor %}",
    "trim letters": "{% for m in messages %}{{ m.content | trim('a') }}{% endfor %}",
    "trim a sum": "{% for m in messages %}{{ (m.content + ' ') | trim }}{% endfor %}",
    "json": "{{ messages | tojson }}",
    "whole": "{{ messages[0] }}",
    "get": "{{ messages[0].get('content') | upper }}",
    "items": "{% for k, v in messages[0].items() %}{{ v | upper }}{% endfor %}",
    "values": "{{ messages[0].values() | list | upper }}",
    "key by name": "{% set k = 'content' %}{{ messages[0][k] | length }}",
    "key by sum": "{{ messages[0]['con' + 'tent'] | length }}",
    "key by loop": "{% set loop = {'x': 'content'} %}{{ messages[0][loop.x] | length }}",
    "attr": "{{ messages[0] | attr('content') }}",
    "map": "{{ messages | map(attribute='content') | join }}",
    "name": "{% set a = messages %}{% set b = a[0] %}{% set c = b.content %}{{ c | upper }}",
    "later": (
        "{% set ns = namespace(x='') %}{% for m in messages %}{{ ns.x | upper }}"
        "{% set ns.x = m.content %}{% endfor %}"
    ),
    "alias": "{% set a = namespace(x='') %}{% set b = a %}{% set a.x = messages[0].content %}"
    "{{ b.x | upper }}",
    "hidden alias": "{% set a = none or namespace(x='') %}{% set b = a %}"
    "{% set a.x = messages[0].content %}{{ b.x | upper }}",
    "mixed alias": "{% set a = none or namespace(x='') %}{% set b = namespace() %}{% set b = a %}"
    "{% set b.x = messages[0].content %}{{ a.x | upper }}",
    "neighbour": "{% for m in messages %}{% if not loop.last %}{{ loop.nextitem.content | upper }}"
    "{% endif %}{% endfor %}",
    "changed": "{% for m in messages %}{{ loop.changed(m.content) }}{% endfor %}",
    "list": "{{ [messages[0].content] }}",
    "dict": "{{ dict(messages[0], role='x').content | upper }}",
    "format": "{{ '%s' % messages[0].content }}{{ '{}'.format(messages[0].content) }}",
    "set block": "{% set x %}{{ messages[0].content }}{% endset %}{{ x | upper }}",
    "filter block": "{% filter upper %}{{ messages[0].content }}{% endfilter %}",
    "macro": "{% macro f(x) %}{{ x | upper }}{% endmacro %}{{ f(messages[0].content) }}",
    "with": "{% with x = messages[0].content %}{{ x | upper }}{% endwith %}",
    "context": "{{ context | upper }}" + BODY,
    "error": "{% if messages[0].content < 'b' %}{{ raise_exception('no') }}{% endif %}" + BODY,
    "random": "{{ [1, 1] | random }}" + BODY,
    "several": WITH_END + BODY,
    "too often": "{% for i in range(9) %}{{ messages[0].content }}{% endfor %}",
}

texts = st.text(
    alphabet=st.sampled_from("ab \n\t\u00a0'{}%é\ufdd0\ufdd1\ufdd2\ufdd3:0s"), max_size=8
) | st.sampled_from(["a", " a ", "\ufdd0<s>\ufdd1", "\n", ""])
roles = st.lists(st.sampled_from(["user", "assistant"]), min_size=1, max_size=4)


@st.composite
def rows(draw: st.DrawFn) -> Row:
    order = [*draw(st.sampled_from([[], ["system"]])), *draw(roles)]
    turns = [{"role": role, "content": draw(texts)} for role in order]
    cuts = draw(st.lists(st.integers(0, len(turns)), max_size=2, unique=True).map(sorted))
    return {"messages": turns, "context": draw(st.none() | texts), "cuts": cuts}


@pytest.mark.parametrize("source", [*OPAQUE.values(), *LOOKS.values()], ids=[*OPAQUE, *LOOKS])
@settings(deadline=None, max_examples=60, derandomize=True)
@given(asked=st.lists(rows(), min_size=1, max_size=12))
def test_every_row_is_as_the_template_renders_it(source: str, asked: list[Row]) -> None:
    """Whatever the template does and the texts are; the second time from remembered shapes."""

    def whole(some: Sequence[Row]) -> Reply:
        return render_trusted(source, VARIABLES, some)

    shapes = Shapes(source)
    expected = [*whole(asked).rows]
    # other texts in the same shapes first
    plain = [
        {**row, "messages": [{**turn, "content": "b"} for turn in row["messages"]]} for row in asked
    ]
    shapes.render(plain, whole)
    assert shapes.render(asked, whole) == expected
    assert shapes.render(asked, whole) == expected


def asked_for(source: str) -> int:
    """How many rows of four of one shape the template itself renders, once it knows the shape."""
    shapes, count = Shapes(source), 0

    def whole(some: Sequence[Row]) -> Reply:
        nonlocal count
        count += len(some)
        return render_trusted(source, VARIABLES, some)

    for text in "abcd":
        turns = [{"role": "user", "content": text}, {"role": "assistant", "content": f" {text}"}]
        shapes.render([{"messages": turns, "context": None, "cuts": [1]}], whole)
    return count


@pytest.mark.parametrize("name", OPAQUE)
def test_a_template_that_only_carries_texts_is_rendered_once_for_a_shape(name: str) -> None:
    """The first row, and its shape."""
    assert is_opaque(OPAQUE[name])
    assert asked_for(OPAQUE[name]) == (5 if name == "namespace" else 2)  # its prompt is no prefix


@pytest.mark.parametrize("name", LOOKS)
def test_a_template_that_may_look_into_texts_renders_every_row(name: str) -> None:
    """Also where it goes about it in a hidden way."""
    assert asked_for(LOOKS[name]) >= 4
    assert not is_opaque(LOOKS[name]) or name == "too often"


@pytest.mark.parametrize("text", ["{{ '\\ufdd20:\\ufdd3' }}", "\ufdd20:\ufdd3", "\ufdd3"])
def test_a_template_cannot_write_a_hole(text: str) -> None:
    """What looks like one in its own text stays as it is."""
    turns = [{"role": "user", "content": "x"}]
    row: Row = {"messages": turns, "context": None, "cuts": []}
    shapes = Shapes(text + BODY)
    for _ in range(2):
        (found,) = shapes.render([row], lambda some: render_trusted(text + BODY, VARIABLES, some))
        assert found == render_trusted(text + BODY, VARIABLES, [row]).rows[0]


def test_shapes_are_learned_up_to_a_number() -> None:
    """Conversations of any number of turns take bounded memory."""
    shapes = Shapes(CHATML)

    def whole(some: Sequence[Row]) -> Reply:
        return render_trusted(CHATML, VARIABLES, some)

    for count in range(1, 1200, 7):
        turns = [{"role": "user", "content": "x"}] * count
        some: list[Row] = [
            {"messages": turns, "context": None, "cuts": [cut]} for cut in range(min(count, 8))
        ]
        assert shapes.render(some, whole) == [*whole(some).rows]
    assert len(shapes._known) == 1024
