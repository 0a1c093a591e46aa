"""TRL's SFTTrainer on a job; run by bench_peers.py with TRL's interpreter."""

from __future__ import annotations

import sys
import time
from typing import Any

import torch
from datasets import Dataset
from job import Job, answer, read_job, read_rows, versions
from peft import LoraConfig
from transformers import BitsAndBytesConfig
from trl import SFTConfig, SFTTrainer


def settings(job: Job) -> SFTConfig:
    """TRL's defaults but for what is the same for all; `fp32` and `best` change what they say."""
    given: dict[str, Any] = {
        "output_dir": job.output,
        "num_train_epochs": 1,
        "per_device_train_batch_size": job.batch,
        "gradient_accumulation_steps": job.accumulate,
        "learning_rate": job.rate,
        "lr_scheduler_type": "cosine",
        "max_length": job.max_length,
        "seed": job.seed,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "logging_steps": 1,
        "use_cpu": not torch.cuda.is_available(),
    }
    if job.variant != "defaults":
        narrow = job.variant == "best" and job.best_dtype == "bfloat16"
        given |= {"bf16": narrow, "model_init_kwargs": {"dtype": "float32"}}
    if job.variant == "best":
        given |= {"gradient_checkpointing": False, "packing": True}
        given |= {"per_device_train_batch_size": 1}
        given |= {"gradient_accumulation_steps": job.packed_accumulate}
    return SFTConfig(**given)


def trainer(job: Job) -> SFTTrainer:
    """Prompt and completion apart, so that its default masks the prompt."""
    compute = torch.bfloat16 if job.variant == "defaults" else torch.float32
    if job.variant == "best":
        compute = getattr(torch, job.best_dtype)
    rows = [
        {"prompt": row["messages"][:-1], "completion": row["messages"][-1:]}
        for row in read_rows(job.rows)
    ]
    return SFTTrainer(
        model=job.base,
        args=settings(job),
        train_dataset=Dataset.from_list(rows),
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=compute,
        ),
        peft_config=LoraConfig(
            task_type="CAUSAL_LM",
            r=job.rank,
            lora_alpha=job.alpha,
            lora_dropout=0.0 if job.variant == "best" else 0.05,
            target_modules="all-linear",
        ),
    )


def main() -> None:
    job = read_job()
    ready = trainer(job)
    if job.variant == "best":
        # TRL makes the adapters bf16, which is emulated where float32 is best
        for parameter in ready.model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    began, cpu = time.perf_counter(), time.process_time()
    done = ready.train()
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    ready.save_model(job.output)
    answer(
        seconds=seconds,
        cpu=cpu,
        steps=done.global_step,
        adapter=job.output,
        losses=[one["loss"] for one in ready.state.log_history if "loss" in one],
        versions=versions("trl", "transformers", "peft", "torch", "bitsandbytes"),
        types=sorted({str(one.dtype) for one in ready.model.parameters()}),
    )


if __name__ == "__main__":
    sys.exit(main())
