"""halfbyte against TRL and LLaMA-Factory on the same rows, in turn: speed, memory, held-out loss.

    python bench/bench_peers.py --trl peers-trl/bin/python --llamafactory peers-lf/bin/python
    python bench/bench_peers.py ../shared/data/gsm8k_train.jsonl --rows 64 ...

Each training is a process of its own in its own environment (bench/peers/README.md says what is
the same for all and what is not). `--run` chooses: TOOL:VARIANT, or TOOL:VARIANT:ROWS where fewer
rows must do because it is slow; it then has no held-out loss. Prints a Markdown table.

Processor seconds are measured too. On a machine that others use, BENCH_BY_CPU=1 with `--threads 1`
makes the table of those: one thread's are what its clock would show if it were alone.

With `--json FILE` what was measured is added to the file, and the table is of all runs in it: so
runs can be taken at different times. `--repeats 0` prints the table of the file alone.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import psutil

from machine import machine_words
from peers.job import Job, read_rows

BY_CPU = os.environ.get("BENCH_BY_CPU") == "1"
PEERS = Path(__file__).resolve().parent / "peers"
SCRIPTS = {"ours": "run_ours.py", "trl": "run_trl.py", "llamafactory": "run_llamafactory.py"}
NAMES = {"ours": "halfbyte", "trl": "TRL", "llamafactory": "LLaMA-Factory"}
RUNS = (
    "ours:defaults", "ours:lean", "llamafactory:defaults", "llamafactory:fp32", "llamafactory:best",
    "trl:defaults", "trl:fp32", "trl:best",
)  # fmt: skip
BUILTIN = "tutor"
HEADER = (
    "tool", "settings", "runs", "rows", "steps", "seconds", "real tokens/s", "rows/s",
    "halfbyte is faster", "peak RSS, MB", "of theirs halfbyte takes", "held-out loss",
    "against halfbyte's",
)  # fmt: skip


@dataclass
class Entry:
    """One tool with one variant; what its runs gave. `count` rows hold `tokens` real tokens."""

    tool: str
    variant: str
    count: int
    tokens: int
    whole: bool
    seconds: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)
    loss: float | None = None
    base_loss: float | None = None
    steps: int = 0
    adapter: str = ""
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def middle(self) -> float:
        """Seconds of the median run: on the clock, or, with one thread, of the processor."""
        return statistics.median(self.cpu if BY_CPU else self.seconds)

    @property
    def rate(self) -> float:
        """Real tokens a second, of the median run."""
        return self.tokens / self.middle


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    told = f"JSONL: instruction/response or prompt/completion (default: builtin:{BUILTIN})"
    parser.add_argument("data", type=Path, nargs="?", help=told)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--held-out", type=int, default=64, help="rows after those, to score on")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--run", nargs="+", default=RUNS, metavar="TOOL:VARIANT[:ROWS]")
    parser.add_argument("--best-dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--trl", default=os.environ.get("BENCH_TRL"))
    parser.add_argument("--llamafactory", default=os.environ.get("BENCH_LLAMAFACTORY"))
    parser.add_argument("--timeout", type=float, default=600, help="seconds for one training")
    parser.add_argument("--json", type=Path, help="add what is measured to this file")
    return parser.parse_args()


def chat(row: dict[str, str]) -> dict[str, Any]:
    """A row of either kind as a chat."""
    if "instruction" in row:
        asked = "\n\n".join(row[key] for key in ("instruction", "context") if row.get(key))
        answered = row["response"]
    else:
        asked, answered = row["prompt"], row["completion"]
    turns = (("user", asked), ("assistant", answered))
    return {"messages": [{"role": role, "content": text} for role, text in turns]}


def chats(data: Path | None, count: int) -> list[dict[str, Any]]:
    """The first rows of a file, or of those built in, as chats."""
    if data is not None:
        lines = data.read_text(encoding="utf-8").splitlines()
        return [chat(json.loads(line)) for line in lines[:count]]
    from halfbyte.data.builtin import load_builtin

    conversations = (row.messages for row in islice(load_builtin(BUILTIN), count))
    return [
        {"messages": [{"role": turn.role, "content": turn.content} for turn in turns]}
        for turns in conversations
    ]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return str(path)


def real_tokens(path: str, base: str) -> int:
    """All tokens of the rows under the base's chat template, padding aside."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base, local_files_only=True)
    texts = (tokenizer.apply_chat_template(r["messages"], tokenize=False) for r in read_rows(path))
    return sum(len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts)


