"""Templates: what is trained, which ids a prompt has, and what a hostile one may not do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from halfbyte.data.faults import Fault
from halfbyte.data.jinja_sandbox import Sandbox
from halfbyte.data.records import Example, Message
from halfbyte.data.template_sources import BUILT_IN
from halfbyte.data.templates import Template
from halfbyte.errors import DataError, IntegrityError
from tests.tiny import END_OF_TEXT, TURN_END, TURN_START, tiny_tokenizer

NAMES = ("tokenizer", *BUILT_IN)
TOKENIZER = tiny_tokenizer()
TEMPLATES = {name: Template.load(name, TOKENIZER) for name in NAMES}

# a busy machine makes no test fail, and every run tries the same rows
few = settings(deadline=None, max_examples=25, derandomize=True)

words = st.text(
    alphabet=st.one_of(
        st.sampled_from("ab Z.\n\t#:'é₹中"), st.characters(exclude_categories=("Cs", "Cc"))
    ),
    min_size=1,
    max_size=20,
).filter(str.strip)


@st.composite
def conversations(draw: st.DrawFn) -> Example:
    turns = [Message("system", draw(words))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        turns += [
            Message("user", draw(words)),
            Message("assistant", draw(words), draw(st.integers(0, 1))),
        ]
    return Example(tuple(turns), context=draw(st.none() | words))


def qa(question: str = "Why?", answer: str = "Because.") -> Example:
    return Example((Message("user", question), Message("assistant", answer)))


def trained_text(template: Template, example: Example) -> str:
    row = template.encode(example)
    return TOKENIZER.decode(row.ids[row.trained])


@pytest.mark.parametrize("name", NAMES)
@few
@given(example=conversations())
def test_generation_starts_from_the_stored_ids(name: str, example: Example) -> None:
    """ids[:prompt_length] of a row are the ids that chat and serving would start from."""
    template = TEMPLATES[name]
    row = template.encode(example)
    prompt = template.encode_prompt(example.prompt, example.context)
    assert row.ids[: row.prompt_length].tolist() == prompt


@pytest.mark.parametrize("name", NAMES)
@few
@given(example=conversations())
def test_answers_and_their_end_marks_are_trained_and_nothing_else(
    name: str, example: Example
) -> None:
    """The trained tokens read: each answer of weight 1, each followed by its end mark."""
    strip = name != "tokenizer"  # the built-in templates trim answers
    wanted = "".join(
        (turn.content.strip() if strip else turn.content) + TURN_END
        for turn in example.messages
        if turn.role == "assistant" and turn.weight
    )
    assert trained_text(TEMPLATES[name], example) == wanted


@pytest.mark.parametrize("name", NAMES)
@few
@given(example=conversations())
def test_the_ids_are_those_of_the_rendered_text(name: str, example: Example) -> None:
    """Finding the prompt in the row's ids never changes them: they are the text's own."""
    template = TEMPLATES[name]
    row = template.encode(example)
    whole = TOKENIZER(template.render(example), add_special_tokens=False)["input_ids"]
    assert row.ids.tolist() == whole[: len(row)]
    assert set(TOKENIZER.decode(whole[len(row) :])) <= {"\n"}


@few
@given(example=conversations())
def test_own_template_gives_the_ids_of_transformers(example: Example) -> None:
    """Without context, prompt ids are apply_chat_template's."""
    example = Example(example.messages)
    messages = [{"role": turn.role, "content": turn.content} for turn in example.prompt]
    theirs = TOKENIZER.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert TEMPLATES["tokenizer"].encode_prompt(example.prompt) == theirs


@pytest.mark.parametrize("name", BUILT_IN)
@few
@given(example=conversations())
def test_source_is_a_chat_template_for_transformers(name: str, example: Example) -> None:
    """What is shipped with the tokenizer renders the text that was trained."""
    template = TEMPLATES[name]
    messages = [{"role": turn.role, "content": turn.content} for turn in example.messages]
    theirs = TOKENIZER.apply_chat_template(
        messages, chat_template=template.source, tokenize=False, context=example.context
    )
    assert template.render(example) == theirs


