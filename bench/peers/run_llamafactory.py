"""LLaMA-Factory's run_exp on a job; run by bench_peers.py with its interpreter."""

from __future__ import annotations

import importlib.machinery
import json
import os
import sys
import time
import types
from pathlib import Path
from typing import Any

# it refuses versions it was not released with, and reports nothing unless asked
os.environ.setdefault("DISABLE_VERSION_CHECK", "1")

import torch
from job import Job, answer, read_job, versions


def base_of(job: Job) -> str:
    """The base; but for `defaults` in the type that is best here, because it computes in the type
    that the base's config names (bf16), where it is not told fp16 or bf16.
    """
    if job.variant == "defaults" or job.best_dtype == "bfloat16":
        return job.base
    from safetensors.torch import load_file, save_file

    folder = Path(f"{job.output}-base")
    folder.mkdir()
    for path in Path(job.base).iterdir():
        if path.suffix == ".safetensors":
            tensors = {name: tensor.float() for name, tensor in load_file(path).items()}
            save_file(tensors, folder / path.name, metadata={"format": "pt"})
        elif path.is_file():
            (folder / path.name).write_bytes(path.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    config = {**config, "dtype": "float32", "torch_dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def settings(job: Job, data: Path) -> dict[str, Any]:
    """Its defaults but for what is the same for all; `fp32` and `best` change what they say."""
    given: dict[str, Any] = {
        "stage": "sft",
        "do_train": True,
        "model_name_or_path": base_of(job),
        "finetuning_type": "lora",
        "lora_target": "all",
        "lora_rank": job.rank,
        "lora_alpha": job.alpha,
        "quantization_bit": 4,
        "quantization_method": "bnb",
        "double_quantization": True,
        "dataset": "rows",
        "dataset_dir": str(data),
        "template": "smollm2",
        "cutoff_len": job.max_length,
        "output_dir": job.output,
        "overwrite_output_dir": True,
        "num_train_epochs": 1,
        "per_device_train_batch_size": job.batch,
        "gradient_accumulation_steps": job.accumulate,
        "learning_rate": job.rate,
        "lr_scheduler_type": "cosine",
        "seed": job.seed,
        "save_strategy": "no",
        "report_to": "none",
        "logging_steps": 1,
        "disable_tqdm": True,
        "overwrite_cache": True,
    }
    if job.variant == "best":
        given |= {"disable_gradient_checkpointing": True, "neat_packing": True}
        given |= {"per_device_train_batch_size": 1}
        given |= {"gradient_accumulation_steps": job.packed_accumulate}
        given |= {"bf16": job.best_dtype == "bfloat16"}
        if not torch.cuda.is_available():
            given |= {"use_cpu": True}  # without it, it refuses bf16
    return given


def data_folder(job: Job) -> Path:
    """The rows under the name `rows`, in a folder as it wants one."""
    folder = Path(job.output).with_name(Path(job.output).name + "-data")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rows.jsonl").write_text(Path(job.rows).read_text())
    described = {
        "rows": {
            "file_name": "rows.jsonl",
            "formatting": "sharegpt",
            "columns": {"messages": "messages"},
            "tags": {
                "role_tag": "role",
                "content_tag": "content",
                "user_tag": "user",
                "assistant_tag": "assistant",
                "system_tag": "system",
            },
        }
    }
    (folder / "dataset_info.json").write_text(json.dumps(described))
    return folder


def without_audio() -> None:
    """It imports torchaudio, whose ordinary wheel does not load beside torch's CPU build."""
    try:
        import torchaudio  # noqa: F401  only to see whether it loads
    except OSError:
        for name in [name for name in sys.modules if name.startswith("torchaudio")]:
            del sys.modules[name]
        module = types.ModuleType("torchaudio")
        module.__spec__ = importlib.machinery.ModuleSpec("torchaudio", None)
        sys.modules["torchaudio"] = module


def main() -> None:
    job = read_job()
    without_audio()
    from llamafactory.train.tuner import run_exp
    from transformers import TrainerCallback

    clock: list[float] = []

    class Clock(TrainerCallback):
        def on_train_begin(self, *_: object, **__: object) -> None:
            clock.append(time.process_time())

        def on_train_end(self, *_: object, **__: object) -> None:
            clock.append(time.process_time())

    run_exp(settings(job, data_folder(job)), callbacks=[Clock()])
    results = json.loads((Path(job.output) / "train_results.json").read_text())
    state = json.loads((Path(job.output) / "trainer_state.json").read_text())
    answer(
        seconds=results["train_runtime"],
        cpu=clock[-1] - clock[0],
        steps=state["global_step"],
        adapter=job.output,
        losses=[one["loss"] for one in state["log_history"] if "loss" in one],
        versions=versions("llamafactory", "transformers", "peft", "torch", "bitsandbytes"),
    )


if __name__ == "__main__":
    sys.exit(main())
