"""What this machine is, has and can hold: the facts behind `halfbyte doctor`."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import psutil

from halfbyte.model.bases import is_here
from halfbyte.model.cache import cache_dir
from halfbyte.model.catalogue import CATALOGUE

if TYPE_CHECKING:
    from halfbyte.model.fast.parts import Part

# What the parts of halfbyte stand on, in the order people ask about them.
_NEEDED: Final = (
    "halfbyte", "torch", "transformers", "peft", "accelerate", "bitsandbytes", "safetensors",
    "tokenizers", "gguf",
)  # fmt: skip
_OPTIONAL: Final = {
    "fastapi": "serve",
    "lm_eval": "eval --tasks",
    "vllm": "serve --engine vllm",
}
_CPU_FLAGS: Final = ("avx2", "avx512_f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8")
# Beside the weights a small training holds libraries, activations and the adapter's state:
# measured 1.3 GB for SmolLM2-135M, more for wider models.
_ROOM: Final = 1.5e9
_WIDER: Final = 1.15


@dataclass(frozen=True, slots=True)
class Device:
    """A CUDA card: name, compute capability, total and free bytes."""

    name: str
    capability: str
    total: int
    free: int


@dataclass(frozen=True, slots=True)
class Fit:
    """Whether a base of the catalogue can be trained here with LoRA, and with QLoRA."""

    name: str
    here: bool
    lora: bool
    qlora: bool


@dataclass(frozen=True, slots=True)
class Machine:
    """Everything `doctor` says. Sizes in bytes; `memory_free` is what a training may take."""

    system: str
    python: str
    processor: str
    cores: int
    threads: int
    memory: int
    memory_free: int
    cache: str
    disk_free: int
    instructions: tuple[str, ...]
    cards: tuple[Device, ...]
    compute: str
    versions: dict[str, str]
    optional: dict[str, str]
    bases: tuple[Fit, ...]


def inspect_machine() -> Machine:
    """Look at this machine; nothing is changed, fetched or reported anywhere."""
    import torch

    from halfbyte.model.compute import choose, choose_device

    flags = torch.cpu.get_capabilities()
    cards = _cards()
    free = cards[0].free if cards else available_memory()
    chosen = choose("auto", choose_device())
    return Machine(
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        processor=str(flags.get("cpu_name") or platform.processor() or platform.machine()),
        cores=len(os.sched_getaffinity(0)),
        threads=torch.get_num_threads(),
        memory=memory_limit(),
        memory_free=available_memory(),
        cache=str(cache_dir()),
        disk_free=shutil.disk_usage(_existing(cache_dir())).free,
        instructions=tuple(flag for flag in _CPU_FLAGS if flags.get(flag)),
        cards=cards,
        compute=f"{chosen.name}: {chosen.reason}",
        versions={name: _version(name) or "missing" for name in _NEEDED},
        optional={name: _version(name) or f"missing ({why})" for name, why in _OPTIONAL.items()},
        bases=tuple(_fits(free, chosen.dtype.itemsize)),
    )


def fast_parts(machine: Machine) -> list[Part]:
    """Which parts of the fast path an ordinary base with an adapter takes on this machine.

    Found by asking a tiny Llama made on the spot: the answer depends on the device and on what is
    installed, and the training summary gives it for the base at hand.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from halfbyte.config import LoraSettings
    from halfbyte.model.adapters import attach
    from halfbyte.model.fast.parts import install, status

    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "vocab_size": 64}
    config = AutoConfig.for_model("llama", num_attention_heads=1, num_key_value_heads=1, **sizes)
    with torch.random.fork_rng(devices=[]):
        model = AutoModelForCausalLM.from_config(config)
    adapted = attach(model.to("cuda" if machine.cards else "cpu"), LoraSettings(rank=1), seed=0)
    install(adapted)
    return status(adapted)


def memory_limit() -> int:
    """Bytes of memory this process may use at most: the machine's, or its container's."""
    total = int(psutil.virtual_memory().total)
    limit = _cgroup("memory.max")
    return total if limit is None else min(total, limit)


def available_memory() -> int:
    """Bytes of memory that are free for this process now."""
    free = int(psutil.virtual_memory().available)
    limit, used = _cgroup("memory.max"), _cgroup("memory.current")
    return free if limit is None or used is None else min(free, max(0, limit - used))


def _cgroup(name: str) -> int | None:
    try:
        text = Path("/sys/fs/cgroup", name).read_text(encoding="ascii").strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path


def _cards() -> tuple[Device, ...]:
    import torch

    if not torch.cuda.is_available():
        return ()
    found = []
    for number in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(number)
        major, minor = torch.cuda.get_device_capability(number)
        name = torch.cuda.get_device_name(number)
        found.append(Device(name, f"{major}.{minor}", int(total), int(free)))
    return tuple(found)


def _fits(free: int, itemsize: int) -> list[Fit]:
    return [
        Fit(
            entry.name,
            is_here(entry),
            entry.weight_bytes(itemsize) * _WIDER + _ROOM < free,
            entry.quantized_bytes(itemsize) * _WIDER + _ROOM < free,
        )
        for entry in CATALOGUE
    ]


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