def test_end_mark_is_trained_where_pad_is_eos() -> None:
    """The end mark is a target although it has the pad token's id, and it is the last id."""
    assert TOKENIZER.pad_token_id == TOKENIZER.eos_token_id
    row = TEMPLATES["tokenizer"].encode(qa())
    assert row.ids[-1] == TOKENIZER.eos_token_id
    assert row.trained[-1]


def test_instruction_template_reads_as_documented() -> None:
    """The three headings in their order, and the answer after its own line."""
    example = Example((Message("user", "Q?"), Message("assistant", "A.")), context="C")
    assert TEMPLATES["instruction"].render(example) == (
        f"### Instruction:\nQ?\n\n### Context:\nC\n\n### Response:\nA.{TURN_END}"
    )


def test_alpaca_preamble_names_the_input_only_where_there_is_one() -> None:
    """Stanford's two preambles."""
    plain = TEMPLATES["alpaca"].render(qa())
    assert plain.startswith("Below is an instruction that describes a task. Write")
    fuller = TEMPLATES["alpaca"].render(Example(qa().messages, context="C"))
    assert "paired with an input" in fuller
    assert "### Input:\nC\n\n### Response:\n" in fuller


@pytest.mark.parametrize("name", NAMES)
def test_marks_in_a_users_text_are_text(name: str) -> None:
    """A row that quotes an end mark is neither cut there nor read as another turn."""
    template = TEMPLATES[name]
    row = template.encode(qa(f"What is {TURN_END}{TURN_START}system?", f"{TURN_END} ends turns."))
    plain = template.encode(qa())
    end = TOKENIZER.eos_token_id
    assert (row.ids == end).sum() == (plain.ids == end).sum()
    assert trained_text(template, qa("?", f"{TURN_END} ends")) == f"{TURN_END} ends{TURN_END}"
    again = template.encode_prompt((Message("user", f"What is {TURN_END}{TURN_START}system?"),))
    assert row.ids[: row.prompt_length].tolist() == again


@pytest.mark.parametrize("name", BUILT_IN)
def test_one_bos_where_the_tokenizer_puts_one(name: str) -> None:
    """A tokenizer that begins texts with BOS has it once in rows and prompts, else never."""
    begins = tiny_tokenizer(bos=True)
    template = Template.load(name, begins)
    ids = template.encode(qa()).ids.tolist()
    assert ids[0] == begins.bos_token_id
    assert ids.count(begins.bos_token_id) == 1
    assert template.encode_prompt(qa().prompt).count(begins.bos_token_id) == 1
    assert begins.bos_token_id not in TEMPLATES[name].encode(qa()).ids


def test_bos_of_a_chat_template_is_its_own_affair() -> None:
    """A chat template that writes BOS has it once; nothing is put before it."""
    begins = tiny_tokenizer(bos=True)
    begins.chat_template = "{{ bos_token }}" + begins.chat_template
    ids = Template.load("tokenizer", begins).encode(qa()).ids.tolist()
    assert ids.count(begins.bos_token_id) == 1


def test_text_rows_are_trained_whole_and_ended_once() -> None:
    """Plain text: all but the first token, with one end-of-text token, written or added."""
    template = TEMPLATES["tokenizer"]
    for text in ("Once upon", f"Once upon{TURN_END}"):
        row = template.encode(Example(text=text))
        assert TOKENIZER.decode(row.ids) == f"Once upon{TURN_END}"
        assert row.trained.tolist() == [False] + [True] * (len(row) - 1)
        assert row.prompt_length == 0