def prepare(given: argparse.Namespace, folder: Path) -> tuple[list[Entry], dict[int, Job]]:
    """What is to be run, and the job for each number of rows; tools without an interpreter are
    left out.
    """
    from halfbyte.model import bases

    base = str(bases.resolve(given.base).folder)
    rows = chats(given.data, given.rows + given.held_out)
    held = write_rows(folder / "held_out.jsonl", rows[given.rows :])
    found, jobs = [], {}
    for words in given.run:
        tool, variant, *some = words.split(":")
        if tool != "ours" and getattr(given, tool) is None:
            print(f"{tool}: no interpreter given, left out", file=sys.stderr)
            continue
        count = int(some[0]) if some else given.rows
        if count not in jobs:
            path = write_rows(folder / f"rows{count}.jsonl", rows[:count])
            tokens = real_tokens(path, base)
            jobs[count] = Job(base, path, held, "", "", count, tokens, given.best_dtype)
        found.append(Entry(tool, variant, count, jobs[count].tokens, count == given.rows))
    return found, jobs


class Peak(threading.Thread):
    """The most resident bytes of a process and its children, looked at ten times a second."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._root = psutil.Process(pid)
        self._over = threading.Event()
        self.bytes = 0

    def run(self) -> None:
        while not self._over.wait(0.1):
            try:
                tree = [self._root, *self._root.children(recursive=True)]
                self.bytes = max(self.bytes, sum(one.memory_info().rss for one in tree))
            except psutil.Error:  # one of them is gone: look again
                continue

    def stop(self) -> int:
        self._over.set()
        self.join()
        return self.bytes


def run_child(command: list[str], threads: int, timeout: float) -> tuple[dict[str, Any], int]:
    """Its last line, read as JSON, and its peak memory."""
    calm = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment = {**os.environ, **calm, "OMP_NUM_THREADS": str(threads)}
    with tempfile.TemporaryFile("w+") as errors:
        child = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True
        )
        peak = Peak(child.pid)
        peak.start()
        try:
            output, _ = child.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            child.kill()
            output, _ = child.communicate()
        memory = peak.stop()
        if child.returncode:
            errors.seek(0)
            raise RuntimeError(f"{' '.join(command)}: {errors.read()[-3000:]}")
    return json.loads(output.splitlines()[-1]), memory


def train(entry: Entry, job: Job, given: argparse.Namespace, name: str) -> None:
    """One run of one tool; `name` is the file of its job without the ending."""
    job = replace(job, variant=entry.variant, output=name)
    path = job.write(Path(f"{name}.json"))
    interpreter = sys.executable if entry.tool == "ours" else getattr(given, entry.tool)
    command = [interpreter, str(PEERS / SCRIPTS[entry.tool]), str(path)]
    answer, memory = run_child(command, given.threads, given.timeout)
    entry.seconds.append(answer["seconds"])
    entry.cpu.append(answer["cpu"])
    entry.memory.append(memory)
    entry.steps, entry.adapter = answer["steps"], answer["adapter"]
    entry.versions = answer["versions"]
    told = f"{entry.tool} {entry.variant}: {answer['seconds']:.1f} s, {answer['cpu']:.1f} s of the "
    told += f"processor, {memory / 1e6:,.0f} MB"
    print(told, file=sys.stderr, flush=True)


def score(found: list[Entry], job: Job, given: argparse.Namespace, folder: Path) -> None:
    """Give each entry the held-out loss of its last adapter."""
    whole = [entry for entry in found if entry.whole and entry.adapter]
    if not whole:
        return
    path = job.write(folder / "score.json")
    adapters = [entry.adapter for entry in whole]
    command = [sys.executable, str(PEERS / "score.py"), str(path), *adapters]
    losses = run_child(command, given.threads, given.timeout)[0]["losses"]
    for entry in whole:
        entry.loss, entry.base_loss = losses[entry.adapter], losses["base"]


def remembered(path: Path | None, found: list[Entry]) -> list[Entry]:
    """The new entries added to the file's; all of them as one list."""
    if path is None:
        return found
    lines = path.read_text().splitlines() if path.exists() else []
    told = [Entry(**json.loads(line)) for line in lines]
    every = {(one.tool, one.variant, one.count): one for one in told}
    for entry in found:
        if not entry.seconds:
            continue
        old = every.setdefault((entry.tool, entry.variant, entry.count), entry)
        if old is not entry:
            entry.seconds = old.seconds + entry.seconds
            entry.memory = old.memory + entry.memory
            entry.cpu = old.cpu + entry.cpu
            every[entry.tool, entry.variant, entry.count] = entry
    path.write_text("".join(json.dumps(asdict(one)) + "\n" for one in every.values()))
    return list(every.values())


