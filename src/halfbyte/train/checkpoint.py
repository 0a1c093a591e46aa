"""Checkpoints: written whole or not at all, verified before use, byte for byte the state.

`step-000120/` holds weights, optimizer and generators as safetensors, counters and scalars as
JSON, and `manifest.json`, written last, with the size and sha256 of every other file.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from accelerate.utils.operations import gather_object
from torch import nn

from halfbyte.data.batches import MicroLimits
from halfbyte.errors import IntegrityError
from halfbyte.run import RunFolder, atomic_folder, remove_folder, require_space, rewind, sha256_of
from halfbyte.run.failpoints import reach
from halfbyte.run.files import sync_path, write_durable
from halfbyte.train import seeds
from halfbyte.train.events import Resumed, Saved
from halfbyte.train.state import Progress, State
from halfbyte.train.tensors import read_tensors, tensor_bytes, write_tensors

FORMAT: Final = 1
WEIGHTS: Final = "weights.safetensors"
OPTIMIZER: Final = "optimizer.safetensors"
GENERATORS: Final = "generators.safetensors"
COUNTERS: Final = "state.json"
MANIFEST: Final = "manifest.json"
_SLACK: Final = 1 << 20  # headers, JSON, and blocks the file system rounds up to


@dataclass(frozen=True, slots=True)
class Found:
    """The newest checkpoint that verifies, and the newer ones that do not, with the reasons."""

    step: int | None
    path: Path | None
    damaged: tuple[tuple[Path, str], ...] = ()


class Saver:
    """Writes checkpoints of a run and removes old ones: the newest `keep` and the best stay."""

    def __init__(self, run: RunFolder, keep: int = 2, *, keep_best: bool = True) -> None:
        self.run = run
        self.keep = keep
        self.keep_best = keep_best

    def __call__(self, state: State) -> Saved:
        """Save; afterwards the checkpoint is on the disk, whatever happens next.

        Raises:
            ResourceError: the disk does not hold it; earlier checkpoints are intact.
        """
        began, step = time.perf_counter(), state.progress.step
        path = self.run.checkpoint(step)
        own = {
            "limits": asdict(state.limits),
            "generators": seeds.capture(state.accelerator.device),
        }
        everyone = gather_object([own]) if state.accelerator.num_processes > 1 else [own]
        size = 0
        if state.accelerator.is_main_process:
            if self.run.metrics.exists():
                sync_path(self.run.metrics)  # the events up to here must outlive the checkpoint
            size = save(state, path, everyone)
            self._prune(step, state.progress.best_step)
        state.accelerator.wait_for_everyone()
        state.saved_at, state.last_good = step, str(path)
        return Saved(step, str(path), size, time.perf_counter() - began)

    def _prune(self, newest: int, best: int | None) -> None:
        older = [(step, path) for step, path in self.run.checkpoint_steps() if step < newest]
        for step, path in older[: max(0, len(older) - (self.keep - 1))]:
            if not (self.keep_best and step == best):
                remove_folder(path)


def save(state: State, path: Path, everyone: Sequence[Mapping[str, Any]]) -> int:
    """Write one checkpoint folder; `everyone`: limits and generator states of each process.

    Returns its size in bytes.

    Raises:
        ResourceError: the disk does not hold it; nothing is left of the attempt.
    """
    tensors, scalars = _optimizer_state(state)
    files: dict[str, Mapping[str, torch.Tensor]] = {
        WEIGHTS: state.trainable(),
        OPTIMIZER: tensors,
        GENERATORS: {
            f"{number}.{name}": one
            for number, process in enumerate(everyone)
            for name, one in process["generators"].items()
        },
    }
    counters = {
        "progress": asdict(state.progress),
        "limits": [process["limits"] for process in everyone],
        "seed": state.seed,
        "optimizer": scalars,
    }
    needed = sum(map(tensor_bytes, files.values())) + _SLACK
    path.parent.mkdir(parents=True, exist_ok=True)
    require_space(path.parent, needed, f"checkpoint {path.name}")
    with atomic_folder(path, needed) as temp:
        written = {}
        for name, content in files.items():
            reach(f"save.{name}")
            written[name] = write_durable(temp / name, partial(write_tensors, tensors=content))
        reach(f"save.{COUNTERS}")
        written[COUNTERS] = write_durable(temp / COUNTERS, json.dumps(counters, allow_nan=False))
        manifest = {
            "format": FORMAT,
            "step": state.progress.step,
            "files": {n: {"bytes": f.length, "sha256": f.sha256} for n, f in written.items()},
        }
        reach(f"save.{MANIFEST}")
        text = json.dumps({**manifest, "sha256": _digest(manifest)}, indent=1)
        last = write_durable(temp / MANIFEST, text)
    return sum(file.length for file in written.values()) + last.length


def fault(path: Path) -> str:
    """Why the checkpoint at `path` cannot be used; empty if every byte is as it was written."""
    try:
        manifest = json.loads((path / MANIFEST).read_bytes())
        digest, version, step = manifest.pop("sha256"), manifest["format"], manifest["step"]
        expected = {name: (one["bytes"], one["sha256"]) for name, one in manifest["files"].items()}
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST} cannot be read: {error}"
    if version != FORMAT:
        return f"format {version} is not {FORMAT}, the one this version reads"
    if set(expected) != {WEIGHTS, OPTIMIZER, GENERATORS, COUNTERS}:
        return f"{MANIFEST} lists {sorted(expected)}"
    if digest != _digest(manifest) or path.name != f"step-{step:06d}":
        return f"{MANIFEST} is not what was written"
    faults = (_file_fault(path / name, *facts) for name, facts in expected.items())
    return next(filter(None, faults), "")


def _digest(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _file_fault(file: Path, size: int, digest: str) -> str:
    if not file.is_file() or file.is_symlink():
        return f"{file.name} is missing"
    if file.stat().st_size != size:
        return f"{file.name} has {file.stat().st_size:,} bytes instead of {size:,}"
    if sha256_of(file) != digest:
        return f"{file.name} is not what was written (its sha256 differs)"
    return ""


def newest_verified(run: RunFolder) -> Found:
    """The newest checkpoint that verifies; damaged newer ones are named, not touched."""
    damaged: list[tuple[Path, str]] = []
    for step, path in reversed(run.checkpoint_steps()):
        reason = fault(path)
        if not reason:
            return Found(step, path, tuple(damaged))
        damaged.append((path, reason))
    return Found(None, None, tuple(damaged))


def resume(state: State, run: RunFolder, notes: Sequence[str] = ()) -> Resumed | None:
    """Put the newest verified checkpoint into `state` and take the metrics back to its step.

    Damaged newer ones get the name `damaged-…`. Without any checkpoint the run begins anew: None.

    Raises:
        IntegrityError: there are checkpoints, but none verifies or none fits this model.
    """
    found = newest_verified(run)
    damaged = tuple(f"{path}: {reason}" for path, reason in found.damaged)
    if found.path is None and damaged:
        raise IntegrityError(
            f"{run.path}: no checkpoint verifies", damaged, "Start a new run with the same recipe."
        )
    if found.path is not None:
        restore(state, found.path)
    state.accelerator.wait_for_everyone()  # nobody may still read what is renamed now
    if state.accelerator.is_main_process:
        for path, _ in found.damaged:
            set_aside(path)
        again = found.step is not None and state.progress.evaluated_at != found.step
        rewind(run.metrics, found.step, drop=("evaluated",) if again else ())
    state.accelerator.wait_for_everyone()
    if found.step is None or found.path is None:
        return None
    return Resumed(found.step, str(found.path), damaged, tuple(notes))


def set_aside(path: Path) -> Path:
    """Give a damaged checkpoint the name `damaged-…`, so that nobody takes it for whole."""
    return path.replace(_free_name(path.with_name(f"damaged-{path.name}")))


def restore(state: State, path: Path) -> None:
    """Make `state` what it was when `path` was saved; the checkpoint must have verified.

    Raises:
        IntegrityError: it is of another model; the state is unchanged.
    """
    counters = json.loads((path / COUNTERS).read_bytes())
    weights, moments = read_tensors(path / WEIGHTS), read_tensors(path / OPTIMIZER)
    generators = read_tensors(path / GENERATORS)
    trainable = state.trainable()
    _check_fit(path, weights, trainable)
    progress = Progress(**counters["progress"])
    process = state.accelerator.process_index
    limits = counters["limits"]
    _copy(weights, trainable)
    _load_optimizer(state, moments, counters["optimizer"])
    mine = {
        name.partition(".")[2]: one
        for name, one in generators.items()
        if name.partition(".")[0] == str(process)
    }
    if mine:  # a process that was not there before has nothing to go on with
        seeds.restore(mine, state.accelerator.device)
    state.progress = progress
    state.limits = MicroLimits(**limits[min(process, len(limits) - 1)])
    state.saved_at, state.last_good = progress.step, str(path)


def load_weights(module: nn.Module, path: Path) -> None:
    """Put only the weights of a checkpoint into the (unwrapped) module that was trained.

    Raises:
        IntegrityError: the checkpoint is damaged, or of another model.
    """
    reason = fault(path)
    if reason:
        raise IntegrityError(f"{path}: {reason}")
    weights = read_tensors(path / WEIGHTS)
    trainable = {name: one for name, one in module.named_parameters() if one.requires_grad}
    _check_fit(path, weights, trainable)
    _copy(weights, trainable)


def _optimizer_state(state: State) -> tuple[dict[str, torch.Tensor], dict[str, dict[str, Any]]]:
    """The optimizer's state by parameter name: tensors, and what is a plain number."""
    tensors: dict[str, torch.Tensor] = {}
    scalars: dict[str, dict[str, Any]] = {}
    for name, parameter in state.trainable().items():
        for key, value in state.optimizer.state.get(parameter, {}).items():
            if isinstance(value, torch.Tensor):
                tensors[f"{name}.{key}"] = value
            else:
                scalars.setdefault(name, {})[key] = value
    return tensors, scalars


