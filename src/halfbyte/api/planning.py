"""What a training would take of memory, time and disk, before anything of it is spent."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch

from halfbyte.api.arranging import (
    Work,
    advise,
    held_now,
    loads_of,
    settle,
    source_of,
    way_of,
    wishes_of,
    work_of,
)
from halfbyte.config import Config, Resolved
from halfbyte.data.prepare import prepare
from halfbyte.data.sources import find_sources
from halfbyte.errors import HalfbyteError, InputError, MissingError, ResourceError
from halfbyte.model import bases
from halfbyte.model.arrange import Loads, arrange
from halfbyte.model.bases import Base
from halfbyte.model.budget import Memory, Way, memory, trained
from halfbyte.model.catalogue import find
from halfbyte.model.compute import Compute, whole_precision
from halfbyte.model.load import Form, form_of
from halfbyte.model.pace import CARDS, Card, Pace, calibrate, card_pace, step_seconds
from halfbyte.model.shape import Shape, catalogue_config, shape_of
from halfbyte.model.sizes import SIZES
from halfbyte.train import disk_bytes
from halfbyte.train.schedules import total_steps

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

SIZES_ASKED: Final = (8, 12, 16, 24)  # GB of memory people have
_Q8: Final = 34 / 32  # bytes a weight in GGUF's q8_0: 32 bytes and a 16-bit scale for 32 weights


@dataclass(frozen=True, slots=True)
class Rows:
    """The data, as far as it is known. `exact`: counted with the tokenizer; else `tokens` and
    `longest` are upper bounds (rows times data.max_length). `note` says what is missing."""

    rows: int | None
    held_out: int | None
    tokens: int | None
    trained: int | None
    longest: int
    exact: bool
    note: str = ""


@dataclass(frozen=True, slots=True)
class Fit:
    """Whether a training fits so many GB (1e9 bytes), and the change that would make it fit."""

    gigabytes: int
    fits: bool
    change: str | None = None


@dataclass(frozen=True, slots=True)
class Disk:
    """Bytes: the run with its checkpoints, the model merged in 16 bits, and exported as q8_0."""

    run: int
    merged: int
    exported: int


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything `halfbyte plan` says. Sizes in bytes, times in seconds.

    `where`: the machine or card it is planned for; `estimated`: from published figures, not from a
    measurement. `recomputed`: layers that compute activations again. `tokens_at_once`,
    `rows_at_once`: of the largest micro-batch. `over`: why it does not fit here; empty if it does.
    """

    base: str
    method: str
    compute: str
    parameters: int
    trainable: int
    memory: Memory
    peak: int
    tokens_at_once: int
    rows_at_once: int
    recomputed: int
    layers: int
    data: Rows
    steps: int | None
    steps_per_epoch: int | None
    where: str
    estimated: bool
    step_seconds: float | None
    seconds: float | None
    disk: Disk
    fits: tuple[Fit, ...]
    over: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


@dataclass(frozen=True, slots=True, eq=False)
class _Parts:
    """What a plan is made from."""

    config: Config
    card: Card | None
    name: str
    form: Form
    shape: Shape
    way: Way
    rows: Rows
    work: Work
    loads: Loads


def plan_training(resolved: Resolved, card: str | None = None, *, timed: bool = True) -> Plan:
    """Plan a training for this machine, or for the card of this name (`model.pace.CARDS`).

    No weight is read, and the base need not be on this machine if the catalogue knows it. With
    `timed` this machine's speed is measured, for about ten seconds.

    Raises:
        InputError: an unknown card, or settings that cannot work.
        MissingError: neither a config nor an entry of the catalogue for this base.
    """
    chosen = _card(card)
    parts = _parts(resolved.config, chosen)
    arrangement, over = _arrangement(parts)
    rows_at_once, tokens, recomputed = arrangement
    load = parts.loads(rows_at_once, tokens)
    runtime = held_now(parts.way)
    needed = memory(parts.shape, parts.way, load, recomputed, runtime)
    pace = _pace(parts, timed)
    each = None if pace is None else step_seconds(parts.shape, parts.way, load, recomputed, pace)
    steps, per_epoch = _steps(parts)
    return Plan(
        base=parts.name,
        method=parts.config.method,
        compute=parts.form.compute.name,
        parameters=parts.shape.parameters,
        trainable=trained(parts.shape, parts.way),
        memory=needed,
        peak=needed.peak,
        tokens_at_once=load.tokens,
        rows_at_once=rows_at_once,
        recomputed=recomputed,
        layers=parts.shape.blocks,
        data=parts.rows,
        steps=steps,
        steps_per_epoch=per_epoch,
        where=chosen.name if chosen else f"this machine ({parts.form.device})",
        estimated=chosen is not None,
        step_seconds=each,
        seconds=None if each is None or steps is None else each * steps,
        disk=_disk(parts),
        fits=tuple(_fit(parts, size, needed.peak) for size in SIZES_ASKED),
        over=over,
    )