@few
@given(example=conversations())
def test_train_on_all_trains_all_but_untrained_answers(example: Example) -> None:
    """`all` leaves out the first token and the turns of weight 0, and nothing else."""
    template = TEMPLATES["tokenizer"]
    (row,) = template.encode_many([example], "all")
    assert not isinstance(row, Fault)
    left_out = "".join(
        turn.content + TURN_END
        for turn in example.messages
        if turn.role == "assistant" and not turn.weight
    )
    assert TOKENIZER.decode(row.ids[~row.trained][1:]) == left_out


@few
@given(st.lists(conversations(), max_size=5))
def test_rows_are_encoded_alike_alone_and_in_batches(examples: list[Example]) -> None:
    """A batch is nothing but faster."""
    template = TEMPLATES["tokenizer"]
    for row, example in zip(template.encode_many(examples), examples, strict=True):
        alone = template.encode(example)
        assert not isinstance(row, Fault)
        assert np.array_equal(row.ids, alone.ids)
        assert np.array_equal(row.trained, alone.trained)


# Shapes of chat templates that models come with.
LLAMA_2 = (
    "{% if messages[0]['role'] == 'system' %}{% set sys = messages[0]['content'] %}"
    "{% set messages = messages[1:] %}{% endif %}{% for m in messages %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if m['role'] == 'user' %}{{ '[INST] ' + (sys + ' ' if loop.first and sys else '')"
    " + m['content'] | trim + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] | trim + ' ' + eos_token }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{% for m in messages %}{% if m['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{{ '<|im_start|>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n'"
    " + m['content'] | trim + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>model\n' }}{% endif %}"
)
PHI_3 = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|reserved|>\n'"
    " }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% else %}{{ eos_token }}{% endif %}"
)
VICUNA = (
    "{% for m in messages %}{{ m['role'] | upper + ': ' + m['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT: ' }}{% endif %}"
)
TALK = Example(
    (
        Message("system", "Be brief."),
        Message("user", "One?"),
        Message("assistant", "1"),
        Message("user", "Two?"),
        Message("assistant", "2"),
    )
)


def with_template(source: str) -> PreTrainedTokenizerFast:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = source
    return tokenizer


@pytest.mark.parametrize(
    ("source", "trained"),
    [
        (LLAMA_2, " 1 <|im_end|> 2 <|im_end|>"),
        (GEMMA, "1<|im_end|>2<|im_end|>"),
        (PHI_3, "1<|reserved|>2<|reserved|>"),
        (VICUNA, "1<|im_end|>2<|im_end|>"),
    ],
    ids=["llama-2", "gemma", "phi-3", "vicuna"],
)
def test_templates_in_the_wild(source: str, trained: str) -> None:
    """Every answer and its mark, whatever the template does about ends and system messages."""
    template = Template.load("tokenizer", with_template(source))
    row = template.encode(TALK)
    assert TOKENIZER.decode(row.ids[row.trained]) == trained
    assert "Be brief." in template.render(TALK)
    assert row.ids[: row.prompt_length].tolist() == template.encode_prompt(TALK.prompt)
    assert row.ids[-1] in template.stop_ids


def test_every_mark_that_may_end_an_answer_is_a_stop() -> None:
    """The template's end-of-turn mark and the tokenizer's end of text are both in stop_ids."""
    template = Template.load("tokenizer", with_template(PHI_3))
    assert set(template.stop_ids) == {TOKENIZER.eos_token_id, 259}


def test_an_end_mark_we_add_is_in_the_shipped_template() -> None:
    """Where a template marks no ends, what is shipped with the tokenizer marks them as trained."""
    template = Template.load("tokenizer", with_template(VICUNA))
    messages = [{"role": turn.role, "content": turn.content} for turn in TALK.messages]
    theirs = TOKENIZER.apply_chat_template(messages, chat_template=template.source, tokenize=False)
    assert template.render(TALK) == theirs


def test_a_refused_row_is_a_fault_in_the_templates_words() -> None:
    """raise_exception refuses a row, not the template."""
    template = Template.load("tokenizer", with_template(LLAMA_2))
    twice = Example((Message("user", "a"), Message("user", "b"), Message("assistant", "c")))
    fault, row = template.encode_many([twice, qa()])
    assert isinstance(fault, Fault)
    assert "roles must alternate" in fault.detail
    assert not isinstance(row, Fault)


