"""What a server is told: where it listens, who may ask, and what it bears."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path

from halfbyte.errors import InputError


@dataclass(frozen=True, slots=True)
class Keys:
    """Secrets. `api`: for every route but /health. `admin`: for loading and unloading adapters;
    without one those routes are off.
    """

    api: str | None = field(default=None, repr=False)
    admin: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Limits:
    """What the server bears before it refuses.

    Sizes: `body_bytes` and `header_bytes` of a request, `json_depth` brackets inside each other,
    `messages` of one conversation, `new_tokens` where a request names no limit itself.

    Numbers: `connections` at once; `rows` answers in a batch, `waiting` answers beyond those
    (more get 429); `adapters` in memory.

    Deadlines in seconds: `header` from the first byte (or the connection) to the end of the
    headers, `body` from there to the end of the body, `idle` between requests, `stall` for a
    client that stops reading, `request` for a whole answer, `grace` for running answers when the
    server is told to stop.
    """

    body_bytes: int = 1 << 20
    header_bytes: int = 16 << 10
    json_depth: int = 32
    messages: int = 512
    new_tokens: int = 512
    connections: int = 1024
    rows: int = 64
    waiting: int = 64
    adapters: int = 8
    header_seconds: float = 10.0
    body_seconds: float = 20.0
    idle_seconds: float = 15.0
    stall_seconds: float = 30.0
    request_seconds: float = 600.0
    grace_seconds: float = 30.0


@dataclass(frozen=True, slots=True)
class ServeSettings:
    """One server.

    - `model`: a base, or a run whose base (in the form of that training) is served.
    - `compute`: the type a base computes in, as model.compute; a run has its own.
    - `runs`: the folder whose runs are models by name.
    - `hosts`: names clients may call it by, beside loopback names and plain addresses.
    - `origins`: web pages (`https://chat.example.org`) that may ask from a browser.
    """

    model: str = "smollm2-135m"
    compute: str = "auto"
    runs: Path = Path("runs")
    host: str = "127.0.0.1"
    port: int = 8000
    keys: Keys = field(default_factory=Keys)
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    limits: Limits = field(default_factory=Limits)

    def check(self) -> None:
        """Refuse what would be unsafe.

        Raises:
            InputError: bound beyond loopback without a key, or keys no header can carry.
        """
        if not is_loopback(self.host) and not self.keys.api:
            raise InputError(
                f"--host {self.host}: others could use the model; this needs an API key",
                "Set HALFBYTE_API_KEY (or --api-key), or stay on 127.0.0.1.",
            )
        for name, key in (("API", self.keys.api), ("admin", self.keys.admin)):
            if key is not None and (len(key) < 8 or not key.isascii() or not key.isprintable()):
                raise InputError(
                    f"the {name} key: at least 8 printable ASCII characters",
                    "Make one: python -c 'import secrets; print(secrets.token_urlsafe())'",
                )
        if self.keys.api is not None and self.keys.api == self.keys.admin:
            raise InputError("the admin key is the API key: whoever asks could change adapters")


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
