"""`halfbyte merge` and `halfbyte export`: from a run to files that other engines open."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from halfbyte.cli.heavy import before_torch
from halfbyte.errors import InputError

_EXACT = ("f32", "f16")  # kinds of GGUF whose answers are the same (DECISIONS.md)
_TARGETS = ("peft", "safetensors", "gguf", "ollama", "vllm")


@click.command()
@click.argument("run")
@click.option("--out", type=click.Path(path_type=Path), help="The folder to write (RUN/merged).")
@click.option(
    "--into",
    type=click.Choice(["auto", "original", "dequantized"]),
    default="auto",
    show_default=True,
    help="Which weights the adapter is added to; auto measures both.",
)
@click.option(
    "--dtype",
    type=click.Choice(["auto", "bfloat16", "float16", "float32"]),
    default="auto",
    show_default=True,
    help="How the sums are stored; auto: as the base's files, or float16 where that is nearer.",
)
@click.option(
    "--adapter",
    "adapters",
    multiple=True,
    metavar="RUN[=WEIGHT]",
    help="Another run's adapter to add; RUN's own has weight 1, or --weight.",
)
@click.option("--weight", type=float, default=1.0, help="The weight of RUN's own adapter.")
@click.option("--rows", type=click.IntRange(1), default=50, help="Held-out rows to measure on.")
@click.option("--force", is_flag=True, help="Keep the nearest merge even when none is faithful.")
@click.option("--runs", default="runs", show_default=True, help="The folder of runs.")
def merge(run: str, runs: str, dtype: str, adapters: tuple[str, ...], **how: Any) -> None:
    """Merge the adapter of RUN (`latest`: the newest) into its base.

    Proves on held-out rows that it is the same model, and leaves merge-report.json; refuses when
    no merge does what base + adapter does.
    """
    before_torch()
    from halfbyte import api

    merging = api.Merging(
        dtype=None if dtype == "auto" else dtype,
        adapters=dict(_weighted(text) for text in adapters),
        **how,
    )
    report = api.merge(run, merging, runs)
    _print(report.lines())
    click.echo(f"kept    {report.kept}\nmerged  {merging.out or api.find_run(run, runs).merged}")


@click.command()
@click.argument("run")
@click.option("--to", "target", type=click.Choice(_TARGETS), required=True, help="The form.")
@click.option("--out", type=click.Path(path_type=Path), help="The folder (RUN/export/TARGET).")
@click.option(
    "--type",
    "kind",
    type=click.Choice(["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"]),
    default="q8_0",
    show_default=True,
    help="How a GGUF's matrices are held. q8_0 takes half of f16; f16 keeps long answers the same.",
)
@click.option("--adapter-only", is_flag=True, help="GGUF: the adapter alone, for --lora.")
@click.option("--answers/--no-answers", default=True, help="Compare greedy answers too.")
@click.option("--runs", default="runs", show_default=True, help="The folder of runs.")
def export(
    run: str,
    target: str,
    out: Path | None,
    kind: str,
    adapter_only: bool,
    answers: bool,
    runs: str,
) -> None:
    """Export RUN (`latest`: the newest), open it again, and compare token ids and answers."""
    before_torch()
    from halfbyte import api

    if adapter_only and target != "gguf":
        raise InputError(f"--adapter-only: for --to gguf; --to {target} needs the whole model")
    how = api.Exporting(target, out, kind, adapter_only=adapter_only, answers=answers)
    report = api.export(run, how, runs)
    _print(report.lines())
    parted = report.greedy is not None and report.greedy.first is not None
    if parted and target == "gguf" and kind not in _EXACT:
        click.echo(
            f"note: {kind} rounds the weights, so close choices may fall otherwise, and an answer "
            "counts as lost from its first token that differs. --type f16 keeps the answers."
        )


def _weighted(text: str) -> tuple[str, float]:
    name, sign, weight = text.rpartition("=")
    if not sign:
        return text, 1.0
    try:
        return name, float(weight)
    except ValueError:
        raise InputError(f"--adapter {text}: reads RUN or RUN=WEIGHT, like run-2=0.5") from None


def _print(lines: Any) -> None:
    for line in lines:
        click.echo(line)
