"""glibc's allocator, told to keep what torch frees, and to find it again.

Kept, big buffers are not faulted in anew each step: 15 to 25 % of a QLoRA step of SmolLM2-135M.
Found again: torch aligns every block, so glibc cuts a sliver of some 64 bytes off the hole it
uses, and each thread's cache of small blocks keeps that sliver when the block is freed. A hole so
trimmed fits its own size no more, and a training held up to twice what it used. Only the
environment can turn that cache off, before the program starts: `restart`.

This module imports nothing heavy, because it must run before torch takes its first large block.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from pathlib import Path
from typing import Final

# mallopt's parameters, from malloc.h
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
# Larger blocks are given back at once. Of dense weights of a 7B model (235 MB each) freed holes are
# not used again, because torch aligns its blocks: a step took 20 GB and was killed. Nothing of a
# 135M model is as large but in full training.
MMAP_FROM: Final = 1 << 26
_TRIM_FROM: Final = (1 << 31) - 1


# Names and values as in glibc's manual, "Memory Allocation Tunables"
_TUNABLES: Final = "GLIBC_TUNABLES"
_CACHE: Final = "glibc.malloc.tcache_count"
_WITHOUT: Final = f"{_CACHE}=0"
SETTING: Final = f"{_TUNABLES}={_WITHOUT}"  # what a program's environment needs before it starts

# oneDNN, which multiplies bf16 matrices on a CPU, keeps 1,024 kernels with what they need, some
# 0.4 MB each; a micro-batch uses about 50. It reads this when it makes the first.
_KERNELS: Final = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
_KERNELS_KEPT: Final = "128"
_done: list[str] = []  # what the last `set_up` of this process said


def set_up() -> str:
    """Keep freed memory for the next step; returns what was done, or why nothing was. In any case
    oneDNN is told to keep few kernels, unless the user has said how many.
    """
    os.environ.setdefault(_KERNELS, _KERNELS_KEPT)
    _done[:] = [_set_up()]
    return _done[0]


def restart() -> None:
    """Start this program again, as the same process, without glibc's caches of small blocks.

    Does nothing where that is so already, where the user has said how large they are, where the C
    library is another, or under a debugger. To be called before anything was read or begun.
    """
    before = os.environ.get(_TUNABLES, "")
    if _CACHE in before or not sys.executable or not _glibc() or sys.gettrace() is not None:
        return
    os.environ[_TUNABLES] = ":".join(filter(None, (before, _WITHOUT)))
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606  it is this program


def finds_again() -> bool:
    """Whether freed blocks serve blocks of their size: this process began without the caches."""
    try:
        began = Path("/proc/self/environ").read_bytes()  # not what was set later
    except OSError:
        return False
    # glibc reads the list in place, and some versions leave zeros where its colons were
    words = began.replace(f"{_TUNABLES}=".encode(), b"").replace(b":", b"\0").split(b"\0")
    return _WITHOUT.encode() in words


def _glibc() -> bool:
    """Whether the C library is glibc."""
    try:
        return "glibc" in (os.confstr("CS_GNU_LIBC_VERSION") or "")
    except (AttributeError, ValueError, OSError):  # Windows has no confstr, others not this name
        return False


def state() -> str:
    """What `set_up` said in this process: `on`, or `off: ` and the reason."""
    return _done[0] if _done else "off: this program did not ask for it (alloc.set_up)"


def _set_up() -> str:
    if not sys.platform.startswith("linux"):
        return "off: the system's C library is not glibc"
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # musl has none
        return "off: the system's C library is not glibc"
    done = mallopt(_M_MMAP_THRESHOLD, MMAP_FROM) and mallopt(_M_TRIM_THRESHOLD, _TRIM_FROM)
    return "on" if done else "off: mallopt refused"


def pages(size: int) -> mmap.mmap:
    """So many bytes of zeros from the system, beside the heap; memory is taken page by page, where
    something is written.
    """
    private = hasattr(mmap, "MAP_PRIVATE")  # not on Windows
    flags = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if private else {}
    return mmap.mmap(-1, size, **flags)


def trim() -> None:
    """Give back what is free now: after loading a base that is a third of what is held."""
    if sys.platform.startswith("linux"):
        libc = ctypes.CDLL(None)
        if hasattr(libc, "malloc_trim"):
            libc.malloc_trim(0)
