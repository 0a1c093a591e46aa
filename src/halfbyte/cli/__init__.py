"""The `halfbyte` command: arguments in, tables out. Commands load only when they are called."""

from __future__ import annotations

import atexit
import gc
import importlib
import logging
import os
import sys
import warnings
from typing import Any, Final

import click

from halfbyte import __version__
from halfbyte.errors import HalfbyteError
from halfbyte.model.fast import alloc

# name: (module, attribute, help). The help stands here so that `halfbyte --help` loads no command.
COMMANDS: Final[dict[str, tuple[str, str, str]]] = {
    "plan": ("plan", "plan", "What a training would take: memory, time, disk."),
    "train": ("training", "train", "Fine-tune a base with a recipe."),
    "resume": ("training", "resume", "Go on with a stopped run, exactly."),
    "generate": ("generating", "generate", "Answer a prompt with a run or a base."),
    "chat": ("chat", "chat", "Talk with a run or a base."),
    "serve": ("serve", "serve", "Serve a base and its adapters over HTTP, as OpenAI does."),
    "eval": ("evaluate", "evaluate", "Score one model on held-out rows."),
    "compare": ("evaluate", "compare", "Base against tuned, row by row, with statistics."),
    "report": ("evaluate", "report", "Write a run's report: HTML, Markdown, JSON, text."),
    "merge": ("ship", "merge", "Merge an adapter into its base, with proof."),
    "export": ("ship", "export", "Export for PEFT, safetensors, GGUF, Ollama or vLLM."),
    "runs": ("runs", "runs", "List, show and remove runs."),
    "data": ("data", "data", "Check, preview, count, split and convert data."),
    "models": ("models", "models", "List, fetch and quantize bases."),
    "recipes": ("settings", "recipes", "List the recipes."),
    "config": ("settings", "config", "List every setting, or resolve a recipe."),
    "doctor": ("doctor", "doctor", "What this machine is, has and can hold."),
}
# Commands that compute, or say what computing takes: they start with an allocator that wastes less.
_COMPUTE: Final = frozenset(COMMANDS) - {"report", "runs", "data", "recipes", "config"}


class Commands(click.Group):
    """A group whose commands are imported when they are used."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """The names, in the order of a user's way through them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import the command's module now."""
        if cmd_name not in COMMANDS:
            return None
        module, attribute, _ = COMMANDS[cmd_name]
        command = getattr(importlib.import_module(f"halfbyte.cli.{module}"), attribute)
        if not isinstance(command, click.Command):
            raise TypeError(f"halfbyte.cli.{module}.{attribute} is not a command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """Write the table of commands from COMMANDS, loading none."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry[2]) for name, entry in COMMANDS.items()])


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="halfbyte")
def cli() -> None:
    """Fine-tune open language models, and prove on held-out rows that the result is better.

    Exit codes: 0 done, 2 bad input, 3 memory or disk short or refused, 4 something to fetch,
    install or finish first, 5 training cannot go on, 6 evidence not there, 130 or 143 stopped
    after saving.
    """


def main(arguments: list[str] | None = None) -> Any:
    """Run a command; every error of ours, or of the words typed, is said and has its exit code."""
    if arguments is None:
        if _program(sys.argv[1:]):
            alloc.restart()
        atexit.register(gc.freeze)  # Python would search all that torch is for garbage: 1.4 s
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # forked workers warn otherwise
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # transformers' bars follow it
    warnings.filterwarnings("ignore", category=FutureWarning)  # theirs, of APIs we do not call
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it misses a kernel we do not use
    try:
        return cli.main(args=arguments, prog_name="halfbyte", standalone_mode=False)
    except HalfbyteError as error:
        _say(error.message, error.hint)
        sys.exit(error.exit_code)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except click.Abort:
        sys.exit(130)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(2)
    except click.ClickException as error:
        _say(error.format_message(), _usage(getattr(error, "ctx", None)))
        sys.exit(2)
    except BrokenPipeError:  # `halfbyte … | head` closes our output: that is no error
        sys.stderr.close()
        sys.exit(0)
    except OSError as error:
        _say_unprinted(error)
        sys.exit(3)


def _say(message: str, hint: str) -> None:
    """What happened and what to do next, on stderr."""
    click.echo(click.style("error: ", fg="red", bold=True) + message, err=True)
    if hint:
        click.echo(click.style("next:  ", fg="cyan") + hint, err=True)


def _say_unprinted(error: OSError) -> None:
    """Say that nothing can be printed; an error of anything else goes on upwards."""
    if error.errno is None or error.filename is not None or not _output_fails():
        raise error
    reason = f"standard output cannot be written: {error.strerror}"
    _say(reason, "Free some space there, or send it elsewhere.")


def _output_fails() -> bool:
    """Whether nothing can be printed; what waits is dropped then, or Python would try at exit."""
    try:
        sys.stdout.write("\n")
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def _usage(context: click.Context | None) -> str:
    """How the command that was typed wrongly is typed."""
    if context is None:
        return "`halfbyte --help` lists the commands."
    words = " ".join((context.command_path, *context.command.collect_usage_pieces(context)))
    return f"It reads: {words} (`{context.command_path} --help` says more)."


def _program(words: list[str]) -> bool:
    """Whether this process was started for one of the commands that compute."""
    return bool(words) and words[0] in _COMPUTE and sys.orig_argv[-len(words) :] == words
