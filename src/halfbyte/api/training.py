"""Training: from resolved settings to a run with its result, and going on with a stopped one.

Everything is loaded and checked before the first file is written.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import broadcast_object_list

from halfbyte.api.opening import find_run, run_config
from halfbyte.api.result import write_result
from halfbyte.config import Config, Resolved, write_config
from halfbyte.data.batches import MicroLimits, epoch_order, plan_step, prefix_groups
from halfbyte.data.encoded import EncodedSet
from halfbyte.data.example_json import dump_example
from halfbyte.data.prepare import Prepared, prepare
from halfbyte.errors import ResourceError
from halfbyte.model import bases
from halfbyte.model.adapters import attach, enable_checkpointing
from halfbyte.model.bases import Base
from halfbyte.model.fast import alloc
from halfbyte.model.fast.parts import causal_model, packing_fault
from halfbyte.model.load import Form, form_of, load_base
from halfbyte.model.loss import TokenLoss
from halfbyte.model.memory import ModelSummary, least, summarize
from halfbyte.run import Receipt, Resumption, RunFolder, write_atomic
from halfbyte.train import (
    Event,
    Hooks,
    JsonLines,
    LossPlot,
    Observer,
    OptimizerSettings,
    Saver,
    Source,
    State,
    Stop,
    TensorBoard,
    Update,
    disk_bytes,
    fit,
    free_memory,
    held_out_loss,
    load_weights,
    make_accelerator,
    observe,
    prepare_state,
    require_disk,
    require_memory,
    resume,
)

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Summary:
    """What is about to be trained, for people to read before it starts."""

    config: Config
    base: Base
    form: Form
    model: ModelSummary
    data: Prepared
    steps: int
    steps_per_epoch: int
    limits: MicroLimits
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Training:
    """A training that is ready to start: loaded, checked, with its run folder made."""

    run: RunFolder
    summary: Summary
    state: State
    source: Source
    update: Update
    tokenizer: PreTrainedTokenizerBase
    resumed: Event | None = None

    @property
    def main(self) -> bool:
        """Whether this process writes files and talks to the user."""
        return bool(self.state.accelerator.is_main_process)

    def events(self) -> Iterator[Event]:
        """Train, and leave the result in the run folder.

        Raises:
            Interrupted: stopped by a signal, after a whole checkpoint.
            TrainingError, ResourceError: as `train.fit`.
        """
        config = self.summary.config
        saver = Saver(self.run, config.train.keep, keep_best=config.train.keep_best)
        stop = Stop()
        hooks = Hooks(self._evaluator(stop), saver, stop, f"halfbyte resume {self.run.path}")
        with ExitStack() as held:
            if self.main:
                held.enter_context(self.run.lock())
            yield from observe(self._all_events(hooks), self._observers())
            self._finish()

    def _all_events(self, hooks: Hooks) -> Iterator[Event]:
        if self.resumed is not None:
            yield self.resumed
        yield from fit(self.state, self.source, self.update, hooks)

    def _observers(self) -> list[Observer]:
        """What is written down of a training; other processes only compute."""
        if not self.main:
            return []
        found: list[Observer] = [JsonLines(self.run), LossPlot(self.run)]
        if self.summary.config.train.tensorboard:
            found.append(TensorBoard(self.run.tensorboard, self.state.progress.step))
        return found

    def _evaluator(self, stop: Stop) -> Callable[[], float | None] | None:
        valid, limits = self.summary.data.valid, self.summary.limits
        if len(valid) == 0:
            return None

        def batches(rows: Sequence[int]) -> Iterator[Any]:
            order = sorted(rows, key=lambda row: -int(valid.lengths[row]))
            size = self.summary.config.train.batch_size
            for start in range(0, len(order), size):
                part = order[start : start + size]
                yield from plan_step([(row, valid[row]) for row in part], limits)

        return lambda: held_out_loss(self.state, batches, len(valid), lambda: bool(stop.signal))

    def _finish(self) -> None:
        """The best (or last) weights into the run's result folder."""
        best = self.state.progress.best_step
        last = self.state.progress.step
        if self.summary.config.train.keep_best and best is not None and best != last:
            load_weights(self.state.bare, self.run.checkpoint(best))
        if self.main:
            model = self.state.bare.model
            write_result(self.run, self.summary.config, model, self.tokenizer, self.summary.data)
        self.state.accelerator.wait_for_everyone()


