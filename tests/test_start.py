"""How programs begin and end: what is loaded, and when Python looks for garbage."""

from __future__ import annotations

import gc
import subprocess
import sys

from halfbyte.importing import uncollected


def said(program: str) -> list[str]:
    """The lines that a Python program of its own prints."""
    line = [sys.executable, "-c", program]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_the_api_loads_no_scores_and_leaves_the_collector_on() -> None:
    """Scores of text and what they bring are loaded where they are asked for."""
    program = (
        "import gc, sys; from halfbyte import api;"
        "print([m for m in ('nltk', 'rouge_score', 'sacrebleu', 'scipy.stats') if m in sys.modules]"
        ", gc.isenabled())"
    )
    assert said(program) == ["[] True"]


def test_imports_are_not_searched_for_garbage() -> None:
    """The collector is off in the block, and afterwards what it was before."""
    was = gc.isenabled()
    try:
        for before in (True, False):
            (gc.enable if before else gc.disable)()
            with uncollected():
                assert not gc.isenabled()
            assert gc.isenabled() is before
    finally:
        (gc.enable if was else gc.disable)()


def test_a_command_ends_without_a_last_search() -> None:
    """At exit everything is frozen; what was registered to be done then is done."""
    program = (
        "import atexit, gc, sys; from halfbyte import cli;"
        "atexit.register(lambda: print('frozen', gc.get_freeze_count() > 0));"
        "sys.argv = ['halfbyte', 'recipes']; cli.main()"
    )
    assert said(program)[-1] == "frozen True"
