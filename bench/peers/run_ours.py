"""halfbyte on a job; run by bench_peers.py with its own interpreter."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from job import Job, answer, read_job, versions

from halfbyte.config import load_config
from halfbyte.model.fast import alloc


def overrides(job: Job) -> list[str]:
    """Defaults but for what is the same for all; `lean` computes fewer tokens at once."""
    words = ["train.micro_tokens=512"] if job.variant == "lean" else []
    return [
        *words,
        f"runs={Path(job.output).parent}",
        f"name={Path(job.output).name}",
        f"model.base={job.base}",
        "method=qlora",
        f"lora.rank={job.rank}",
        f"lora.alpha={job.alpha}",
        f"data.train={job.rows}",
        f"data.valid={few(job)}",
        "data.template=tokenizer",
        f"data.max_length={job.max_length}",
        f"train.batch_size={job.batch * job.accumulate}",
        f"train.learning_rate={job.rate}",
        "train.schedule=cosine",
        "train.warmup=0",
        "train.epochs=1",
        "train.keep_best=false",
        "train.tensorboard=false",
        f"train.seed={job.seed}",
    ]


def few(job: Job) -> Path:
    """Four held-out rows: a run wants some, but its own evaluation is no part of the measure."""
    path = Path(job.output).with_name(f"{Path(job.output).name}-few.jsonl")
    path.write_text("".join(Path(job.held_out).read_text().splitlines(keepends=True)[:4]))
    return path


def main() -> None:
    job = read_job()
    alloc.restart()
    alloc.set_up()  # as `halfbyte train` does, before torch takes memory
    from halfbyte import api

    training = api.prepare_training(load_config(None, overrides(job)))
    seconds = cpu = 0.0
    losses, tokens, before = [], 0, time.process_time()
    for event in training.events():
        now = time.process_time()
        before, spent = now, now - before
        if event.kind == "stepped":
            seconds += event.seconds
            cpu += spent
            tokens += event.tokens
            losses.append(event.loss)
    answer(
        seconds=seconds,
        cpu=cpu,
        steps=len(losses),
        adapter=str(training.run.adapter),
        losses=losses,
        tokens=tokens,
        versions=versions("halfbyte", "transformers", "peft", "torch", "bitsandbytes"),
        types=[training.summary.form.compute.name],
    )


if __name__ == "__main__":
    sys.exit(main())
