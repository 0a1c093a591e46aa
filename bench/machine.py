"""The machine a figure was taken on, in words, and a process set up as `halfbyte train`'s is."""

from __future__ import annotations

import platform
from pathlib import Path


def machine_words(threads: int) -> str:
    """Processor, what it multiplies fast, memory and threads."""
    import torch
    from psutil import virtual_memory

    from halfbyte.model.compute import has_cpu_bf16

    known = Path("/proc/cpuinfo")
    lines = known.read_text().splitlines() if known.exists() else []
    named = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    processor = named[0] if named else platform.processor() or platform.machine()
    capability = torch.backends.cpu.get_cpu_capability()
    bf16 = "bf16 instructions" if has_cpu_bf16() else "bf16 only emulated"
    memory = virtual_memory().total / 2**30
    return (
        f"{processor} ({capability}, {bf16}), {threads} threads, {memory:.0f} GiB, "
        f"torch {torch.__version__}"
    )


def begin_as_train() -> None:
    """Start this program again with the allocator that `halfbyte train` has."""
    from halfbyte.model.fast import alloc

    alloc.restart()
    alloc.set_up()
