"""The same models behind vLLM: its command line, for machines with GPUs and for many of them."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from halfbyte.api.opening import find_run, run_config
from halfbyte.errors import HalfbyteError, MissingError
from halfbyte.model import bases
from halfbyte.model.adapter_config import AdapterConfig, read_adapter_config
from halfbyte.model.catalogue import find
from halfbyte.run import Receipt, RunFolder
from halfbyte.serve.disk import locate
from halfbyte.serve.errors import RefusedError
from halfbyte.serve.settings import ServeSettings

# vLLM takes no other maximum (vllm/config/lora.py, MaxLoRARanks)
_RANKS: Final = (1, 8, 16, 32, 64, 128, 256, 320, 512)
KEY_VARIABLE: Final = "VLLM_API_KEY"
TEMPLATE: Final = "chat_template.jinja"


@dataclass(frozen=True, slots=True)
class Command:
    """What to run. `environment` holds what must not be seen in a list of processes; `left_out`:
    runs that vLLM cannot serve with the others, with the reason.
    """

    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    left_out: Mapping[str, str]

    def __str__(self) -> str:
        names = [f"{name}=…" for name in self.environment]
        return " ".join([*names, shlex.join(self.arguments)])


def command(settings: ServeSettings, extra: Sequence[str] = ()) -> Command:
    """vLLM's command line for the same base, adapters, address and key; `extra` goes to its end.

    Raises:
        HalfbyteError: settings that are unsafe, or no such model.
    """
    settings.check()
    run = _as_run(settings)
    if run is not None and run_config(run).method == "full":
        return _full(run, settings, extra)
    name = settings.model if run is None else run_config(run).model.base
    base = bases.resolve(name)
    quantized = run is not None and run_config(run).method == "qlora"
    chosen, left_out = _adapters(settings.runs, base, quantized)
    entry = find(base.name)
    on_hub = entry is not None and not entry.package
    model = entry.hub if entry is not None and on_hub else str(base.folder)
    parts = ["vllm", "serve", model, "--served-model-name", _shown(base)]
    parts += _listening(settings)
    if quantized:
        parts += ["--quantization", "bitsandbytes"]
    if chosen:
        rank = max(config.r for config in chosen.values())
        limit = next((size for size in _RANKS if size >= rank), _RANKS[-1])
        parts += ["--enable-lora", "--max-lora-rank", str(limit)]
        parts += ["--max-loras", str(min(settings.limits.adapters, len(chosen)))]
        template = settings.runs / next(iter(chosen)) / "adapter" / TEMPLATE
        if template.is_file():
            parts += ["--chat-template", str(template.resolve())]
        folders = {run: (settings.runs / run / "adapter").resolve() for run in chosen}
        parts += ["--lora-modules", *(f"{run}={folder}" for run, folder in folders.items())]
    return Command((*parts, *extra), _secrets(settings), left_out)


def start(line: Command) -> None:
    """Become vLLM: signals and exit code are its own from here on.

    Raises:
        MissingError: vLLM is not installed.
    """
    program = shutil.which(line.arguments[0])
    if program is None:
        raise MissingError(
            "vLLM is not installed here",
            "pip install vllm (it wants a GPU), or serve without --engine vllm; "
            "--print-command shows what to run elsewhere.",
        )
    os.execve(program, list(line.arguments), {**os.environ, **line.environment})  # noqa: S606  no shell is the point


def _as_run(settings: ServeSettings) -> RunFolder | None:
    try:
        return find_run(settings.model, settings.runs)
    except MissingError:
        return None


def _full(run: RunFolder, settings: ServeSettings, extra: Sequence[str]) -> Command:
    parts = ["vllm", "serve", str(run.model.resolve()), "--served-model-name", run.name]
    return Command((*parts, *_listening(settings), *extra), _secrets(settings), {})


def _listening(settings: ServeSettings) -> list[str]:
    parts = ["--host", settings.host, "--port", str(settings.port)]
    if settings.origins:
        parts += ["--allowed-origins", str(list(settings.origins)).replace("'", '"')]
    return [*parts, "--max-num-seqs", str(settings.limits.rows)]


def _secrets(settings: ServeSettings) -> dict[str, str]:
    return {KEY_VARIABLE: settings.keys.api} if settings.keys.api else {}


def _adapters(
    runs: Path, base: bases.Base, quantized: bool
) -> tuple[dict[str, AdapterConfig], dict[str, str]]:
    """Runs of this base that vLLM can serve together: it has one chat template for all."""
    here = base.hashes()
    chosen: dict[str, AdapterConfig] = {}
    left_out: dict[str, str] = {}
    template = None
    for candidate in RunFolder.all(runs):
        try:
            run = locate(runs, candidate.name)
            config, receipt = run_config(run), Receipt.read(run.receipt)
            adapter = read_adapter_config(run.adapter)
        except (HalfbyteError, RefusedError, OSError):
            continue
        if receipt.changed_files(here):
            continue
        reason = _reason(adapter, (config.method == "qlora") != quantized)
        if not reason and template not in (None, receipt.template):
            reason = "its template is not that of the others"
        if reason:
            left_out[run.name] = reason
        else:
            template = receipt.template
            chosen[run.name] = adapter
    return chosen, left_out


def _reason(adapter: AdapterConfig, other_form: bool) -> str:
    if other_form:
        return "it was trained on the base in another form (16 bits, 4 bits)"
    if adapter.use_dora:
        return "vLLM has no DoRA: merge it (halfbyte merge)"
    if adapter.rank_pattern or adapter.alpha_pattern:
        return "its layers differ in rank or alpha: merge it (halfbyte merge)"
    if adapter.r > _RANKS[-1]:
        return f"its rank is above {_RANKS[-1]}: merge it (halfbyte merge)"
    return ""


def _shown(base: bases.Base) -> str:
    if base.kind in {"folder", "gguf"}:
        return Path(base.name).stem if base.kind == "gguf" else Path(base.name).name
    return base.name
