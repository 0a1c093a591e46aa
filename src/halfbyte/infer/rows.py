"""Rows under way, and the cache slots they sit in."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from halfbyte.infer.cache import KVCache
from halfbyte.infer.records import Completion, Finish, Request, TokenLogprob
from halfbyte.infer.sampler import Chooser
from halfbyte.infer.text import TextStream

SHARE_FROM: Final = 16  # a shorter common beginning is computed faster than it is waited for
_FIRST_SEATS: Final = 4  # so that a few conversations in turn keep their beginnings
_STEP: Final = 64  # capacities are multiples of it


@dataclass(slots=True, eq=False)
class Row:
    """One answer under way. `ids`: prompt and answer so far, of which `computed` are cached."""

    ticket: int
    request: Request
    adapter: Hashable | None
    chooser: Chooser
    stops: frozenset[int]
    stream: TextStream
    ids: list[int]
    slot: int = -1
    computed: int = 0
    cached: int = 0
    shown: str = ""
    logprobs: list[TokenLogprob] = field(default_factory=list)

    @property
    def need(self) -> int:
        """Cache places this row may take at most: the last token of an answer is never fed."""
        return len(self.request.ids) + self.request.sampling.max_new_tokens - 1

    @property
    def quiet(self) -> bool:
        """Whether its text is made at its end, all at once: nobody needs it before."""
        return not self.request.streamed and not self.request.sampling.stop_strings

    @property
    def answer(self) -> list[int]:
        """The tokens generated so far."""
        return self.ids[len(self.request.ids) :]

    def finished(self, finish: Finish, stop: int | str | None = None) -> Completion:
        """The completion, once nothing more will come."""
        wanted = self.request.sampling.logprobs is not None
        return Completion(
            ids=tuple(self.answer),
            text=self.shown,
            finish=finish,
            stop=stop,
            logprobs=tuple(self.logprobs) if wanted else None,
            prompt_tokens=len(self.request.ids),
            cached_tokens=self.cached,
        )


@dataclass(slots=True)
class _Slot:
    """What a slot's cache holds: the tokens, and the adapter they were computed with."""

    ids: Sequence[int] = ()
    adapter: Hashable | None = None
    row: Row | None = None
    stale: bool = False  # its adapter was forgotten while a row was still answering with it
    used: int = 0  # the clock when it was last given away: the oldest is overwritten first


