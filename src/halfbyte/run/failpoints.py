"""Named places where a fault can be injected: `HALFBYTE_FAILPOINT=save.rename=kill python …`.

A test asks what survives when the process dies, or the disk fills up, exactly there. Several points
are separated by commas; `name#3=enospc` fails at the third visit. Without the variable, reaching a
point is one comparison.
"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Mapping
from typing import Final

from halfbyte.errors import InputError

VARIABLE: Final = "HALFBYTE_FAILPOINT"
_ACTIONS: Final = ("kill", "enospc", "interrupt")

_armed: dict[str, dict[int, str]] = {}
_visits: dict[str, int] = {}


def arm(text: str) -> None:
    """Arm the points of `text` and forget earlier ones; an empty text disarms.

    Raises:
        InputError: an entry is not `name=action` or `name#visit=action`.
    """
    _armed.clear()
    _visits.clear()
    for entry in filter(None, (part.strip() for part in text.split(","))):
        place, sign, action = entry.partition("=")
        name, _, visit = place.partition("#")
        if (
            not sign
            or action not in ("kill", "enospc", "interrupt")
            or not (visit or "1").isdigit()
        ):
            raise InputError(
                f"{VARIABLE}: {entry!r} is no failpoint",
                "It reads name=kill, name=enospc or name=interrupt, with #3 for the third visit.",
            )
        _armed.setdefault(name, {})[int(visit or 1)] = action


def reach(name: str) -> None:
    """Fail here if `name` is armed for this visit.

    Raises:
        OSError: ENOSPC, for the action `enospc`.
    """
    if not _armed:
        return
    _visits[name] = _visits.get(name, 0) + 1
    action = _armed.get(name, {}).get(_visits[name])
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif action == "interrupt":
        os.kill(os.getpid(), signal.SIGINT)
    elif action == "enospc":
        raise OSError(errno.ENOSPC, "No space left on device (injected)", name)


def visits() -> Mapping[str, int]:
    """How often each point was reached since `arm`, counted only while some point is armed."""
    return dict(_visits)


arm(os.environ.get(VARIABLE, ""))
