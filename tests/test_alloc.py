"""glibc's allocator as the commands set it up: blocks are kept, and found again."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from halfbyte import cli
from halfbyte.model.fast import alloc, parts

GLIBC = "glibc" in (os.confstr("CS_GNU_LIBC_VERSION") or "") if hasattr(os, "confstr") else False
needs_glibc = pytest.mark.skipif(not GLIBC, reason="the system's C library is not glibc")
CACHE_OFF = "glibc.malloc.tcache_count=0"


def run(code: str, tunables: str | None = None) -> str:
    """What a Python process of its own prints; `tunables`: its GLIBC_TUNABLES."""
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    if tunables is not None:
        environment["GLIBC_TUNABLES"] = tunables
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, capture_output=True, text=True, check=True, env=environment)
    return done.stdout


def test_it_is_set_up_before_torch() -> None:
    """alloc can be imported and set up without torch, twice."""
    said = run(
        "import sys; from halfbyte.model.fast import alloc; assert 'did not ask' in alloc.state()"
        "; assert alloc.set_up() == alloc.state()"
        "; alloc.trim(); assert 'torch' not in sys.modules; print(alloc.set_up())"
    )
    assert said.split()[0] in ("on", "off:")


@needs_glibc
def test_a_restart_keeps_process_and_arguments() -> None:
    """The same process number, the same code, and what else stood in the variable."""
    code = (
        "import os, sys; from halfbyte.model.fast import alloc"
        "; print(os.getpid(), alloc.finds_again(), os.environ.get('GLIBC_TUNABLES'), flush=True)"
        "; alloc.restart()"
    )
    first, second = run(code, "glibc.malloc.perturb=0").splitlines()
    assert first.split()[0] == second.split()[0]
    assert first.split()[1:] == ["False", "glibc.malloc.perturb=0"]
    assert second.split()[1:] == ["True", f"glibc.malloc.perturb=0:{CACHE_OFF}"]


@needs_glibc
@pytest.mark.parametrize(
    ("tunables", "again"), [(CACHE_OFF, True), ("glibc.malloc.tcache_count=7", False)]
)
def test_what_the_user_set_stays(tunables: str, again: bool) -> None:
    """No restart where the variable says how large the caches are, whatever it says."""
    code = (
        "from halfbyte.model.fast import alloc; print('once', alloc.finds_again(), flush=True)"
        "; alloc.restart()"
    )
    assert run(code, tunables).splitlines() == [f"once {again}"]


@needs_glibc
def test_a_variable_set_too_late_is_not_believed() -> None:
    """The caches are as the process began, whatever its environment says now."""
    said = run(
        "import os; from halfbyte.model.fast import alloc"
        f"; os.environ['GLIBC_TUNABLES'] = '{CACHE_OFF}'; print(alloc.finds_again())"
    )
    assert said.split() == ["False"]


@needs_glibc
def test_freed_blocks_are_found_again() -> None:
    """9 MB of blocks that come and go between small ones that stay: they take 15 MB after 300
    turns, and without the restart 2,159 (glibc 2.36)."""
    said = run(
        "from halfbyte.model.fast import alloc; alloc.restart(); alloc.set_up()\n"
        "import ctypes, torch\n"
        "class Info(ctypes.Structure): _fields_ = [(n, ctypes.c_size_t) for n in 'abcdefghij']\n"
        "libc = ctypes.CDLL(None); libc.mallinfo2.restype = Info\n"
        "def arena(): return libc.mallinfo2().a\n"
        "kept, before = [], arena()\n"
        "for turn in range(300):\n"
        "    large = [torch.empty(size) for size in (900_000, 500_000, 900_000)]\n"
        "    del large\n"
        "    kept += [torch.empty(10) for _ in range(20)]\n"
        "print(arena() - before)\n"
    )
    assert int(said) < 40_000_000


def test_only_a_program_of_its_own_is_restarted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands that compute, called by the process's own words: not from within another program."""
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "halfbyte", "train", "demo"])
    assert cli._program(["train", "demo"])
    assert not cli._program(["train"])
    assert not cli._program([])
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "halfbyte", "runs"])
    assert not cli._program(["runs"])
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "pytest"])
    called: list[int] = []
    monkeypatch.setattr(alloc, "restart", lambda: called.append(1))
    monkeypatch.setattr(sys, "argv", ["halfbyte", "doctor", "--help"])
    cli.main()
    assert not called


def test_the_summary_says_what_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the caches are on, the allocator's line says how to be without."""
    monkeypatch.setattr(alloc, "state", lambda: "on")
    for again, said in ((True, False), (False, True)):
        monkeypatch.setattr(alloc, "finds_again", lambda again=again: again)
        assert (CACHE_OFF in parts._allocator_part("cpu").reason) is said


def test_the_peak_is_this_programs_own() -> None:
    """Not that of the program that started it, which Linux counts as a child's too."""
    code = (
        "import torch; from halfbyte.train.step import peak_memory"
        "; print(peak_memory(torch.device('cpu')))"
    )
    held = 1_500_000_000
    starter = (
        f"import subprocess, sys; held = b'x' * {held}"
        f'; subprocess.run([sys.executable, "-c", {code!r}], check=True)'
    )
    assert 50_000_000 < int(run(starter)) < held


def test_onednn_is_told_to_keep_few_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless the user has said how many."""
    name = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
    monkeypatch.setattr(alloc, "_set_up", lambda: "done")
    monkeypatch.setattr(alloc, "_done", [])
    monkeypatch.setenv(name, "7")
    assert alloc.set_up() == "done"
    assert os.environ[name] == "7"
    monkeypatch.delenv(name)
    alloc.set_up()
    assert os.environ[name] == "128"