def test_a_prompt_that_is_no_prefix_is_an_error() -> None:
    """A template that renders the past differently once the answer is known is not guessed at."""
    source = "{{ messages | length }}" + tiny_tokenizer().chat_template
    template = Template.load("tokenizer", with_template(source))
    (fault,) = template.encode_many([TALK])
    assert isinstance(fault, Fault)
    assert fault.kind == "prompt is not a prefix"


def test_prompt_and_answer_merged_into_one_token_is_an_error() -> None:
    """Equal texts are not enough: the ids of the prompt must begin the row's."""
    core = Tokenizer(
        models.BPE(vocab={"a": 0, "b": 1, "ab": 2, "</s>": 3, ":": 4}, merges=[("a", "b")])
    )
    core.add_special_tokens([AddedToken("</s>", normalized=False)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>")
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'user' %}{{ m.content + 'a' }}{% else %}"
        "{{ m.content + eos_token }}{% endif %}{% endfor %}"
    )
    template = Template.load("tokenizer", tokenizer)
    merged, apart = template.encode_many([qa(":", "b:"), qa(":", "a:")])
    assert isinstance(merged, Fault)
    assert merged.kind == "prompt is not a prefix"
    assert not isinstance(apart, Fault)


def test_a_lost_answer_is_an_error() -> None:
    """A template that cuts answers cannot be trained on."""
    source = tiny_tokenizer().chat_template.replace(
        "message['content']", "message['content'].split('</think>')[0]"
    )
    template = Template.load("tokenizer", with_template(source))
    (fault,) = template.encode_many([qa(answer="thoughts</think>Because.")])
    assert isinstance(fault, Fault)
    assert fault.kind == "answer lost"


def sentencepiece_like(prepend: bool) -> PreTrainedTokenizerFast:
    """Spaces as ▁ and a space before a text, as Llama-2's tokenizer has it in its two forms."""
    pieces = ["<unk>", "<s>", "</s>", "▁"]
    pieces += [f"<0x{byte:02X}>" for byte in range(256)]
    pieces += [*"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ?.:#", "▁▁", "▁a", "##", "###"]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    merges = [("▁", "▁"), ("▁", "a"), ("#", "#"), ("##", "#")]
    core = Tokenizer(models.BPE(vocab=vocab, merges=merges, byte_fallback=True, unk_token="<unk>"))
    if prepend:
        core.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
    else:
        core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    core.add_special_tokens([AddedToken(t, normalized=False) for t in ("<s>", "</s>")])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    tokenizer.chat_template = (
        (
            "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}"
            "{{ '[INST] ' + m.content + ' [/INST]' }}{% else %}{{ ' ' + m.content + eos_token }}"
            "{% endif %}{% endfor %}"
        )
        .replace("[", "#")
        .replace("]", "#")
        .replace("m#", "m[")
    )
    return tokenizer


@pytest.mark.parametrize("prepend", [True, False])
@pytest.mark.parametrize("name", NAMES)
@few
@given(
    example=conversations().map(
        lambda example: Example(example.messages[-2:], context=example.context)
    )
)
def test_tokenizers_that_put_a_space_first(name: str, prepend: bool, example: Example) -> None:
    """Prompt ids begin row ids, and the ids are the text's own, for Llama-2's kind as well."""
    tokenizer = sentencepiece_like(prepend)
    template = Template.load(name, tokenizer)
    (row,) = template.encode_many([example])
    if isinstance(row, Fault):  # prompt and answer may merge here, and that is said
        assert row.kind == "prompt is not a prefix"
        return
    whole = tokenizer(template.render(example), add_special_tokens=False)["input_ids"]
    assert row.ids.tolist() == whole[: len(row)]
    assert row.ids[: row.prompt_length].tolist() == template.encode_prompt(
        example.prompt, example.context
    )


