"""Who may ask: host names, web pages and keys."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Mapping
from typing import Final

from halfbyte.serve.errors import RefusedError
from halfbyte.serve.settings import ServeSettings, is_loopback

OPEN: Final = "/health"  # for load balancers, which have no key
ADMIN: Final = frozenset({"/v1/load_lora_adapter", "/v1/unload_lora_adapter"})
Headers = Mapping[bytes, bytes]


class Access:
    """Decides by method, path and headers alone."""

    def __init__(self, settings: ServeSettings) -> None:
        self._names = {"localhost", *(name.lower() for name in settings.hosts)}
        self._loopback_only = is_loopback(settings.host)
        self._origins = {origin.lower().rstrip("/") for origin in settings.origins}
        self._api, self._admin = _digest(settings.keys.api), _digest(settings.keys.admin)

    def check(self, method: str, path: str, headers: Headers) -> None:
        """Refuse who may not ask.

        Raises:
            RefusedError: 401 without the key, 403 for a foreign host or page, 404 for the routes
                of an administrator where there is none.
        """
        host = headers.get(b"host", b"").decode("latin-1").lower()
        self._check_host(host)
        origin = headers.get(b"origin")
        self._check_page(host, origin, headers)
        if path == OPEN or (method == "OPTIONS" and origin is not None):
            return  # a preflight carries no key; it only asks which methods there are
        given = _bearer(headers)
        if path in ADMIN:
            self._check_admin(given)
        elif self._api is not None and not _same(given, self._api):
            raise RefusedError(401, "this server needs its API key", code="invalid_api_key")

    def _check_host(self, host: str) -> None:
        """A page can point a name of its own at this machine (DNS rebinding), but not a plain
        address, and not a name that it does not own.
        """
        name = _without_port(host)
        if name in self._names:
            return
        try:
            address = ipaddress.ip_address(name.strip("[]"))
        except ValueError:
            address = None
        if address is None or (self._loopback_only and not address.is_loopback):
            raise RefusedError(
                403,
                f"this server is not called {name[:100]!r} (--allow-host names others)",
                code="host_not_allowed",
            )

    def _check_page(self, host: str, origin: bytes | None, headers: Headers) -> None:
        """Browsers say from which page a request comes; other clients say nothing."""
        if origin is not None:
            text = origin.decode("latin-1").lower()
            if text in self._origins or text in {f"http://{host}", f"https://{host}"}:
                return
            raise RefusedError(
                403, "pages of this origin may not ask (--allow-origin)", code="origin_not_allowed"
            )
        if headers.get(b"sec-fetch-site", b"none") not in {b"none", b"same-origin"}:
            raise RefusedError(403, "requests from other sites are refused", code="cross_site")

    def _check_admin(self, given: bytes) -> None:
        if self._admin is None:
            if self._api is not None and not _same(given, self._api):
                raise RefusedError(401, "this server needs its API key", code="invalid_api_key")
            raise RefusedError(404, "off: the server was started without an admin key")
        if not _same(given, self._admin):
            raise RefusedError(401, "this needs the admin key", code="invalid_api_key")


def _digest(key: str | None) -> bytes | None:
    return None if key is None else hashlib.sha256(key.encode()).digest()


def _bearer(headers: Headers) -> bytes:
    scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
    return key.strip() if scheme.lower() == b"bearer" else b""


def _same(given: bytes, digest: bytes) -> bool:
    """Compare in constant time, digests, so that the length tells nothing either."""
    return hmac.compare_digest(hashlib.sha256(given).digest(), digest)


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.partition(":")[0]
