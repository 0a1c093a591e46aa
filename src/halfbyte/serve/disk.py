"""From a name in a request to a run folder: nothing outside the runs folder is ever opened."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from halfbyte.api.opening import Opened, misfit, run_config, run_template
from halfbyte.config import Config
from halfbyte.data.templates import Template
from halfbyte.errors import HalfbyteError, IntegrityError
from halfbyte.model.adapter_config import CONFIG_FILE, WEIGHTS_FILE
from halfbyte.run import Receipt, RunFolder
from halfbyte.serve.errors import RefusedError, unknown_model

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True, slots=True)
class Persona:
    """What is a run's own beside its weights: its template, and the system message it was trained
    with (None: none).
    """

    template: Template
    system: str | None


def locate(runs: Path, name: str) -> RunFolder:
    """The run of this name that has an adapter.

    Raises:
        RefusedError: 404, also where the name or a link in the folder leads out of `runs`.
    """
    if not _NAME.fullmatch(name):
        raise unknown_model(name)
    run = RunFolder(runs / name)
    root = runs.resolve()
    needed = (run.config, run.receipt, run.adapter / CONFIG_FILE, run.adapter / WEIGHTS_FILE)
    for path in needed:
        real = path.resolve()
        if not real.is_relative_to(root / name) or not real.is_file():
            raise unknown_model(name)
    return run


def mark(run: RunFolder) -> tuple[int, ...]:
    """Changes when the run's adapter is written anew."""
    stat = (run.adapter / WEIGHTS_FILE).stat()
    return (stat.st_ino, stat.st_size, stat.st_mtime_ns)


def check_fit(run: RunFolder, opened: Opened) -> None:
    """Refuse a run of another base, or of the same in another form.

    Raises:
        IntegrityError: it was trained on something else; the message says on what.
        HalfbyteError: its settings or receipt cannot be read.
    """
    fault = misfit(run, opened)
    if fault is None:
        return
    config = run_config(run)
    if fault == "base":
        raise IntegrityError(
            f"{run.name}: was trained on {Path(config.model.base).name}, whose files are not those "
            "of the base that is served"
        )
    raise IntegrityError(
        f"{run.name}: was trained on this base in another form ({_words(config)}); start "
        f"another server: halfbyte serve {run.name}"
    )


def persona(run: RunFolder, opened: Opened) -> Persona:
    """The run's template, verified to be that of its training, and its system message.

    Raises:
        HalfbyteError: the template is not the one of the training.
    """
    config = run_config(run)
    same = config.data.template == opened.config.data.template
    if same and Receipt.read(run.receipt).template == opened.template.hash:
        return Persona(opened.template, config.data.system)
    return Persona(run_template(run, config, opened.tokenizer), config.data.system)


def servable(runs: Path, opened: Opened) -> list[RunFolder]:
    """Every run that `locate` and `check_fit` take, oldest first."""
    found = []
    for candidate in RunFolder.all(runs):
        try:
            run = locate(runs, candidate.name)
            check_fit(run, opened)
        except (HalfbyteError, RefusedError, OSError):
            continue  # a listing is not the place to complain: asking for it by name says why
        found.append(run)
    return found


def _words(config: Config) -> str:
    return config.model.quantization if config.method == "qlora" else "not quantized"