def _load_optimizer(
    state: State, tensors: Mapping[str, torch.Tensor], scalars: Mapping[str, Mapping[str, Any]]
) -> None:
    parameters = state.trainable()
    restored: dict[str, dict[str, Any]] = {name: dict(one) for name, one in scalars.items()}
    for full, tensor in tensors.items():
        name, _, key = full.rpartition(".")
        # torch keeps the step count of its AdamW on the CPU unless a fused kernel reads it
        restored.setdefault(name, {})[key] = tensor.to(parameters[name].device)
    state.optimizer.state.clear()
    for name, one in restored.items():
        state.optimizer.state[parameters[name]] = one


def _check_fit(
    path: Path, saved: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]
) -> None:
    shapes = {name: (tuple(one.shape), one.dtype) for name, one in wanted.items()}
    found = {name: (tuple(one.shape), one.dtype) for name, one in saved.items()}
    wrong = [
        f"{name}: saved {found.get(name, 'nothing')}, the model has {shapes.get(name, 'nothing')}"
        for name in sorted(shapes.keys() | found.keys())
        if shapes.get(name) != found.get(name)
    ]
    if wrong:
        raise IntegrityError(
            f"{path}: {len(wrong)} tensors do not fit this model, the first of them:", wrong[:3]
        )


@torch.no_grad()
def _copy(weights: Mapping[str, torch.Tensor], parameters: Mapping[str, torch.Tensor]) -> None:
    for name, parameter in parameters.items():
        parameter.copy_(weights[name])


def _free_name(path: Path) -> Path:
    names = (path.with_name(f"{path.name}-{number}") for number in range(2, 10_000))
    return path if not path.exists() else next(name for name in names if not name.exists())