def prepare_training(resolved: Resolved) -> Training:
    """Load and check everything, then make the run folder.

    Raises:
        InputError, DataError, IntegrityError: data or base cannot be used.
        MissingError: the base must be fetched first.
        ResourceError: memory or disk does not suffice.
    """
    parts = _Parts.load(resolved.config)
    run = _new_run(parts)
    if parts.accelerator.is_main_process:
        parts.receipt().write(run.receipt)
        write_atomic(run.data_report, parts.data.report.to_json() + "\n")
        valid = parts.data.valid
        lines = (dump_example(valid.example(row)) for row in range(len(valid)))
        write_atomic(run.held_out, b"".join(line + b"\n" for line in lines))
    parts.accelerator.wait_for_everyone()
    return parts.training(run)


def prepare_resume(
    run: str | Path | RunFolder, runs: str | Path = "runs", *, force: bool = False
) -> Training:
    """Go on with a run from its newest whole checkpoint.

    Raises:
        InputError: data, template, base or settings changed; `force` goes on and is recorded.
        IntegrityError: no checkpoint can be used.
    """
    folder = find_run(run, runs)
    config = run_config(folder)
    before = Receipt.read(folder.receipt)
    with folder.lock():  # refuses at once while another process trains here
        pass
    parts = _Parts.load(config)
    differences = before.check(parts.receipt(), force=force)
    training = parts.training(folder)
    notes = tuple(str(difference) for difference in differences)
    with ExitStack() as held:
        if training.main:
            held.enter_context(folder.lock())
        event = resume(training.state, folder, notes)
        if training.main:
            step = training.state.progress.step
            entry = Resumption(_now(), step, forced=force, differences=notes)
            now = parts.receipt() if force else None
            before.with_resumption(entry, now).write(folder.receipt)
    return replace(training, resumed=event)


