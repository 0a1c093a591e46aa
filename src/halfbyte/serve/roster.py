"""Which models there are: the base, and adapters that come at first use and go when long unused."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from halfbyte.api.opening import Opened
from halfbyte.errors import HalfbyteError
from halfbyte.run import RunFolder
from halfbyte.serve.disk import Persona, check_fit, locate, mark, persona, servable
from halfbyte.serve.engine_thread import EngineThread
from halfbyte.serve.errors import RefusedError, refusal_of, unknown_model

_PATIENCE: Final = 10.0  # seconds a request waits for another adapter to fall out of use


@dataclass(frozen=True, slots=True)
class Served:
    """One model as a request sees it. `adapter`: its name inside the model, None for the base."""

    name: str
    adapter: str | None
    persona: Persona


@dataclass(slots=True, eq=False)
class _Loaded:
    served: Served
    mark: tuple[int, ...]
    users: int = 0
    used: float = 0.0


@dataclass(slots=True)
class Counts:
    """What happened to adapters since the start."""

    loads: int = 0
    evictions: int = 0


@dataclass(frozen=True, slots=True)
class Listed:
    """An entry of the list of models. `created`: seconds since 1970. `root`: the base's name."""

    name: str
    created: int
    parent: str | None = None


class Roster:
    """Adapters in memory, by the names of their runs; only the event loop calls its methods.

    At most `most` are held; the one unused for longest makes room. One that answers somebody is
    never taken away: `using` counts them.
    """

    def __init__(self, opened: Opened, runs: Path, engine: EngineThread, most: int) -> None:
        self.counts = Counts()
        self.base = Served(
            shown_name(opened), None, Persona(opened.template, opened.config.data.system)
        )
        self._opened, self._runs, self._engine, self._most = opened, runs, engine, most
        self._since = int(time.time())
        self._loaded: dict[str, _Loaded] = {}
        self._retired: list[_Loaded] = []
        self._aliases: dict[str, str] = {}
        self._numbers = itertools.count()
        self._changing = asyncio.Lock()
        self._freed = asyncio.Event()

    @property
    def loaded(self) -> tuple[str, ...]:
        """Names of the adapters in memory."""
        return tuple(self._loaded)

    async def listed(self) -> list[Listed]:
        """The base, then every run that can be served."""
        runs = await asyncio.to_thread(servable, self._runs, self._opened)
        entries = [Listed(self.base.name, self._since)]
        names = {run.name: run for run in runs}
        names |= {alias: names[run] for alias, run in self._aliases.items() if run in names}
        for name, run in names.items():
            if name != self.base.name:
                entries.append(Listed(name, mark(run)[2] // 10**9, self.base.name))
        return entries

    @asynccontextmanager
    async def using(self, name: str) -> AsyncIterator[Served]:
        """The model of this name, kept until the block is left.

        Raises:
            RefusedError: no such model (404), no room for its adapter (429), or one that does not
                fit this base or is damaged (400).
        """
        if name == self.base.name:
            yield self.base
            return
        entry = self._loaded.get(name) or await self._at_first_use(name)
        entry.users += 1
        entry.used = time.monotonic()
        try:
            yield entry.served
        finally:
            entry.users -= 1
            entry.used = time.monotonic()
            if not entry.users:
                self._freed.set()
                await asyncio.shield(self._sweep())

    async def load(self, name: str, run: str, in_place: bool) -> None:
        """Load a run's adapter under a name, or swap it for what the run holds now. Whoever is
        being answered keeps the old one; if anything is wrong with the new one, so does everybody.

        Raises:
            RefusedError: a name that is taken, an adapter that does not fit this base or is
                damaged (400), no such run (404), no room (429).
        """
        if name == self.base.name:
            raise RefusedError(400, f"{name} is the base", param="lora_name")
        async with self._changing:
            old = self._loaded.get(name)
            if old is not None and not in_place:
                raise RefusedError(
                    400,
                    f"{name} is loaded already; load_inplace loads it anew",
                    param="lora_name",
                )
            folder = await asyncio.to_thread(locate, self._runs, run)
            if name != run and self._is_run(name):
                raise RefusedError(400, f"{name} is another run's name", param="lora_name")
            if old is None:
                await self._make_room()
            self._loaded[name] = await self._load(name, folder)
            if name != run:
                self._aliases[name] = run
            if old is not None:
                self._retired.append(old)
        await self._sweep()

    async def unload(self, name: str) -> None:
        """Free an adapter's memory; its run stays a model, and is loaded again when asked for.

        Raises:
            RefusedError: it is not loaded (404), or answering somebody (409).
        """
        async with self._changing:
            entry = self._loaded.get(name)
            if entry is None:
                raise unknown_model(name)
            if entry.users:
                raise RefusedError(
                    409,
                    f"{name} is answering {entry.users} requests; try again later",
                    param="lora_name",
                    code="adapter_in_use",
                )
            self._aliases.pop(name, None)
            await self._drop(name)

    def _is_run(self, name: str) -> bool:
        try:
            locate(self._runs, name)
        except RefusedError:
            return False
        return True

    async def _at_first_use(self, name: str) -> _Loaded:
        async with self._changing:
            if name in self._loaded:  # somebody asked for it a moment earlier
                return self._loaded[name]
            run = self._aliases.get(name, name)
            folder = await asyncio.to_thread(locate, self._runs, run)
            await self._make_room()
            self._loaded[name] = entry = await self._load(name, folder)
            return entry

    async def _make_room(self) -> None:
        """Evict until one more fits.

        Raises:
            RefusedError: all stay in use (429).
        """
        deadline = time.monotonic() + _PATIENCE
        while len(self._loaded) >= self._most:
            idle = [name for name, entry in self._loaded.items() if not entry.users]
            if idle:
                await self._drop(min(idle, key=lambda name: self._loaded[name].used))
                self.counts.evictions += 1
                continue
            self._freed.clear()
            try:
                async with asyncio.timeout_at(
                    asyncio.get_running_loop().time() + deadline - time.monotonic()
                ):
                    await self._freed.wait()
            except TimeoutError:
                raise RefusedError(
                    429, f"all {self._most} adapters in memory are in use; try again later"
                ) from None

    async def _load(self, name: str, run: RunFolder) -> _Loaded:
        def read() -> tuple[Persona, tuple[int, ...]]:
            check_fit(run, self._opened)
            return persona(run, self._opened), mark(run)

        inner = f"serve-{next(self._numbers)}"
        try:
            own, stamp = await asyncio.to_thread(read)
            await self._engine.call(partial(self._engine.engine.load, inner, run.adapter))
        except HalfbyteError as error:
            refusal = refusal_of(error)
            # clients know runs by name; where they lie on disk is nobody's business
            refusal.message = refusal.message.replace(str(run.path), run.name)
            raise refusal from None
        self.counts.loads += 1
        return _Loaded(Served(name, inner, own), stamp, used=time.monotonic())

    async def _drop(self, name: str) -> None:
        entry = self._loaded.pop(name)
        self._retired.append(entry)
        await self._sweep()

    async def _sweep(self) -> None:
        """Free retired adapters that nobody uses."""
        gone = [entry for entry in self._retired if not entry.users]
        self._retired = [entry for entry in self._retired if entry.users]
        for entry in gone:
            assert entry.served.adapter is not None
            await self._engine.call(partial(self._engine.engine.unload, entry.served.adapter))


def shown_name(opened: Opened) -> str:
    """What the base is called in requests: where it lies on disk is nobody's business."""
    if opened.run is not None and opened.adapter is None:
        return opened.name  # a fully trained run is a base by itself
    path = Path(opened.base.name)
    if opened.base.kind == "folder":
        return path.name
    return path.stem if opened.base.kind == "gguf" else opened.base.name