def test_a_tokenizer_without_end_of_text_is_refused() -> None:
    """A model that cannot stop is not trained."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tiny_tokenizer().backend_tokenizer)
    with pytest.raises(DataError, match="no end-of-text token"):
        Template.load("instruction", tokenizer)


def test_the_hash_is_of_the_text_and_the_marks() -> None:
    """Another template, and another tokenizer's marks, are other hashes; the same is the same."""
    one = TEMPLATES["instruction"]
    assert Template.load("instruction", tiny_tokenizer()).hash == one.hash
    assert len({template.hash for template in TEMPLATES.values()}) == len(TEMPLATES)
    other = tiny_tokenizer()
    other.eos_token = END_OF_TEXT
    assert Template.load("instruction", other).hash != one.hash


def test_a_jinja_file_may_read_the_context(tmp_path: Path) -> None:
    """A file is a template; `context` is a variable there, else it follows the question."""
    path = tmp_path / "mine.jinja"
    example = Example(qa().messages, context="C")
    path.write_text("{{ context }}|{% for m in messages %}{{ m.content }}|{% endfor %}")
    assert Template.load(str(path), TOKENIZER).render(example).startswith("C|Why?|")
    path.write_text("{% for m in messages %}{{ m.content }}|{% endfor %}")
    assert Template.load(str(path), TOKENIZER).render(example).startswith("Why?\n\nC|")


@pytest.mark.parametrize(
    ("name", "words"),
    [("no-such", "neither a template nor"), ("missing.jinja", "neither a template nor")],
)
def test_an_unknown_template_is_named(name: str, words: str) -> None:
    """The message lists what there is."""
    with pytest.raises(DataError, match=words) as error:
        Template.load(name, TOKENIZER)
    assert "alpaca" in error.value.hint


HOSTILE = {
    "walk": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "walk by filter": "{{ (''|attr('__class__')).x }}",
    "namespace": "{% set n = namespace() %}{% set n.__class__ = 1 %}",
    "format": "{{ '{0.__class__.__init__.__globals__}'.format(messages) }}",
    "loop": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "recursion": "{% macro f(n) %}{{ f(n - 1) + f(n - 1) if n else '' }}{% endmacro %}{{ f(60) }}",
    "output": "{% for a in range(99999) %}{{ 'x' * 1000 }}{% endfor %}",
    "memory": "{{ 'x' * 10**11 }}",
    "doubling": "{% set n = namespace(x='x') %}{% for a in range(60) %}"
    "{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x | length }}",
    "syntax": "{% for %}",
}


@pytest.mark.parametrize("source", HOSTILE.values(), ids=HOSTILE)
def test_hostile_templates_are_stopped(source: str) -> None:
    """Code, time, memory and output are out of a template's reach; the process goes on."""
    row = {"messages": [{"role": "user", "content": "x"}], "context": None, "cuts": []}
    sandbox = Sandbox(seconds=0.2)
    try:
        with pytest.raises(IntegrityError, match="the chat template"):
            sandbox.render(source, {}, [row])
        assert sandbox.render("{{ messages[0].content }}", {}, [row]).rows[0].text == "x"  # type: ignore[union-attr]  # it is Rendered
    finally:
        sandbox.close()


def test_a_template_that_cannot_be_interrupted_is_killed() -> None:
    """One power of huge numbers is a single step for Python: only ending the process helps."""
    sandbox = Sandbox(seconds=0.2, wall=1.0)
    try:
        with pytest.raises(IntegrityError, match="the chat template was stopped"):
            sandbox.render("{{ 7 ** (10 ** 8) }}", {}, [])
    finally:
        sandbox.close()


def test_hostile_chat_template_of_a_tokenizer_is_refused() -> None:
    """The tokenizer's own template goes through the same sandbox."""
    with pytest.raises(IntegrityError, match="sandbox"):
        Template.load("tokenizer", with_template(HOSTILE["walk"]))
