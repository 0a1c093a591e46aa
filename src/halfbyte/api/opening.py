"""Opening a run, one of its checkpoints, or a bare base for use: model, tokenizer and template.

A run says itself what it was made from, so nothing given here can disagree with its training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from halfbyte.config import Config, load_config
from halfbyte.data.templates import Template
from halfbyte.errors import HalfbyteError, InputError, IntegrityError, MissingError, NoRunError
from halfbyte.model import bases
from halfbyte.model.adapter_files import DEFAULT
from halfbyte.model.adapters import attach, load
from halfbyte.model.bases import Base
from halfbyte.model.load import Form, form_of, load_base
from halfbyte.model.loss import TokenLoss
from halfbyte.run import LATEST, Receipt, RunFolder
from halfbyte.train.checkpoint import load_weights

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True, eq=False)
class Opened:
    """A model ready to answer.

    `adapter` is the name under which the run's adapter is loaded (None: a bare base or a fully
    trained model). `run` is None for a bare base.
    """

    name: str
    config: Config
    base: Base
    form: Form
    model: PreTrainedModel | PeftModel
    tokenizer: PreTrainedTokenizerBase
    template: Template
    adapter: str | None = None
    run: RunFolder | None = None


def find_run(run: str | Path | RunFolder, runs: str | Path = "runs") -> RunFolder:
    """A run by path or name; `latest` is the newest one under `runs`.

    Raises:
        NoRunError: there is none.
    """
    return run if isinstance(run, RunFolder) else RunFolder.find(run, runs)


def run_config(run: RunFolder) -> Config:
    """The settings a run was trained with."""
    return load_config(run.config).config


def open_base(name: str, overrides: Sequence[str] = ()) -> Opened:
    """A base without adapter, in 16 or 32 bits; quantized where `overrides` say method=qlora, or
    the name ends with @nf4, @fp4 or @int8.

    Raises:
        InputError, MissingError, IntegrityError: as `bases.resolve` and `load_base`.
    """
    plain, at, quantization = name.rpartition("@")
    words = ("method=lora", *overrides, f"model.base={name}")
    if at and "/" not in quantization:
        held = ("method=qlora", f"model.quantization={quantization}")
        words = (*held, *overrides, f"model.base={plain}")
    config = load_config(None, words).config
    base = bases.resolve(config.model.base, config.model.revision)
    tokenizer = bases.load_tokenizer(base)
    form = form_of(config)
    template = Template.load(config.data.template, tokenizer)
    return Opened(base.name, config, base, form, load_base(base, form), tokenizer, template)


def open_run(
    run: str | Path | RunFolder, runs: str | Path = "runs", step: int | None = None
) -> Opened:
    """A run's tuned model: its base in the form it was trained in, with its adapter on it.

    With `step`, the weights are those of the checkpoint at that step.

    Raises:
        NoRunError, InputError: no such run or checkpoint.
        MissingError: it has not finished yet.
        IntegrityError: base, template or adapter are not those of the training.
    """
    folder = find_run(run, runs)
    config = run_config(folder)
    base = bases.resolve(config.model.base, config.model.revision)
    _require_same_base(folder, base)
    form = form_of(config)
    if step is not None:
        model = _at_step(folder, config, load_base(base, form), step)
    elif config.method == "full":
        _require_result(folder, folder.model)
        model = load_base(Base(str(folder.path), "folder", folder.model), form)
    else:
        _require_result(folder, folder.adapter)
        model = load(load_base(base, form), folder.adapter)
        model.set_adapter(DEFAULT)
    adapter = None if config.method == "full" else DEFAULT
    tokenizer = bases.load_tokenizer(base)
    template = run_template(folder, config, tokenizer)
    name = folder.name if step is None else f"{folder.name}@{step}"
    return Opened(name, config, base, form, model.eval(), tokenizer, template, adapter, folder)


def _at_step(run: RunFolder, config: Config, model: Any, step: int) -> Any:
    path = run.checkpoint(step)
    if not path.is_dir():
        known = ", ".join(str(number) for number, _ in run.checkpoint_steps()) or "none"
        raise InputError(f"{run.path}: no checkpoint at step {step}", f"There are: {known}.")
    if config.method != "full":
        model = attach(model, config.lora, config.train.seed)
    load_weights(TokenLoss(model), path)
    return model


def misfit(run: RunFolder, opened: Opened) -> Literal["base", "form"] | None:
    """Why a run's adapter does not go on an opened base: it was trained on another one, or on this
    one held in another form; None where it does."""
    if Receipt.read(run.receipt).changed_files(opened.base.hashes()):
        return "base"
    form = form_of(run_config(run), str(opened.form.device))
    return None if form.recipe == opened.form.recipe else "form"


def require_fit(run: RunFolder, opened: Opened) -> None:
    """Refuse to put a run's adapter on a base it was not trained on, or on one held otherwise.

    Raises:
        IntegrityError: the message says what the run was trained on.
        InputError: the run has no adapter, or the model in memory is itself fully trained.
    """
    config = run_config(run)
    hint = f"Open it by itself: halfbyte chat {run.name}"
    if config.method == "full" or (opened.run is not None and opened.adapter is None):
        raise InputError(f"{run.name}: full training has no adapter to switch to", hint)
    fault = misfit(run, opened)
    if fault == "base":
        raise IntegrityError(f"{run.name}: was trained on {config.model.base}", hint=hint)
    if fault == "form":
        form = form_of(config)
        held = f"{config.model.base}@{form.quantization}" if form.quantization else "its base"
        raise IntegrityError(
            f"{run.name}: was trained on the base in another form",
            hint=f"{hint}; or begin with {held}",
        )


def run_template(run: RunFolder, config: Config, tokenizer: PreTrainedTokenizerBase) -> Template:
    """The template of a run, verified to be the one it was trained with.

    Raises:
        IntegrityError: the template renders otherwise than at training time.
    """
    template = Template.load(config.data.template, tokenizer)
    trained_with = Receipt.read(run.receipt).template
    if template.hash != trained_with:
        raise IntegrityError(
            f"{run.path}: the template {config.data.template} is not the one of the training",
            hint="Restore the template file or the base's tokenizer as they were.",
        )
    return template


def open_any(name: str, runs: str | Path = "runs") -> Opened:
    """A run by name or path (`RUN@STEP`: one of its checkpoints), else a base by name
    (`BASE@nf4`, `@fp4` or `@int8`: quantized).

    Raises:
        InputError: it is neither, or the run has no such checkpoint.
        MissingError: the run has not finished yet, or the base must be fetched first.
    """
    plain, _, after = name.partition("@")
    step = int(after) if after.isdigit() else None
    try:
        run = find_run(name if step is None else plain, runs)
    except NoRunError as no_run:
        if plain == LATEST:
            raise
        try:
            return replace(open_base(name), name=name)
        except InputError as no_base:
            raise InputError(f"{name}: neither a run nor a base", _hints(no_run, no_base)) from None
    return open_run(run, runs, step)


def _hints(*errors: HalfbyteError) -> str:
    return " ".join(dict.fromkeys(error.hint for error in errors if error.hint))


def _require_result(run: RunFolder, folder: Path) -> None:
    if not folder.is_dir():
        raise MissingError(
            f"{run.path}: this run has no result yet", f"Go on with it: halfbyte resume {run.path}"
        )


def _require_same_base(run: RunFolder, base: Base) -> None:
    changed = Receipt.read(run.receipt).changed_files(base.hashes())
    if changed:
        raise IntegrityError(
            f"{run.path}: the base {base.name} is not the one of the training; these files differ:",
            changed[:3],
            "Restore the base, or pin it with model.revision.",
        )