def _card(name: str | None) -> Card | None:
    if name is None:
        return None
    key = name.lower().replace(" ", "").replace("-", "").removesuffix("12gb")
    if key not in CARDS:
        known = ", ".join(CARDS)
        raise InputError(f"--card {name}: no published figures for this card", f"Known: {known}.")
    return CARDS[key]


def _parts(config: Config, card: Card | None) -> _Parts:
    name, found, base = find_config(config.model.base, config.model.revision)
    form = form_of(config) if card is None else _form_on(config, card)
    shape = shape_of(found, config.lora.targets, form.device.type)
    rows, work, loads = _data(config, shape, base)
    return _Parts(config, card, name, form, shape, way_of(config, form), rows, work, loads)


def find_config(
    name: str, revision: str | None = None
) -> tuple[str, PretrainedConfig, Base | None]:
    """A base's name, its config, and the base itself where its config and tokenizer are here.

    Its weights may be absent: of a local folder only config.json is asked for, of the hub's cache
    only a snapshot with one, and the catalogue's bases need no file at all.

    Raises:
        MissingError, InputError: as `bases.resolve`, where none of them helps.
    """
    path = Path(name).expanduser()
    if (path / "config.json").is_file():
        base = Base(str(path.resolve()), "folder", path.resolve())
        return base.name, bases.load_model_config(base), base
    try:
        base = bases.resolve(name, revision)
    except MissingError:
        entry = find(name)
        hub = entry.hub if entry else name
        folder = _hub_texts(hub, revision)
        if folder is not None:
            base = Base(hub, "hub", folder, revision=folder.name)
            return hub, bases.load_model_config(base), base
        if entry is None:
            raise
        return entry.name, catalogue_config(SIZES[entry.name]), None
    return base.name, bases.load_model_config(base), base


def _hub_texts(hub: str, revision: str | None) -> Path | None:
    """A hub snapshot that has at least a config."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(hub, "config.json", revision=revision)
    return Path(found).parent if isinstance(found, str) else None


def _form_on(config: Config, card: Card) -> Form:
    """How the base is held on a card that is not here."""
    device = torch.device("cuda")
    if config.method == "full":
        return Form(device, whole_precision(config.model.compute), torch.float32)
    dtype = torch.bfloat16 if card.bf16 else torch.float16
    if config.model.compute == "fp32":
        dtype = torch.float32
    elif config.model.compute == "fp16":
        dtype = torch.float16
    compute = Compute(dtype, f"on {card.name}")
    kind = config.model.quantization if config.method == "qlora" else None
    return Form(device, compute, dtype, kind, config.model.double_quant)


def _data(config: Config, shape: Shape, base: Base | None) -> tuple[Rows, Work, Loads]:
    """The rows counted with the base's tokenizer; without one, rows times data.max_length."""
    tokenizer = _tokenizer(base)
    if tokenizer is None:
        return _bounded(config, "its tokenizer is not here: an upper bound")
    try:
        data = prepare(config.data, tokenizer, bases.cache_dir())
    except MissingError as error:
        return _bounded(config, error.message)
    pack = config.train.pack and shape.mixes is None
    source = source_of(data.train, config)
    rows = Rows(
        rows=len(data.train),
        held_out=len(data.valid),
        tokens=data.report.train.tokens,
        trained=data.report.train.trained_tokens,
        longest=int(data.train.lengths.max()) if len(data.train) else 0,
        exact=True,
    )
    share = pack and config.train.share_prefixes
    loads = loads_of(data.train, source, pack=pack, share=share)
    return rows, work_of(data.train, source), loads


