"""Randomness: every step draws from its own seed, so that nothing between steps can shift it.

Evaluating more often, an out-of-memory retry or a resume leave the dropout masks of every other
step as they were. The states of all generators are saved beside, for code that draws between steps.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping

import numpy as np
import torch

States = dict[str, torch.Tensor]


def seed_all(seed: int, device: torch.device) -> None:
    """Seed Python's and numpy's generators, and torch's on the CPU and on `device`.

    Not by torch.manual_seed: on a machine without CUDA that takes a millisecond, at every step.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def step_seed(seed: int, step: int, process: int) -> int:
    """A well mixed 32-bit seed for one step of one process.

    32 bits, because that is all torch's CPU generator takes from a seed.
    """
    digest = hashlib.sha256(f"{seed}/{step}/{process}".encode()).digest()
    return int.from_bytes(digest[:4], "little")


def capture(device: torch.device) -> States:
    """The states of all generators as tensors, for a checkpoint."""
    version, numbers, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    if version != 3 or kind != "MT19937":
        raise RuntimeError(f"unknown generators: random {version}, numpy {kind}")
    states = {
        "python": torch.tensor(numbers, dtype=torch.int64),
        "python_gauss": torch.tensor([] if gauss is None else [gauss], dtype=torch.float64),
        "numpy": torch.from_numpy(np.asarray(keys, dtype=np.uint32).astype(np.int64)),
        "numpy_position": torch.tensor([position, has_gauss], dtype=torch.int64),
        "numpy_gauss": torch.tensor([cached], dtype=torch.float64),
        "torch": torch.get_rng_state(),
    }
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def restore(states: Mapping[str, torch.Tensor], device: torch.device) -> None:
    """Put all generators back into captured states."""
    gauss = states["python_gauss"].tolist()
    random.setstate((3, tuple(states["python"].tolist()), gauss[0] if gauss else None))
    position, has_gauss = states["numpy_position"].tolist()
    keys = states["numpy"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, position, has_gauss, float(states["numpy_gauss"].item())))
    torch.set_rng_state(states["torch"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
