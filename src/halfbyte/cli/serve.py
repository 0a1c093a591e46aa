"""`halfbyte serve`: OpenAI's interface to a base and the adapters trained on it."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import click

from halfbyte.cli.heavy import before_torch
from halfbyte.errors import InputError, MissingError
from halfbyte.importing import uncollected
from halfbyte.serve import Keys, Limits, ServeSettings
from halfbyte.serve.listening import listening

_NEEDED = ("fastapi", "uvicorn", "prometheus_client", "llguidance")
_DEFAULT = Limits()


@click.command(context_settings={"ignore_unknown_options": False})
@click.argument("model", default="smollm2-135m")
@click.option(
    "--compute",
    type=click.Choice(["auto", "bf16", "fp16", "fp32"]),
    default="auto",
    show_default=True,
    help="As model.compute, where MODEL is a base.",
)
@click.option("--runs", default="runs", show_default=True, help="Their adapters are models.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Others need an API key.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True)
@click.option(
    "--api-key",
    envvar="HALFBYTE_API_KEY",
    help="Asked for on every route but /health. Better set HALFBYTE_API_KEY: command lines show.",
)
@click.option(
    "--admin-key",
    envvar="HALFBYTE_ADMIN_KEY",
    help="For loading and unloading adapters; off without one. Or set HALFBYTE_ADMIN_KEY.",
)
@click.option("--allow-host", "hosts", multiple=True, help="A name clients may call it by.")
@click.option("--allow-origin", "origins", multiple=True, help="A web page's origin that may ask.")
@click.option(
    "--max-adapters",
    type=click.IntRange(1),
    default=_DEFAULT.adapters,
    show_default=True,
    help="Adapters in memory; the one unused for longest makes room.",
)
@click.option(
    "--max-batch",
    type=click.IntRange(1),
    default=_DEFAULT.rows,
    show_default=True,
    help="Answers computed at once.",
)
@click.option(
    "--max-waiting",
    type=click.IntRange(0),
    default=_DEFAULT.waiting,
    show_default=True,
    help="Answers that may wait beyond those; more get 429.",
)
@click.option(
    "--max-new-tokens",
    type=click.IntRange(1),
    default=_DEFAULT.new_tokens,
    show_default=True,
    help="Where a request names no limit.",
)
@click.option(
    "--request-seconds",
    type=click.FloatRange(min=1),
    default=_DEFAULT.request_seconds,
    show_default=True,
    help="The longest a request may take.",
)
@click.option(
    "--grace-seconds",
    type=click.IntRange(0),
    default=int(_DEFAULT.grace_seconds),
    show_default=True,
    help="Time for running answers when told to stop.",
)
@click.option(
    "--engine", type=click.Choice(["halfbyte", "vllm"]), default="halfbyte", show_default=True
)
@click.option("--print-command", is_flag=True, help="With --engine vllm: print it, start nothing.")
@click.option("--vllm-arg", "extra", multiple=True, help="With --engine vllm: passed on as it is.")
def serve(model: str, runs: str, engine: str, print_command: bool, **given: Any) -> None:
    """Serve MODEL, a base or a run (`latest`: the newest), with every adapter trained on its base.

    Exits with 0 when all running answers were finished after SIGINT or SIGTERM, with 130 or 143
    when some had to be cut off; with 2, before anything is loaded, when it cannot listen.
    """
    settings = ServeSettings(
        model=model,
        compute=given["compute"],
        runs=Path(runs),
        host=given["host"],
        port=given["port"],
        keys=Keys(given["api_key"] or None, given["admin_key"] or None),
        hosts=given["hosts"],
        origins=given["origins"],
        limits=Limits(
            adapters=given["max_adapters"],
            rows=given["max_batch"],
            waiting=given["max_waiting"],
            new_tokens=given["max_new_tokens"],
            request_seconds=given["request_seconds"],
            grace_seconds=given["grace_seconds"],
        ),
    )
    if engine == "vllm":
        _vllm(settings, given["extra"], print_command)
    elif given["extra"] or print_command:
        raise InputError(
            "--vllm-arg and --print-command go with --engine vllm", "Add it, or leave them out."
        )
    else:
        _serve(settings)


def _serve(settings: ServeSettings) -> None:
    settings.check()
    if any(importlib.util.find_spec(name) is None for name in _NEEDED):
        raise MissingError(
            "The server extra is missing: pip install 'halfbyte[serve]'",
            "Or serve by other means: halfbyte export RUN --to vllm",
        )
    with listening(settings.host, settings.port) as sockets:
        before_torch(shares=True)
        with uncollected():
            from halfbyte.serve.server import run
            from halfbyte.serve.service import open_service

        service = open_service(settings)
        name = service.roster.base.name

        def ready(address: str) -> None:
            click.echo(f"{name} and the adapters of {settings.runs}/ at {address}/v1")

        sys.exit(run(service, settings, sockets, ready))


def _vllm(settings: ServeSettings, extra: tuple[str, ...], only_print: bool) -> None:
    from halfbyte.serve import vllm

    line = vllm.command(settings, extra)
    for name, reason in line.left_out.items():
        click.echo(f"left out: {name}: {reason}", err=True)
    if only_print:
        click.echo(str(line))
    else:
        vllm.start(line)
