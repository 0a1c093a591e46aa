"""Paired statistics over rows: intervals, tests, corrections, and how many rows would be needed.

Two models answered the same rows. A row is the unit that is drawn: corpus metrics (perplexity,
BLEU, macro-F1) are functions of sums over rows, so each row brings a vector of additive statistics
and every resample is a matrix product, not a loop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
from scipy.special import bdtr, ndtr, ndtri

from halfbyte.evaluate.records import Floats

Pool = Callable[[Floats], Floats]
Effect = Callable[[Floats, Floats], Floats]
Method = Literal["bca", "percentile"]
_CHUNK: Final = 1000  # resamples computed at once: 1000 x 500 rows are 4 MB
_EXACT_ROWS: Final = 12  # up to 2**12 = 4096 exchanges are all enumerated instead of drawn


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with the interval that holds it at the stated level (default 95 %)."""

    estimate: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """The same rows scored for two models: additive statistics [rows, k] of each, and the function
    that turns sums [..., k] into the metric [...]."""

    base: Floats
    tuned: Floats
    pool: Pool

    def __post_init__(self) -> None:
        if self.base.shape != self.tuned.shape or self.base.ndim != 2:
            raise ValueError(
                f"shapes {self.base.shape} and {self.tuned.shape} are no pairs of rows"
            )

    def __len__(self) -> int:
        return len(self.base)


@dataclass(frozen=True, slots=True)
class Resampling:
    """How intervals and p-values are drawn: `resamples` draws from `seed`, intervals at `level`."""

    resamples: int = 10_000
    seed: int = 0
    level: float = 0.95
    method: Method = "bca"


def difference(base: Floats, tuned: Floats) -> Floats:
    """Tuned minus base."""
    return tuned - base


def ratio(base: Floats, tuned: Floats) -> Floats:
    """Tuned over base; NaN where base is zero."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(base == 0, np.nan, tuned / base)


def paired_interval(
    pair: Pair, effect: Effect = difference, draw: Resampling | None = None
) -> Interval:
    """The paired bootstrap interval of `effect(base, tuned)`, rows drawn with replacement.

    `bca` is bias-corrected and accelerated (Efron 1987, JASA 82:171), its acceleration from the
    jackknife over rows; `percentile` takes the plain quantiles. Both equal `scipy.stats.bootstrap`
    with `paired=True` for the same seed. Where all resamples agree the interval is that point;
    where the correction is undefined, percentiles are used.

    Raises:
        ValueError: without rows.
    """
    draw = draw or Resampling()
    if len(pair) == 0:
        raise ValueError("no rows to draw from")
    estimate = _effect_of_sums(pair, effect, pair.base.sum(0), pair.tuned.sum(0))
    samples = np.concatenate(
        [
            effect(pair.pool(counts @ pair.base), pair.pool(counts @ pair.tuned))
            for counts in _counts(len(pair), draw.resamples, draw.seed)
        ]
    )
    samples = samples[~np.isnan(samples)]
    tails = np.array([(1 - draw.level) / 2, (1 + draw.level) / 2])
    if np.isnan(estimate) or samples.size == 0:
        return Interval(float(estimate), float("nan"), float("nan"))
    if np.ptp(samples) == 0:
        return Interval(float(estimate), float(samples[0]), float(samples[0]))
    if draw.method == "bca" and len(pair) > 1:
        tails = _corrected_tails(tails, samples, float(estimate), _jackknife(pair, effect))
    low, high = np.quantile(samples, tails)
    return Interval(float(estimate), float(low), float(high))


def exchange_p(pair: Pair, effect: Effect = difference, draw: Resampling | None = None) -> float:
    """Two-sided p-value of the paired randomization test: under "the models are the same" the two
    answers of a row could as well be exchanged (Noreen 1989; Riezler and Maxwell 2005).

    All exchanges are enumerated up to 12 rows, else `draw.resamples` are drawn and the observed one
    is counted among them, so that p is never zero. For right/wrong scores its exact form is
    McNemar's test.
    """
    draw = draw or Resampling()
    rows = len(pair)
    if rows == 0 or np.array_equal(pair.base, pair.tuned):
        return 1.0
    base, tuned = pair.base.sum(0), pair.tuned.sum(0)
    observed = abs(float(_effect_of_sums(pair, effect, base, tuned)))
    if np.isnan(observed):
        return 1.0
    change = pair.tuned - pair.base
    # an exchange that gives the observed effect must count although sums round differently
    limit = observed - 1e-9 * max(1.0, observed)
    hits = drawn = 0
    for swap in _swaps(rows, draw):
        moved = swap @ change
        effects = effect(pair.pool(base + moved), pair.pool(tuned - moved))
        hits += int(np.count_nonzero(np.abs(effects) >= limit))
        drawn += len(swap)
    return hits / drawn if rows <= _EXACT_ROWS else (hits + 1) / (drawn + 1)


def mcnemar_p(gained: int, lost: int) -> float:
    """McNemar's exact two-sided p-value: of the rows that flipped, did more flip one way than a
    fair coin would give? `gained` turned right, `lost` turned wrong (McNemar 1947)."""
    flipped = gained + lost
    if flipped == 0:
        return 1.0
    return min(1.0, 2 * float(bdtr(min(gained, lost), flipped, 0.5)))


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for their number by Holm's step-down rule (Holm 1979): rejecting those
    below 0.05 errs at all in at most 5 % of families."""
    order = np.argsort(p_values, kind="stable")
    adjusted = np.empty(len(p_values))
    highest = 0.0
    for rank, place in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = highest
    return [float(p) for p in adjusted]


