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

from halfbyte.api.arranging import loads_of, settle, source_of, way_of, work_of
from halfbyte.api.opening import find_run, run_config
from halfbyte.api.result import write_result
from halfbyte.config import Config, Resolved, write_config
from halfbyte.data.batches import MicroLimits, plan_step
from halfbyte.data.example_json import dump_example
from halfbyte.data.prepare import Prepared, prepare
from halfbyte.errors import IntegrityError
from halfbyte.model import bases
from halfbyte.model.adapters import attach
from halfbyte.model.arrange import Arrangement
from halfbyte.model.bases import Base
from halfbyte.model.budget import trained
from halfbyte.model.fast import alloc, checkpoint
from halfbyte.model.load import Form, form_of, load_base
from halfbyte.model.loss import TokenLoss
from halfbyte.model.memory import ModelSummary, summarize
from halfbyte.model.shape import Shape, shape_of
from halfbyte.run import Receipt, Resumption, RunFolder, write_atomic
from halfbyte.train import (
    Dropped,
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
    held_out_loss,
    load_weights,
    make_accelerator,
    observe,
    prepare_state,
    require_disk,
    resume,
    set_aside,
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
    arrangement: Arrangement
    blocks: int = 0
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

    def _all_events(self, hooks: Hooks) -> Iterator[Event]:
        if self.resumed is not None:
            yield self.resumed
        yield from fit(self.state, self.source, self.update, hooks)
        yield from self._finish()

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

    def _finish(self) -> Iterator[Event]:
        """The best (or last) weights into the run's result folder."""
        best, step = self.state.progress.best_step, self.state.progress.step
        if self.summary.config.train.keep_best and best not in (None, step):
            dropped = self._best(best)
            if dropped is None:
                step = best
            else:
                yield dropped
        if self.main:
            config, model = self.summary.config, self.state.bare.model
            write_result(self.run, config, model, self.tokenizer, self.summary.data, step)
        self.state.accelerator.wait_for_everyone()

    def _best(self, step: int) -> Dropped | None:
        """Put the weights of the best step into the model; where its checkpoint is damaged, the
        model keeps those of the last."""
        path = self.run.checkpoint(step)
        try:
            load_weights(self.state.bare, path)
        except IntegrityError as error:
            self.state.accelerator.wait_for_everyone()  # nobody may still read it
            if self.main and path.is_dir():
                set_aside(path)
            return Dropped(self.state.progress.step, step, error.message)
        return None


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
    source: Source
    shape: Shape
    arrangement: Arrangement
    limits: MicroLimits

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
        shape = shape_of(bases.load_model_config(base), config.lora.targets, form.device.type)
        way = way_of(config, form)
        require_disk(Path(config.runs), disk_bytes(trained(shape, way), config.train))
        pack = config.train.pack and shape.mixes is None
        share = pack and config.train.share_prefixes
        source = source_of(data.train, config)
        loads = loads_of(data.train, source, pack=pack, share=share)
        chosen = settle(config, shape, way, work_of(data.train, source), loads)
        largest = loads(chosen.rows, chosen.tokens).tokens
        limits = MicroLimits(chosen.rows, min(chosen.tokens, largest), pack, share)
        return cls(config, accelerator, base, form, tokenizer, data, source, shape, chosen, limits)

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
            arrangement=self.arrangement.facts(),
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
        mixes = self.shape.mixes if train.pack else None
        notes = [f"rows are padded, not packed: {mixes}"] if mixes else []
        recomputed = checkpoint.set_layers(model, self.arrangement.recomputed)
        if recomputed:
            of = f"{recomputed} of {self.shape.blocks} layers"
            notes.append(f"activations of {of} are recomputed in the backward pass")
        elif train.checkpointing == "on":
            notes.append("train.checkpointing=on has no effect: this model has no layers for it")
        if self.form.compute.replaced:
            notes.append(self.form.compute.reason)
        settings = OptimizerSettings(
            config.learning_rate,
            train.optimizer,
            train.beta2,
            train.weight_decay,
            config.lora.plus_ratio if config.method != "full" else None,
        )
        module = TokenLoss(model)
        state = prepare_state(module, settings, self.limits, train.seed, self.accelerator)
        per_epoch = len(self.source.steps(0))
        update = Update.of(train, per_epoch)
        summary = Summary(
            config,
            self.base,
            self.form,
            summarize(model),
            self.data,
            update.steps,
            per_epoch,
            self.limits,
            self.arrangement,
            self.shape.blocks,
            tuple(notes),
        )
        return Training(run, summary, state, self.source, update, self.tokenizer)


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