@dataclass(frozen=True, slots=True, eq=False)
class _Parts:
    """What a training is put together from."""

    config: Config
    accelerator: Accelerator
    base: Base
    form: Form
    tokenizer: PreTrainedTokenizerBase
    data: Prepared

    @classmethod
    def load(cls, config: Config) -> _Parts:
        if config.train.threads is not None:
            torch.set_num_threads(config.train.threads)
        accelerator = make_accelerator()
        form = form_of(config, str(accelerator.device))
        base = bases.resolve(config.model.base, config.model.revision)
        tokenizer = bases.load_tokenizer(base)
        with accelerator.main_process_first():  # one process encodes, the others find the cache
            data = prepare(config.data, tokenizer, bases.cache_dir())
        parts = cls(config, accelerator, base, form, tokenizer, data)
        parts.require_room()
        return parts

    def require_room(self) -> None:
        """Refuse what cannot fit, before any weight is read.

        Raises:
            ResourceError: with what is needed and what is free.
        """
        lora = None if self.config.method == "full" else self.config.lora
        needed = least(bases.load_model_config(self.base), self.form, lora)
        limit = self.config.memory_limit
        if limit is not None and needed.total > limit:
            raise ResourceError(
                f"The training needs at least {needed.total / 1e9:.1f} GB of memory, more than "
                f"train.memory_limit={self.config.train.memory_limit}",
                "Use method=qlora, a smaller model.base or lora.rank, or raise the limit.",
            )
        require_memory(needed.total, self.form.device)
        require_disk(Path(self.config.runs), disk_bytes(needed.trainable, self.config.train))

    def _recomputes(self, model: Any, limits: MicroLimits) -> bool:
        """Whether activations are recomputed: as set, or where they would not fit."""
        setting = self.config.train.checkpointing
        if setting != "auto":
            return setting == "on"
        shape = model.config.get_text_config()
        # kept a token and layer: 10.3 times the width, counted on Llama's shape (DECISIONS.md)
        floats = 10.3 * shape.hidden_size * shape.num_hidden_layers * limits.tokens
        free = free_memory(self.form.device)  # the weights are loaded by now
        limit = self.config.memory_limit
        if limit is not None:
            free = min(free, limit - summarize(model).base_bytes)
        return floats * self.form.compute.dtype.itemsize > 0.8 * free

    def receipt(self) -> Receipt:
        """What the run is made from."""
        return Receipt(
            base=self.base.name,
            revision=self.base.revision,
            base_files=self.base.hashes(),
            # the rows as the model sees them, not the cache's key: that changes with our own code
            data={
                **{name: one for name, one in self.data.hashes.items() if name != "encoded"},
                "train rows": self.data.train.digest(),
                "valid rows": self.data.valid.digest(),
            },
            template=self.data.template.hash,
            config=self.config.model_dump(mode="json"),
            seed=self.config.train.seed,
            threads=torch.get_num_threads(),
            device=_device_words(self.form),
            created=_now(),
            processes=self.accelerator.num_processes,
        )

    def training(self, run: RunFolder) -> Training:
        """Load the model and put the parts together."""
        config, train = self.config, self.config.train
        model: Any = load_base(self.base, self.form)
        alloc.trim()
        if config.method != "full":
            model = attach(model, config.lora, train.seed)
        else:
            model.requires_grad_(True)
        mixes = packing_fault(causal_model(model)) if train.pack else None
        limits = _limits(config, self.data.train, pack=train.pack and mixes is None)
        notes = [f"rows are padded, not packed: {mixes}"] if mixes else []
        if self._recomputes(model, limits):
            enable_checkpointing(model)
            notes.append("activations are recomputed in the backward pass (train.checkpointing)")
        if self.form.compute.replaced:
            notes.append(self.form.compute.reason)
        settings = OptimizerSettings(
            config.learning_rate,
            train.optimizer,
            train.beta2,
            train.weight_decay,
            config.lora.plus_ratio if config.method != "full" else None,
        )
        state = prepare_state(TokenLoss(model), settings, limits, train.seed, self.accelerator)
        source = _source(self.data.train, config)
        per_epoch = len(source.steps(0))
        update = Update.of(train, per_epoch)
        summary = Summary(
            config,
            self.base,
            self.form,
            summarize(model),
            self.data,
            update.steps,
            per_epoch,
            limits,
            tuple(notes),
        )
        return Training(run, summary, state, source, update, self.tokenizer)


def _source(rows: EncodedSet, config: Config) -> Source:
    train = config.train
    share = train.pack and train.share_prefixes
    groups = prefix_groups(rows) if share else None

    def order(epoch: int) -> Sequence[tuple[int, ...]]:
        return epoch_order(rows.lengths, train.seed, epoch, train.batch_size, groups)

    return Source(order, lambda some, limits: plan_step([(i, rows[i]) for i in some], limits))


def _limits(config: Config, rows: EncodedSet, *, pack: bool) -> MicroLimits:
    train = config.train
    longest = int(rows.lengths.max()) if len(rows) else 1
    count = train.micro_batch if isinstance(train.micro_batch, int) else train.batch_size
    budget = train.micro_tokens
    # a QLoRA step of a 135M base keeps 0.7 MB a token: 1,024 tokens at once suit a small machine
    tokens = budget if isinstance(budget, int) else max(1024, longest)
    return MicroLimits(count, tokens, pack, pack and train.share_prefixes)


def _new_run(parts: _Parts) -> RunFolder:
    config = parts.config
    shared: list[Any] = [None]
    if parts.accelerator.is_main_process:
        short = parts.base.name.rstrip("/").rpartition("/")[2]
        stem = f"{short}-{config.method}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
        run = RunFolder.create(config.runs, config.name, write_config(config), stem)
        shared = [str(run.path)]
    broadcast_object_list(shared)
    return RunFolder(shared[0])


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _device_words(form: Form) -> str:
    if form.device.type == "cuda":
        return torch.cuda.get_device_name(form.device)
    return f"cpu ({os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()})"