class Slots:
    """Who sits where. Rows are in the first slots, the seats. A seat that was left keeps its tokens
    until another row takes it, so that a prompt beginning alike (the next turn of a chat, the same
    passage) finds them; `kept` slots more remember what seats held before.
    """

    def __init__(self, cache: KVCache, max_rows: int, max_tokens: int, kept: int) -> None:
        self._cache = cache
        self._max_rows, self._max_tokens, self._kept = max_rows, max_tokens, kept
        self._slots: list[_Slot] = []
        self._seats = 0
        self._clock = 0

    @property
    def rows(self) -> list[Row]:
        """The rows under way, by slot."""
        return [slot.row for slot in self._slots if slot.row is not None]

    def room(self, row: Row, ahead: Iterable[Row] = ()) -> bool:
        """Make room for one more row; false if it has to wait for others to leave.

        `ahead`: rows that will follow, so that memory is taken once for all of them.
        """
        busy = self.rows
        longest = max(other.need for other in [row, *busy])
        if longest <= self._cache.capacity and len(busy) < self._seats:
            return True
        if len(busy) >= self._max_rows or (len(busy) + 1) * longest > self._max_tokens:
            return False
        # a new shape copies what is held: grow by more than this row needs, if the budget allows
        ahead = list(itertools.islice(ahead, self._max_rows))
        now, had = self._seats, self._cache.capacity
        more = now if len(busy) < now else 2 * now
        rows = min(max(len(busy) + 1 + len(ahead), more, _FIRST_SEATS), self._max_rows)
        places = max([longest, *(other.need for other in ahead)])
        if longest > had:
            places = max(places, had * 3 // 2)
        elif rows * had <= self._max_tokens:
            places = had
        places = -(-places // _STEP) * _STEP
        if places > self._max_tokens:
            places = longest
        rows = min(rows, self._max_tokens // places)
        if rows <= len(busy):
            rows, places = len(busy) + 1, longest
        self._reshape(rows, places)
        return True

    def enter(self, row: Row) -> None:
        """Give the row a seat, with as much of its beginning as some slot holds already."""
        self._clock += 1
        source, count = self._longest_match(row)
        free = [i for i in range(self._seats) if self._slots[i].row is None]
        # a row that goes on where a left one ended takes its seat over
        stays = source in free and 2 * count >= len(self._slots[source].ids)
        target = source if stays else self._oldest(free)
        if not stays:
            self._keep(target, source)
            if count:
                self._cache.copy(source, target, count)
                self._slots[source].used = self._clock
        row.slot, row.computed, row.cached = target, count, count
        slot = _Slot(tuple(row.ids[:count]), row.adapter, row, used=self._clock)
        self._slots[target] = slot

    def _keep(self, seat: int, needed: int) -> None:
        """Copy what a seat holds behind the seats, for a row that begins alike, before another row
        takes it; in exchange for what was longest of no use, but not for slot `needed`.
        """
        slot = self._slots[seat]
        behind = [i for i in range(self._seats, len(self._slots)) if i != needed]
        if len(slot.ids) < SHARE_FROM or not behind:
            return
        for index, other in enumerate(self._slots):
            same = index != seat and other.adapter == slot.adapter
            if same and _common(other.ids, slot.ids) == len(slot.ids):
                other.used = self._clock
                return
        target = self._oldest(behind)
        self._cache.copy(seat, target, len(slot.ids))
        self._slots[target] = slot

    def _oldest(self, slots: Sequence[int]) -> int:
        return min(slots, key=lambda i: (len(self._slots[i].ids) > 0, self._slots[i].used))

    def waits(self, row: Row) -> bool:
        """Whether a row under way is about to compute much of this row's beginning."""
        _, have = self._longest_match(row)
        return any(
            other.computed < len(other.request.ids)
            and other.adapter == row.adapter
            and _common(other.request.ids, row.request.ids) >= have + SHARE_FROM
            for other in self.rows
        )

    def computed(self, row: Row, count: int) -> None:
        """The cache now holds `count` tokens of the row."""
        row.computed = count
        self._slots[row.slot].ids = row.ids  # as long as the row is here, its list grows with it

    def leave(self, row: Row) -> None:
        """The row is done; what it computed stays until its slot is needed."""
        slot = self._slots[row.slot]
        slot.row = None
        slot.ids = tuple(row.ids[: row.computed])
        row.slot = -1
        self._clear(slot)

    def forget(self, adapter: Hashable | None) -> None:
        """Forget what free slots hold of an adapter; what others computed stays."""
        for slot in self._slots:
            if adapter is not None and slot.adapter == adapter:
                slot.stale = True
                self._clear(slot)

    def _clear(self, slot: _Slot) -> None:
        """Forget a stale slot as soon as it is free: the adapter would stay in memory."""
        if slot.stale and slot.row is None:
            slot.ids, slot.adapter, slot.stale = (), None, False

    def _longest_match(self, row: Row) -> tuple[int, int]:
        """The slot that begins most like the row, and how many tokens of it can be taken over:
        the last token of a prompt is always computed, for its logits.
        """
        best, most = -1, 0
        for index, slot in enumerate(self._slots):
            if slot.adapter != row.adapter or not slot.ids:
                continue
            known = slot.ids if slot.row is None else slot.ids[: slot.row.computed]
            count = min(_common(known, row.ids), len(row.ids) - 1)
            if count > most:
                best, most = index, count
        return best, most

    def _reshape(self, seats: int, capacity: int) -> None:
        """Rows move to the first slots; of the rest the latest stay as far as there is room."""
        slots = min(seats + self._kept, self._max_tokens // capacity)
        order = sorted(
            range(len(self._slots)),
            key=lambda i: (self._slots[i].row is None, -self._slots[i].used),
        )[:slots]
        moves, kept = [], []
        for target, source in enumerate(order):
            slot = self._slots[source]
            count = min(len(slot.ids) if slot.row is None else slot.row.computed, capacity)
            moves.append((source, target, count))
            if slot.row is None:
                slot.ids = slot.ids[:count]
            else:
                slot.row.slot = target
            kept.append(slot)
        self._cache.reshape(slots, capacity, moves)
        self._slots = kept + [_Slot() for _ in range(slots - len(kept))]
        self._seats = seats


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two rows have in common at their beginning."""
    low, high = 0, min(len(one), len(other))
    one, other = list(one[:high]), list(other[:high])
    if one == other:
        return high
    # the first `low` are known to agree, the first `high` to differ; comparing slices runs in C
    while high - low > 1:
        middle = (low + high) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle
    return low
