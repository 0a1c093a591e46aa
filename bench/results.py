"""The tables of docs/results.md: five data sets, each from its rows to its report by one command.

    python bench/results.py ../shared/data              # all of them, and docs/results.md anew
    python bench/results.py ../shared/data hinglish     # one of them

Every run stays under `--runs`, with its report; a data set whose run is there already is not run
again, so that a stopped measurement goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

DOCS = Path(__file__).resolve().parent.parent / "docs" / "results.md"
COMMON = ("train.tensorboard=false",)


@dataclass(frozen=True, slots=True)
class Task:
    """One data set: its settings, and the scores that its table shows beside the headline."""

    name: str
    title: str
    words: tuple[str, ...]
    scores: tuple[str, ...]
    remark: str


TASKS = (
    Task(
        "rotten_tomatoes",
        "Rotten Tomatoes: good or bad (150 rows trained, 50 scored)",
        (
            "data.train={data}/p3_rotten_tomatoes_Reviewer_Opinion_bad_good_choices.jsonl",
            "data.valid_size=50",
            "train.epochs=2",
            "eval.max_new_tokens=16",
        ),
        ("label_accuracy", "exact_match", "perplexity", "stopped", "retention_perplexity"),
        "All 200 rows of this file have the label `good`. What is learned is to give the bare "
        "label and stop; whether the model can tell good from bad, these rows cannot show.",
    ),
    Task(
        "ag_news",
        "AG News: the topic of a piece of news (150 rows trained, 50 scored)",
        (
            "data.train={data}/p3_ag_news_classify_with_choices_question_first.jsonl",
            "data.valid_size=50",
            "train.learning_rate=1e-3",
            "train.epochs=3",
            "eval.max_new_tokens=16",
        ),
        ("label_accuracy", "macro_f1", "exact_match", "perplexity", "retention_perplexity"),
        "The file holds two of the four labels: 122 rows of `Science and technology` and 78 of "
        "`Business`. Always answering the first would be right in about 61 % of rows.",
    ),
    Task(
        "adversarial_qa",
        "AdversarialQA: an answer out of a passage (200 rows trained, 100 scored)",
        (
            "data.train={data}/p3_adversarial_qa_dbert_answer_the_following_q.jsonl",
            "data.valid={data}/p3_adversarial_qa_dbidaf_answer_the_following_q.jsonl",
            "data.max_length=768",
            "train.learning_rate=1e-3",
            "train.epochs=3",
            "eval.max_new_tokens=32",
        ),
        ("exact_match", "f1", "contains", "context_support", "perplexity", "retention_perplexity"),
        "Questions written so that a trained reader fails on them; the held-out file comes from "
        "another adversary. Extracting the answer is hard for 135 million weights.",
    ),
    Task(
        "hinglish",
        "Hinglish: say it in mixed Hindi and English (1,200 rows trained once, 80 scored)",
        (
            "data.train={data}/hinglish_train.jsonl",
            "data.valid={data}/hinglish_test.jsonl",
            "data.limit=1200",
            "data.leakage=drop",
            "train.learning_rate=1e-3",
            "train.epochs=1",
            "eval.rows=80",
            "eval.max_new_tokens=48",
        ),
        ("chrf", "bleu", "code_mixing", "perplexity", "stopped", "retention_perplexity"),
        "",
    ),
    Task(
        "gsm8k",
        "GSM8K: school mathematics in steps (300 rows trained once, 60 scored)",
        (
            "data.train={data}/gsm8k_train.jsonl",
            "data.limit=360",
            "data.valid_size=60",
            "train.learning_rate=1e-3",
            "train.epochs=1",
            "eval.rows=60",
            "eval.max_new_tokens=160",
        ),
        ("final_answer_match", "key_facts", "final_line", "perplexity", "retention_perplexity"),
        "A model of this size does not learn arithmetic from 300 rows.",
    ),
)


def main() -> int:
    """Run what is asked for; write the page when all of it is there."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("data", help="the folder with the files")
    parser.add_argument("names", nargs="*", help=", ".join(task.name for task in TASKS))
    parser.add_argument("--runs", default="runs/results")
    asked = parser.parse_intermixed_args()
    runs = Path(asked.runs)
    for task in TASKS:
        if asked.names and task.name not in asked.names:
            continue
        if not comparison(runs, task).is_file():
            done = subprocess.run(command(task, asked.data, asked.runs), check=False)
            if done.returncode:
                return done.returncode
    if all(comparison(runs, task).is_file() for task in TASKS):
        DOCS.write_text(page(runs), encoding="utf-8")
        print(DOCS)
    return 0


def command(task: Task, data: str, runs: str) -> list[str]:
    """One command from data to report."""
    words = [word.format(data=data) for word in (*task.words, *COMMON)]
    program = [sys.executable, "-m", "halfbyte", "train", "--compare"]
    return [*program, f"name={task.name}", f"runs={runs}", *words]


def comparison(runs: Path, task: Task) -> Path:
    """Where the evidence of a finished task lies."""
    return runs / task.name / "eval" / "comparison.json"


def page(runs: Path) -> str:
    """docs/results.md."""
    head = [
        "# Results on real rows",
        "",
        "SmolLM2-135M-Instruct, QLoRA (NF4, rank 16, all linear layers), base against tuned on "
        "held-out rows: the same weights, adapter off and on, greedy answers. "
        "Made by `python bench/results.py ../shared/data` "
        f"on {datetime.now(UTC):%Y-%m-%d}, {platform.machine()}, CPU only; "
        f"torch {version('torch')}, transformers {version('transformers')}, "
        f"peft {version('peft')}. "
        "Intervals are 95 % paired bootstrap intervals; p-values of all scores but the headline "
        "are corrected by Holm. Every difference is given as tuned against base; shares in "
        "percent points, perplexities as a ratio.",
        "",
    ]
    return "\n".join([*head, *(line for task in TASKS for line in section(runs, task))])


def section(runs: Path, task: Task) -> list[str]:
    """One data set: the command, the table, the verdict, an answer of each."""
    folder = runs / task.name
    found = json.loads(comparison(runs, task).read_text(encoding="utf-8"))
    words = " \\\n    ".join(
        word.format(data="../shared/data") for word in (f"name={task.name}", *task.words, *COMMON)
    )
    lines = [f"## {task.title}", "", "```sh", f"halfbyte train --compare {words}", "```", ""]
    lines += [f"{found['rows']} held-out rows, {found['answered']} answered.", ""]
    markdown = (folder / "report" / "report.md").read_text(encoding="utf-8")
    lines += list(table(markdown, (found["headline"], *task.scores)))
    lines += ["", f"> {found['verdict']['sentence']}", ""]
    if task.remark:
        lines += [task.remark, ""]
    return lines


def table(markdown: str, names: tuple[str, ...]) -> list[str]:
    """The rows of a report's score table that bear one of these names, with its head."""
    rows = [line for line in markdown.splitlines() if line.startswith("|")]
    head = next(i for i, line in enumerate(rows) if set(line) <= set("|-: "))
    kept = [line for line in rows[head + 1 :] if line.split()[1].strip("*") in names]
    return [rows[head - 1], rows[head], *kept]


if __name__ == "__main__":
    sys.exit(main())
