"""One score of two models, with everything the statistics say about it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from halfbyte.evaluate.records import ScoreInfo
from halfbyte.evaluate.statistics import Pair, Resampling, difference, exchange_p, mcnemar_p


@dataclass(frozen=True, slots=True)
class Metric:
    """One score of two models over the rows both have it on.

    `difference` is tuned minus base with its interval `low..high`; `ratio` tuned over base, with
    its own (None where base is zero). `p` tests "no difference" (McNemar's exact test for
    right/wrong scores, else the paired randomization test); `p_holm` is corrected for the number
    of judged scores. A win is a row where tuned is better. `needed` is how many rows would show a
    difference of `needed_for` with 80 % power. `spread` is one row's influence (standard
    deviation).
    """

    info: ScoreInfo
    rows: int
    base: float
    tuned: float
    difference: float
    low: float
    high: float
    ratio: float | None
    ratio_low: float | None
    ratio_high: float | None
    p: float
    p_holm: float | None
    wins: int
    losses: int
    ties: int
    needed: int | None
    needed_for: float
    gained: tuple[int, ...] = ()
    lost: tuple[int, ...] = ()

    @property
    def improved(self) -> bool:
        """Whether the difference points the good way (false for scores without one)."""
        if self.info.better == "neither":
            return False
        return self.difference > 0 if self.info.better == "higher" else self.difference < 0


def test_p(pair: Pair, info: ScoreInfo, draw: Resampling) -> float:
    """Two-sided p of "no difference": McNemar's exact test for right/wrong scores, else the paired
    randomization test."""
    if not info.binary:
        return exchange_p(pair, difference, draw)
    change = pair.tuned[:, 0] - pair.base[:, 0]  # a mean's statistics are (value, 1)
    return mcnemar_p(int(np.count_nonzero(change > 0)), int(np.count_nonzero(change < 0)))
