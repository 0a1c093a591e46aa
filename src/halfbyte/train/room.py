"""Whether a training fits before it starts: disk for its checkpoints, memory for its steps."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import psutil
import torch

from halfbyte.config import TrainSettings
from halfbyte.errors import ResourceError
from halfbyte.run import require_space

# Bytes a trained parameter takes in a checkpoint: float32 weights, and two moments in float32 or,
# for the 8-bit optimizers, one byte each and a share of the block constants.
_MOMENTS: Final = {"adamw": 8.0, "adamw_8bit": 2.1, "paged_adamw_8bit": 2.1}
_CGROUP: Final = Path("/sys/fs/cgroup")


def checkpoint_bytes(trainable: int, train: TrainSettings, weight_bytes: int = 4) -> int:
    """Size of one checkpoint for so many trained parameters of so many bytes each."""
    return int(trainable * (weight_bytes + _MOMENTS[train.optimizer])) + (1 << 20)


def disk_bytes(trainable: int, train: TrainSettings, weight_bytes: int = 4) -> int:
    """What a run takes at most: kept checkpoints, the best, the one being written, the result."""
    count = train.keep + train.keep_best + 1
    return count * checkpoint_bytes(trainable, train, weight_bytes) + trainable * weight_bytes


def require_disk(runs: Path, needed: int) -> None:
    """Refuse a training whose checkpoints do not fit on the disk of `runs` (which may not exist).

    Raises:
        ResourceError: with the bytes needed and free.
    """
    folder = runs.absolute()
    while not folder.exists():
        folder = folder.parent
    require_space(folder, needed, "the training with its checkpoints")


def require_memory(needed: int, device: torch.device) -> None:
    """Refuse a training whose estimated peak is more than what is free on `device`.

    Raises:
        ResourceError: with both numbers.
    """
    free = free_memory(device)
    if needed > free:
        raise ResourceError(
            f"The training needs about {needed / 1e9:.1f} GB of memory, "
            f"{free / 1e9:.1f} GB are free on {device}",
            "Use method=qlora, lower data.max_length or train.micro_tokens, set "
            "train.checkpointing=on, or choose a smaller model.base; `halfbyte plan` shows each.",
        )


def free_memory(device: torch.device) -> int:
    """Bytes a training may take now: of the GPU, or of the machine within its container's limit."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = int(psutil.virtual_memory().available)
    limit, used = _number(_CGROUP / "memory.max"), _number(_CGROUP / "memory.current")
    return free if limit is None or used is None else min(free, max(0, limit - used))


def _number(path: Path) -> int | None:
    """A cgroup file's number; None where there is no such file or it says `max`."""
    try:
        text = path.read_text(encoding="ascii").strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None
