"""From settings and rows to how much is computed at once: for `plan` before, and for `train`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Final, Literal

import psutil
import torch

from halfbyte.config import Config
from halfbyte.data.batches import MicroLimits, epoch_order, plan_step, prefix_groups
from halfbyte.data.encoded import EncodedSet
from halfbyte.errors import ResourceError
from halfbyte.model.arrange import Arrangement, Loads, Wishes, arrange
from halfbyte.model.budget import HALF, Load, Way
from halfbyte.model.catalogue import CATALOGUE
from halfbyte.model.compute import choose
from halfbyte.model.fast import alloc
from halfbyte.model.load import Form
from halfbyte.model.shape import Shape, catalogue_config, shape_of
from halfbyte.model.sizes import SIZES
from halfbyte.train import Source, free_memory

# Tokens at once. A CPU's for float32: twice as many are 3 % faster and take a fifth more memory; in
# 16 bits they take half of it and what every micro-batch costs weighs more, so there are twice as
# many (docs/benchmarks.md). A GPU is only busy with more.
_TOKENS: Final = {"cpu": 512, "cuda": 8192}
# What a process takes after it has read its data: kernels and libraries that load on first use, on
# CUDA the context, and on a CPU that computes in bf16 what oneDNN keeps for each of its kernels.
# Measured with bench/bench_plan.py.
_LATER: Final = {"cpu": 60_000_000, "cuda": 600_000_000}
_KERNELS: Final = 110_000_000
# Steps that are arranged on trial to find the largest micro-batch: the heaviest, and some of every
# weight, since a step that just fits at once has a larger one than a heavier step in two halves.
_HEAVIEST: Final = 4
_OTHERS: Final = 60


def source_of(rows: EncodedSet, config: Config) -> Source:
    """The steps of a training over these rows, and their micro-batches."""
    train = config.train
    share = train.pack and train.share_prefixes
    groups = prefix_groups(rows) if share else None

    def order(epoch: int) -> Sequence[tuple[int, ...]]:
        return epoch_order(rows.lengths, train.seed, epoch, train.batch_size, groups)

    return Source(order, lambda some, limits: plan_step([(i, rows[i]) for i in some], limits))


@dataclass(frozen=True, slots=True)
class Work:
    """What the rows ask for. `longest`: tokens of the longest row. `step`: tokens of the heaviest
    step. `share`: predicted places over all places."""

    longest: int
    step: int
    share: float

    def load(self, rows: int, tokens: int) -> Load:
        """An upper bound for the largest micro-batch under these limits."""
        most = max(self.longest, min(tokens, self.step, rows * self.longest))
        return Load(most, max(1, round(self.share * most)), self.longest, -(-self.step // most))


def way_of(config: Config, form: Form) -> Way:
    """How this training holds and computes, as the memory arithmetic wants it."""
    return Way(
        method=config.method,
        weights=form.weights.itemsize,
        compute=form.compute.dtype.itemsize,
        quantization=form.quantization,
        double_quant=form.double_quant,
        rank=0 if config.method == "full" else config.lora.rank,
        dora=config.method != "full" and config.lora.dora,
        dropout=config.lora.dropout > 0,
        optimizer=config.train.optimizer,
        cuda=form.device.type == "cuda",
        scatters=form.device.type == "cpu" and not alloc.finds_again(),
    )


def wishes_of(config: Config, work: Work, way: Way) -> Wishes:
    """What the settings leave open for these rows and this way of training."""
    train = config.train
    fixed = isinstance(train.micro_tokens, int)
    usual = _TOKENS["cuda"] if way.cuda else _TOKENS["cpu"] * 4 // way.compute
    tokens = train.micro_tokens if isinstance(train.micro_tokens, int) else usual
    rows = train.micro_batch if isinstance(train.micro_batch, int) else train.batch_size
    if not fixed:
        tokens = max(work.longest, min(tokens, max(work.step, 1)))
    return Wishes(rows, tokens, work.longest, fixed, train.checkpointing)


def work_of(rows: EncodedSet, source: Source) -> Work:
    """What encoded rows ask for."""
    if len(rows) == 0:
        return Work(1, 1, 1.0)
    # a row of n ids is n - 1 places: its last id is only predicted
    sizes = rows.lengths.clip(min=2) - 1
    step = max(int(sizes[list(step)].sum()) for step in source.steps(0))
    share = int(rows.trained_tokens.sum()) / int(sizes.sum())
    return Work(int(sizes.max()), step, min(1.0, share))


def loads_of(rows: EncodedSet, source: Source, *, pack: bool, share: bool) -> Loads:
    """The largest micro-batch under some limits, found by arranging some steps. A training takes it
    as its limit, so that no other step has a larger one.
    """
    steps = source.steps(0)
    if not steps:
        return Work(1, 1, 1.0).load
    sums = [int(rows.lengths[list(step)].sum()) for step in steps]
    order = sorted(range(len(steps)), key=lambda number: -sums[number])
    longest = int(rows.lengths.argmax())
    with_longest = next(number for number, step in enumerate(steps) if longest in step)
    some = order[:: -(-len(order) // _OTHERS)]
    chosen = {0, with_longest, *order[:_HEAVIEST], *some}
    middle = steps[order[len(order) // 2]]

    @lru_cache(maxsize=32)
    def load(count: int, tokens: int) -> Load:
        limits = MicroLimits(count, tokens, pack, share)
        batches: list[Any] = [one for i in chosen for one in source.plan(steps[i], limits)]
        most = max(one.input_ids.numel() for one in batches)
        batches += source.plan(steps[0], replace(limits, tokens=min(tokens, most), even=False))
        return Load(
            tokens=max(one.input_ids.numel() for one in batches),
            targets=max(len(one.target) for one in batches),
            longest=max(1, int(rows.lengths.max()) - 1),
            parts=len(source.plan(middle, limits)),
        )

    return load


def held_now(way: Way) -> int:
    """Bytes the process holds now, and will hold beside the training itself."""
    held = 0 if way.cuda else int(psutil.Process().memory_info().rss)
    return held + _later(way)


def _later(way: Way) -> int:
    if way.cuda:
        return _LATER["cuda"]
    return _LATER["cpu"] + (_KERNELS if way.compute == HALF else 0)


def settle(config: Config, shape: Shape, way: Way, work: Work, loads: Loads) -> Arrangement:
    """The fastest arrangement within `train.memory_limit` and what is free.

    Raises:
        ResourceError: nothing fits; the hint says what would.
    """
    device = torch.device("cuda" if way.cuda else "cpu")
    runtime = held_now(way)
    # what the process holds already is not free, but belongs to the training
    free = free_memory(device) + (0 if way.cuda else runtime - _later(way))
    asked = config.memory_limit
    limit = free if asked is None else min(free, asked)
    wishes = wishes_of(config, work, way)
    found = arrange(shape, way, wishes, loads, (limit, runtime))
    if found is not None:
        return found
    least = arrange(shape, way, _least(wishes), loads, (None, runtime))
    assert least is not None
    bound = (
        f"{free / 1e9:.1f} GB are free on {device}"
        if asked is None or free < asked
        else f"train.memory_limit is {config.train.memory_limit}"
    )
    advice = advise(config, (shape, way), work, (limit, runtime))
    raise ResourceError(
        f"The training needs at least {least.peak / 1e9:.2f} GB of memory, and {bound}",
        f"This would fit: {advice}. `halfbyte plan` shows each part."
        if advice
        else "No smaller choice of settings would fit either; `halfbyte plan` shows each part.",
    )


def _least(wishes: Wishes) -> Wishes:
    """The smallest arrangement these wishes allow."""
    tokens = wishes.tokens if wishes.fixed else max(wishes.longest, 1)
    setting: Literal["on", "off"] = "off" if wishes.checkpointing == "off" else "on"
    return Wishes(wishes.rows, tokens, wishes.longest, wishes.fixed, setting)


def advise(
    config: Config, model: tuple[Shape, Way], work: Work, room: tuple[int, int]
) -> str | None:
    """The first change of settings with which the training fits; None where none does.

    `room`: the limit, and what the process holds beside the training.
    """
    shape, way = model
    kind = "cuda" if way.cuda else "cpu"
    for words, changed, bounded in _changes(config, work):
        if changed.method == "qlora" and way.method != "qlora":
            way = _as_qlora(way, changed)
        if changed.model.base != config.model.base:
            targets = changed.lora.targets
            shape = shape_of(catalogue_config(SIZES[changed.model.base]), targets, kind)
        wishes = wishes_of(changed, bounded, way)
        found = arrange(shape, way, wishes, bounded.load, room)
        if found is not None:
            return " ".join([*words, *_arranged(found, wishes)]) or None
    return None


def _as_qlora(way: Way, config: Config) -> Way:
    """The same training with method=qlora."""
    held = HALF
    if config.model.compute == "fp32" or not way.cuda:
        held = choose(config.model.compute, "cpu").dtype.itemsize
    return replace(
        way,
        method="qlora",
        weights=held,
        compute=held,
        quantization="nf4",
        double_quant=True,
        rank=config.lora.rank,
        dora=config.lora.dora,
    )


def _changes(config: Config, work: Work) -> Iterator[tuple[list[str], Config, Work]]:
    """Words, settings and rows of one possibility after the other, the mildest first."""
    train = config.train.model_copy(update={"micro_tokens": "auto", "checkpointing": "auto"})
    free = config.model_copy(update={"train": train})
    words: list[str] = []
    yield words, free, work
    if config.method != "qlora":
        words, free = ["method=qlora"], free.model_copy(update={"method": "qlora"})
        yield words, free, work
    for length in (256, 128):
        if work.longest > length:
            share = length / work.longest
            shorter = Work(length, max(length, round(work.step * share)), work.share)
            yield [*words, f"data.max_length={length}"], free, shorter
    for entry in sorted(CATALOGUE, key=lambda one: -one.parameters):
        words = ["method=qlora", f"model.base={entry.name}"]
        changed = {"model": free.model.model_copy(update={"base": entry.name}), "method": "qlora"}
        if not isinstance(free.lora.targets, str):  # the names of another model's layers
            words.append("lora.targets=all-linear")
            changed["lora"] = free.lora.model_copy(update={"targets": "all-linear"})
        yield words, free.model_copy(update=changed), work


def _arranged(found: Arrangement, wishes: Wishes) -> list[str]:
    words = []
    if found.tokens < wishes.tokens or found.recomputed:
        words.append(f"train.micro_tokens={found.tokens}")
    if found.recomputed:
        words.append("train.checkpointing=on")
    return words