def print_table(found: list[Entry]) -> None:
    ours = next(entry for entry in found if entry.tool == "ours")
    print("| " + " | ".join(HEADER) + " |")
    print("|" + "---|" * len(HEADER))
    for entry in found:
        times = entry.cpu if BY_CPU else entry.seconds
        memory = statistics.median(entry.memory)
        other = entry is not ours
        loss = "–" if entry.loss is None else f"{entry.loss:.4f}"
        away = "–"
        if other and entry.loss is not None and ours.loss is not None:
            away = f"{entry.loss / ours.loss - 1:+.2%}"
        cells = (
            NAMES[entry.tool],
            entry.variant,
            str(len(entry.seconds)),
            str(entry.count),
            str(entry.steps),
            f"{entry.middle:.1f} ({min(times):.1f} to {max(times):.1f})",
            f"{entry.rate:,.0f}",
            f"{entry.count / entry.middle:.2f}",
            f"{ours.rate / entry.rate:.2f}×" if other else "",
            f"{memory / 1e6:,.0f}",
            f"{statistics.median(ours.memory) / memory:.2f}" if other else "",
            loss,
            away,
        )
        print("| " + " | ".join(cells) + " |")
    if ours.base_loss is not None:
        print(f"\nHeld-out loss of the base: {ours.base_loss:.4f} nats a trained token.")
    for tool in dict.fromkeys(entry.tool for entry in found):
        known = next(entry for entry in found if entry.tool == tool).versions
        print("- " + ", ".join(f"{name} {value}" for name, value in known.items()))


def main() -> None:
    given = arguments()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        found, jobs = prepare(given, folder)
        for number in range(given.repeats):
            for entry in found:
                name = f"{entry.tool}-{entry.variant}-{number}"
                try:
                    train(entry, jobs[entry.count], given, str(folder / name))
                except RuntimeError as error:  # the others are still worth their figures
                    print(error, file=sys.stderr, flush=True)
        try:
            score(found, next(iter(jobs.values())), given, folder)
        except RuntimeError as error:  # the times are worth keeping
            print(error, file=sys.stderr, flush=True)
    every = remembered(given.json, [entry for entry in found if entry.seconds])
    print(f"{datetime.now(UTC):%Y-%m-%d}, {machine_words(given.threads)}")
    name = f"builtin:{BUILTIN}" if given.data is None else given.data.name
    print(f"{name}, {given.rows} rows, {jobs[given.rows].tokens:,} real tokens, ", end="")
    print(f"{given.held_out} held out; medians (extremes) of runs in turn\n")
    print_table(every)


if __name__ == "__main__":
    main()