def _tokenizer(base: Base | None) -> PreTrainedTokenizerBase | None:
    if base is None:
        return None
    try:
        return bases.load_tokenizer(base)
    except HalfbyteError:
        return None


def _bounded(config: Config, note: str) -> tuple[Rows, Work, Loads]:
    longest = config.data.max_length
    work = Work(longest, longest * config.train.batch_size, 1.0)
    try:
        train, valid = find_sources(config.data.train, config.data.valid)
    except MissingError as error:
        return Rows(None, None, None, None, longest, False, error.message), work, work.load
    count = sum(1 for _ in train.rows())
    count = min(count, config.data.limit or count)
    held = sum(1 for _ in valid.rows()) if valid else 0
    if valid is None:
        size = config.data.valid_size
        held = min(count - 1, int(size if size >= 1 else size * count))
        count -= held
    work = Work(longest, longest * min(count, config.train.batch_size), 1.0)
    return Rows(count, held, count * longest, None, longest, False, note), work, work.load


def _arrangement(parts: _Parts) -> tuple[tuple[int, int, int], str]:
    """(rows, tokens, layers recomputed), and why it does not fit; empty if it does."""
    wishes = wishes_of(parts.config, parts.work, parts.way)
    if parts.card is None:
        try:
            found = settle(parts.config, parts.shape, parts.way, parts.work, parts.loads)
        except ResourceError as error:
            every = parts.shape.blocks if wishes.checkpointing != "off" else 0
            tokens = wishes.tokens if wishes.fixed else parts.work.longest
            return (wishes.rows, tokens, every), f"{error.message}. {error.hint}"
        return (found.rows, found.tokens, found.recomputed), ""
    limit = min(parts.card.bytes, parts.config.memory_limit or parts.card.bytes)
    room = (limit, held_now(parts.way))
    fitting = arrange(parts.shape, parts.way, wishes, parts.loads, room)
    if fitting is not None:
        return (fitting.rows, fitting.tokens, fitting.recomputed), ""
    advice = advise(parts.config, (parts.shape, parts.way), parts.work, room)
    over = f"It does not fit {limit / 1e9:.0f} GB" + (f"; this would: {advice}" if advice else "")
    tokens = wishes.tokens if wishes.fixed else parts.work.longest
    return (wishes.rows, tokens, parts.shape.blocks), over


def _pace(parts: _Parts, timed: bool) -> Pace | None:
    if parts.card is not None:
        return card_pace(parts.card, parts.form.compute.dtype)
    if not timed or parts.form.device.type != "cpu":
        return None
    if parts.config.train.threads is not None:
        torch.set_num_threads(parts.config.train.threads)
    return calibrate(parts.shape, parts.form.compute.dtype)


def _steps(parts: _Parts) -> tuple[int | None, int | None]:
    if parts.rows.rows is None:
        return parts.config.train.max_steps, None
    train = parts.config.train
    per_epoch = -(-parts.rows.rows // train.batch_size)
    return total_steps(train.epochs, per_epoch, train.max_steps), per_epoch


def _disk(parts: _Parts) -> Disk:
    count = trained(parts.shape, parts.way)
    weights = parts.shape.parameters
    run = disk_bytes(count, parts.config.train)
    return Disk(run, 2 * weights, round(_Q8 * weights))


def _fit(parts: _Parts, gigabytes: int, peak: int) -> Fit:
    """Whether it fits, and what would make it fit, on memory of this size."""
    limit = gigabytes * 10**9
    if peak <= limit:
        return Fit(gigabytes, fits=True)
    room = (limit, held_now(parts.way))
    found = advise(parts.config, (parts.shape, parts.way), parts.work, room)
    return Fit(gigabytes, fits=False, change=found)
