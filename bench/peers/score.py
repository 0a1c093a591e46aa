"""The held-out loss of adapters in PEFT's format: one measure for all who made one.

    python score.py JOB ADAPTER...

The base is held in NF4 as in training, products are in float32, and every row counts alone.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from job import answer, read_job

from halfbyte.config import load_config
from halfbyte.data.prepare import prepare_rows
from halfbyte.evaluate.runner import Subject, likelihoods
from halfbyte.model import bases
from halfbyte.model.adapters import load
from halfbyte.model.load import form_of, load_base


def main() -> None:
    job = read_job()
    words = ("method=qlora", "model.compute=fp32", f"model.base={job.base}", "data.skip_bad=true")
    words += ("data.template=tokenizer", f"data.max_length={job.max_length}")
    config = load_config(None, words).config
    base = bases.resolve(config.model.base)
    tokenizer = bases.load_tokenizer(base)
    held = prepare_rows(job.held_out, config.data, tokenizer, bases.cache_dir())
    rows = [held.rows[place] for place in range(len(held.rows))]
    model = load_base(base, form_of(config))
    losses = {"base": mean(Subject("base", model, None, None), rows)}
    for number, folder in enumerate(sys.argv[2:]):
        name = f"peer{number}"
        model = load(model, Path(folder), name)
        losses[folder] = mean(Subject(name, model, None, name), rows)
    answer(losses=losses, rows=len(rows))


def mean(subject: Subject, rows: list) -> float:
    with torch.no_grad():
        found = [one for one in likelihoods(subject, rows) if one is not None]
    return sum(one.nll for one in found) / sum(one.tokens for one in found)


if __name__ == "__main__":
    sys.exit(main())
