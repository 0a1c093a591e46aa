"""glibc's allocator, told to keep what torch frees: big buffers are not faulted in anew each step.

Measured on a QLoRA step of SmolLM2-135M: 15 to 25 % faster; memory held rises a little. This
module imports nothing heavy, because it must run before torch takes its first large block.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Final

# mallopt's parameters, from malloc.h
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
# Larger blocks are given back at once. Of dense weights of a 7B model (235 MB each) freed holes are
# not used again, because torch aligns its blocks: a step took 20 GB and was killed. Nothing of a
# 135M model is as large but in full training.
MMAP_FROM: Final = 1 << 26
_TRIM_FROM: Final = (1 << 31) - 1


_done: list[str] = []  # what the last `set_up` of this process said


def set_up() -> str:
    """Keep freed memory for the next step; returns what was done, or why nothing was."""
    _done[:] = [_set_up()]
    return _done[0]


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


def trim() -> None:
    """Give back what is free now: after loading a base that is a third of what is held."""
    if sys.platform.startswith("linux"):
        libc = ctypes.CDLL(None)
        if hasattr(libc, "malloc_trim"):
            libc.malloc_trim(0)