def rows_needed(
    spread: float, effect: float, power: float = 0.8, alpha: float = 0.05
) -> int | None:
    """Rows needed to see a mean paired difference of `effect` with probability `power` at a
    two-sided `alpha`, when the differences of single rows have the standard deviation `spread`:
    n = ((z_alpha/2 + z_power) * spread / effect)^2. None where no number can be given."""
    if effect <= 0 or not np.isfinite(spread):
        return None
    z = ndtri(1 - alpha / 2) + ndtri(power)
    return max(2, int(np.ceil((z * spread / effect) ** 2)))


def rows_needed_binary(
    flipped: float, effect: float, power: float = 0.8, alpha: float = 0.05
) -> int | None:
    """The same for right/wrong scores, from the share of rows that flip either way:
    n = (z_alpha/2 * sqrt(f) + z_power * sqrt(f - d^2))^2 / d^2 (Connor 1987, Biometrics 43:207).
    At least a share `effect` must flip for a difference of `effect`."""
    if effect <= 0:
        return None
    share = max(flipped, effect)
    near, far = ndtri(1 - alpha / 2), ndtri(power)
    total = near * np.sqrt(share) + far * np.sqrt(share - effect**2)
    return max(2, int(np.ceil((total / effect) ** 2)))


def influence_spread(pair: Pair, effect: Effect = difference) -> float:
    """The standard deviation of one row's influence on the effect (jackknife pseudo-values): what
    `rows_needed` takes for a corpus metric. NaN with fewer than two rows."""
    if len(pair) < 2:
        return float("nan")
    return float(len(pair) - 1) * float(np.std(_jackknife(pair, effect), ddof=1))


def _effect_of_sums(pair: Pair, effect: Effect, base: Floats, tuned: Floats) -> Floats:
    return effect(pair.pool(base), pair.pool(tuned))


def _jackknife(pair: Pair, effect: Effect) -> Floats:
    """The effect with each row left out in turn: [rows]."""
    base = pair.base.sum(0) - pair.base
    tuned = pair.tuned.sum(0) - pair.tuned
    return effect(pair.pool(base), pair.pool(tuned))


def _corrected_tails(tails: Floats, samples: Floats, estimate: float, jackknife: Floats) -> Floats:
    below = np.mean(samples < estimate) + np.mean(samples == estimate) / 2
    bias = ndtri(below)
    deviations = np.nanmean(jackknife) - jackknife
    spread = np.nansum(deviations**2)
    if not np.isfinite(bias) or spread == 0 or np.isnan(spread):
        return tails
    acceleration = np.nansum(deviations**3) / (6 * spread**1.5)
    shifted = bias + ndtri(tails)
    corrected = ndtr(bias + shifted / (1 - acceleration * shifted))
    return tails if np.isnan(corrected).any() else np.asarray(corrected, dtype=np.float64)


def _counts(rows: int, resamples: int, seed: int) -> Iterator[Floats]:
    """How often each row is drawn in each resample, [chunk, rows] at a time."""
    rng = np.random.default_rng(seed)
    for start in range(0, resamples, _CHUNK):
        size = min(_CHUNK, resamples - start)
        drawn = rng.integers(0, rows, (size, rows))
        flat = (drawn + np.arange(size)[:, None] * rows).ravel()
        yield np.bincount(flat, minlength=size * rows).reshape(size, rows).astype(np.float64)


def _swaps(rows: int, draw: Resampling) -> Iterator[npt.NDArray[np.float64]]:
    """Which rows exchange their answers, as 0/1 [chunk, rows]."""
    if rows <= _EXACT_ROWS:
        codes = np.arange(2**rows)[:, None]
        yield ((codes >> np.arange(rows)) & 1).astype(np.float64)
        return
    rng = np.random.default_rng(draw.seed)
    for start in range(0, draw.resamples, _CHUNK):
        size = min(_CHUNK, draw.resamples - start)
        yield rng.integers(0, 2, (size, rows)).astype(np.float64)
