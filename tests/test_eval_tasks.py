"""lm-eval on a loaded model: without the extra a clear error, with it the same numbers as ours."""

import importlib.util
import json
import math
import sys

import pytest
import torch

from halfbyte.data.records import Message
from halfbyte.data.templates import Template
from halfbyte.errors import InputError, MissingError
from halfbyte.evaluate.runner import Subject
from halfbyte.evaluate.tasks import run_tasks
from halfbyte.infer import Engine
from tests.tiny import tiny_model, tiny_tokenizer

needs_lm_eval = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="the extra lm-eval is not installed"
)


@pytest.fixture(scope="module")
def parts():
    model, tokenizer = tiny_model(), tiny_tokenizer()
    subject = Subject("tiny", model, Engine(model, tokenizer))
    return subject, tokenizer, Template.load("auto", tokenizer)


def test_missing_extra_is_named(parts, monkeypatch):
    """Without lm-eval the error says what to install."""
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(MissingError, match="lm-eval extra is missing") as caught:
        run_tasks(*parts, ["x.yaml"])
    assert "halfbyte[lm-eval]" in caught.value.hint


@needs_lm_eval
def test_missing_task_file_is_named(parts):
    """A file that is not there is an input error."""
    with pytest.raises(InputError, match=r"none\.yaml: no such file"):
        run_tasks(*parts, ["none.yaml"])


@needs_lm_eval
@pytest.mark.peer
def test_local_tasks_work_offline(parts, tmp_path, monkeypatch):
    """A multiple-choice task and a generation task from local files: the choice lm-eval finds is
    the one with the higher likelihood in a plain forward pass, and answers are the engine's."""
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    rows = [{"q": f"Question {i}?", "choices": ["alpha", "beta"], "gold": i % 2} for i in range(4)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = (
        f"dataset_path: json\ndataset_kwargs:\n  data_files: {{test: {tmp_path}/rows.jsonl}}\n"
        "test_split: test\ndoc_to_text: '{{q}}'\n"
    )
    (tmp_path / "mc.yaml").write_text(
        f"task: tiny_mc\n{common}output_type: multiple_choice\ndoc_to_choice: choices\n"
        "doc_to_target: gold\nmetric_list:\n  - metric: acc\n"
    )
    (tmp_path / "gen.yaml").write_text(
        f"task: tiny_gen\n{common}output_type: generate_until\n"
        "doc_to_target: '{{choices[gold]}}'\nmetric_list:\n  - metric: exact_match\n"
        "generation_kwargs: {until: ['zzz'], max_gen_toks: 4}\n"
    )
    found = run_tasks(*parts, [str(tmp_path / "mc.yaml"), str(tmp_path / "gen.yaml")])
    assert found["results"]["tiny_mc"]["acc,none"] == pytest.approx(plain_accuracy(parts, rows))
    assert math.isfinite(found["results"]["tiny_gen"]["exact_match,none"])


def plain_accuracy(parts, rows):
    subject, tokenizer, template = parts
    hits = 0
    for row in rows:
        prompt = template.prompt_text([Message("user", row["q"])])
        values = []
        for choice in row["choices"]:
            context = tokenizer(prompt)["input_ids"]
            whole = tokenizer(prompt + choice)["input_ids"]
            with torch.no_grad():
                logits = subject.model(input_ids=torch.tensor([whole])).logits[0].log_softmax(-1)
            values.append(
                sum(logits[i - 1, whole[i]].item() for i in range(len(context), len(whole)))
            )
        hits += values.index(max(values)) == row["gold"]
    return hits / len(rows)
