"""The built-in templates, and what is put around a foreign one so that it keeps our promises.

Each is Jinja in the dialect of transformers' chat templates, so that the very text that was
trained can be shipped with the tokenizer. They read `context` beside `messages`. Answers are
trimmed: a prompt ends with a line break, and an answer that began with white space would merge
with it into other tokens.
"""

from __future__ import annotations

from typing import Final

_TURN: Final = """\
{%- elif message['role'] == 'user' -%}
  {{- '### Instruction:\\n' + message['content'] | trim + '\\n\\n' -}}
  {%- if given.context -%}
    {{- '### CONTEXT:\\n' + given.context | trim + '\\n\\n' -}}
    {%- set given.context = none -%}
  {%- endif -%}
{%- else -%}
  {{- '### Response:\\n' + message['content'] | trim + eos_token -}}
  {%- if not loop.last %}{{ '\\n\\n' }}{% endif -%}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '### Response:\\n' }}{% endif -%}"""

_INSTRUCTION: Final = """\
{%- set given = namespace(context=context) -%}
{%- for message in messages -%}
{%- if message['role'] == 'system' -%}
  {{- message['content'] | trim + '\\n\\n' -}}
""" + _TURN.replace("CONTEXT", "Context")

# https://github.com/tatsu-lab/stanford_alpaca, with the line break after "Response:" that those who
# use the format have settled on; a row's own system message takes the place of the preamble.
_ALPACA: Final = """\
{%- set given = namespace(context=context) -%}
{%- if messages[0]['role'] != 'system' -%}
  {{- 'Below is an instruction that describes a task' -}}
  {{- ', paired with an input that provides further context' if context else '' -}}
  {{- '. Write a response that appropriately completes the request.\\n\\n' -}}
{%- endif -%}
{%- for message in messages -%}
{%- if message['role'] == 'system' -%}
  {{- message['content'] | trim + '\\n\\n' -}}
""" + _TURN.replace("CONTEXT", "Input")

_PLAIN: Final = """\
{%- set given = namespace(context=context) -%}
{%- for message in messages -%}
{%- if message['role'] == 'system' -%}
  {{- message['content'] | trim + '\\n\\n' -}}
{%- elif message['role'] == 'user' -%}
  {{- message['content'].rstrip() -}}
  {%- if given.context -%}
    {{- '\\n\\n' + given.context.rstrip() -}}
    {%- set given.context = none -%}
  {%- endif -%}
  {{- '\\n' -}}
{%- else -%}
  {{- message['content'] | trim + eos_token -}}
  {%- if not loop.last %}{{ '\\n' }}{% endif -%}
{%- endif -%}
{%- endfor -%}"""

BUILT_IN: Final = {"instruction": _INSTRUCTION, "alpaca": _ALPACA, "plain": _PLAIN}

# A model that has not learned to stop goes on with the next block.
STOP_STRINGS: Final = {
    "instruction": ("\n### Instruction:",),
    "alpaca": ("\n### Instruction:",),
    "plain": (),
}

WITH_BOS: Final = "{{ bos_token }}"
# For a template that does not mark where an answer ends: the end-of-text token does.
WITH_END: Final = """\
{%- set marked = namespace(messages=[]) -%}
{%- for message in messages -%}
  {%- if message['role'] == 'assistant' -%}
    {%- set message = dict(message, content=message['content'] + eos_token) -%}
  {%- endif -%}
  {%- set marked.messages = marked.messages + [message] -%}
{%- endfor -%}
{%- set messages = marked.messages -%}
"""
