"""How long threads that wait for each other keep their core busy before they sleep.

libgomp's threads spin for a millisecond at every end of a product, which is quickest where nobody
else wants the core. Beside other work it holds up that work and with it the thread waited for.
Measured on two cores (2026-11-26): two trainings at once take 31 s a step each with the default
and 10.4 s with short waits; a training alone takes up to a tenth longer with them. A token beside
another process that generates takes 24 ms with 1,000 turns, 31 with 2,000 and 38 with 3,000, and
13.8, 12.9 and 12.0 alone (2026-11-27, AVX-512): a server is mostly alone. This module imports
nothing heavy, because torch's threads read the setting when it is loaded.
"""

from __future__ import annotations

import os
import sys
from typing import Final

import psutil

SETTING: Final = "GOMP_SPINCOUNT"
_BRIEF: Final = "1000"  # turns of the waiting loop
_SHARED: Final = "2000"  # where its own clients are all that it shares with
_OTHERS: Final = 25.0  # percent of all cores that others use
_LOOK: Final = 0.1  # seconds


def set_up(*, shares: bool = False) -> str:
    """Let threads wait briefly on a machine that others use now, or will (`shares`: a server has
    its clients there); returns what was done. What the user has set stays.
    """
    if "torch" in sys.modules:
        return "as it was: torch is loaded already"
    for name in (SETTING, "OMP_WAIT_POLICY"):
        if name in os.environ:
            return f"as {name} says"
    if not shares and psutil.cpu_percent(_LOOK) < _OTHERS:
        return "long: the machine is ours"
    os.environ[SETTING] = _SHARED if shares else _BRIEF
    return "short: the machine is shared"
