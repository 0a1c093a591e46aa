"""The statistics agree with scipy and statsmodels, and do not find differences where none are."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import NormalIndPower

from halfbyte.evaluate import statistics as ours
from halfbyte.evaluate.records import mean_stats
from halfbyte.evaluate.scores.pools import perplexity, share


def means(base, tuned):
    return ours.Pair(
        mean_stats(np.asarray(base, float)), mean_stats(np.asarray(tuned, float)), share
    )


def likelihoods(rng, rows, shift=0.0):
    tokens = rng.integers(3, 60, rows).astype(float)
    base = tokens * rng.gamma(4.0, 0.5, rows)
    tuned = base + tokens * rng.normal(shift, 0.2, rows)
    return ours.Pair(np.stack([base, tokens], 1), np.stack([tuned, tokens], 1), perplexity)


def perplexity_ratio_of(nll_base, nll_tuned, tokens, axis=-1):
    total = tokens.sum(axis)
    return np.exp(nll_tuned.sum(axis) / total) / np.exp(nll_base.sum(axis) / total)


@pytest.mark.parametrize(("method", "scipy_method"), [("bca", "BCa"), ("percentile", "percentile")])
def test_interval_of_a_mean_is_scipys(method, scipy_method):
    """With the same seed the paired interval of a mean difference is scipy's to rounding."""
    rng = np.random.default_rng(7)
    base, tuned = rng.gamma(2, 1, 60), rng.gamma(2.5, 1, 60)
    expected = scipy_stats.bootstrap(
        (base, tuned),
        lambda b, t, axis=-1: t.mean(axis) - b.mean(axis),
        paired=True,
        n_resamples=3000,
        method=scipy_method,
        rng=np.random.default_rng(5),
    ).confidence_interval
    found = ours.paired_interval(means(base, tuned), draw=ours.Resampling(3000, 5, method=method))
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-9)
    assert found.estimate == pytest.approx(tuned.mean() - base.mean(), abs=1e-12)


@pytest.mark.parametrize(("method", "scipy_method"), [("bca", "BCa"), ("percentile", "percentile")])
def test_interval_of_a_perplexity_ratio_is_scipys(method, scipy_method):
    """A corpus metric is resampled by row, as scipy does when given all its columns."""
    pair = likelihoods(np.random.default_rng(3), 40, shift=-0.1)
    expected = scipy_stats.bootstrap(
        (pair.base[:, 0], pair.tuned[:, 0], pair.base[:, 1]),
        perplexity_ratio_of,
        paired=True,
        n_resamples=2000,
        method=scipy_method,
        rng=np.random.default_rng(11),
    ).confidence_interval
    draw = ours.Resampling(2000, 11, method=method)
    found = ours.paired_interval(pair, ours.ratio, draw)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=1e-9)


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (1, 0), (9, 2), (30, 30), (5, 17)])
def test_mcnemar_is_statsmodels(gained, lost):
    """The exact test is statsmodels' `mcnemar(exact=True)`."""
    expected = mcnemar([[12, gained], [lost, 20]], exact=True).pvalue if gained + lost else 1.0
    assert ours.mcnemar_p(gained, lost) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("rows", [1, 2, 7, 40])
def test_holm_is_statsmodels(rows):
    """Holm's correction is statsmodels', ties included."""
    p_values = np.random.default_rng(rows).random(rows).round(1) ** 3
    expected = multipletests(p_values, method="holm")[1]
    assert ours.holm(p_values) == pytest.approx(list(expected), abs=1e-12)


def test_exchange_test_of_right_and_wrong_is_mcnemar():
    """Exchanging the answers of a row in every way gives McNemar's exact p for binary scores."""
    base = np.array([1, 0, 0, 0, 0, 0, 1, 1, 0, 0, 0], float)
    tuned = np.array([0, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0], float)
    assert ours.exchange_p(means(base, tuned)) == pytest.approx(ours.mcnemar_p(6, 1), abs=1e-12)


def test_exchange_test_is_scipys():
    """Drawn exchanges come near scipy's permutation test of paired samples."""
    rng = np.random.default_rng(2)
    base = rng.normal(0, 1, 40)
    tuned = base + rng.normal(0.3, 1, 40)
    expected = scipy_stats.permutation_test(
        (base, tuned),
        lambda b, t, axis=-1: t.mean(axis) - b.mean(axis),
        permutation_type="samples",
        n_resamples=20_000,
        rng=np.random.default_rng(1),
    ).pvalue
    assert ours.exchange_p(means(base, tuned)) == pytest.approx(expected, abs=0.01)


def test_rows_needed_is_statsmodels():
    """The power figure is statsmodels' one-sample normal power (ratio 0), rounded up."""
    for spread, effect in [(1.0, 0.3), (0.4, 0.05), (2.0, 1.0)]:
        expected = NormalIndPower().solve_power(
            effect / spread, alpha=0.05, power=0.8, ratio=0, alternative="two-sided"
        )
        assert ours.rows_needed(spread, effect) == int(np.ceil(expected))


def test_rows_needed_for_right_and_wrong_gives_the_power_it_promises():
    """With as many rows as Connor's formula asks for, McNemar's test (its normal form, which the
    formula describes) finds the difference in about 80 % of draws."""
    flipped, effect = 0.3, 0.1
    rows = ours.rows_needed_binary(flipped, effect)
    rng = np.random.default_rng(4)
    gained, lost, _ = rng.multinomial(rows, [0.2, 0.1, 0.7], 4000).T
    statistic = (gained - lost) / np.sqrt(gained + lost)
    assert np.mean(np.abs(statistic) > 1.96) == pytest.approx(0.8, abs=0.03)
    assert ours.rows_needed_binary(0.0, 0.05) == ours.rows_needed_binary(0.05, 0.05)


def test_influence_of_a_mean_is_its_standard_deviation():
    """For a mean, one row's influence is the difference itself."""
    rng = np.random.default_rng(0)
    base, tuned = rng.random(50), rng.random(50)
    expected = np.std(tuned - base, ddof=1)
    assert ours.influence_spread(means(base, tuned)) == pytest.approx(expected, rel=1e-9)


def test_equal_scores_have_no_interval_and_no_evidence():
    """Where every row agrees the interval is the point zero and p is 1."""
    values = np.array([1.0, 0.0, 1.0, 1.0])
    found = ours.paired_interval(means(values, values))
    assert (found.estimate, found.low, found.high) == (0, 0, 0)
    assert ours.exchange_p(means(values, values)) == 1


def test_one_row_is_no_evidence():
    """A single row never gives a small p, whatever it shows."""
    assert ours.exchange_p(means([0.0], [1.0])) == 1
    assert ours.mcnemar_p(1, 0) == 1


def test_no_rows_and_unequal_rows_are_refused():
    """An interval without rows does not exist."""
    with pytest.raises(ValueError, match="no rows"):
        ours.paired_interval(means([], []))
    with pytest.raises(ValueError, match="no pairs"):
        means([1.0], [1.0, 2.0])


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 40), st.integers(0, 1000))
def test_interval_and_p_turn_with_the_order_of_the_models(rows, seed):
    """Swapping base and tuned turns the interval around zero and leaves p as it is."""
    rng = np.random.default_rng(seed)
    one, two = rng.random(rows), rng.random(rows)
    draw = ours.Resampling(400, seed, method="percentile")
    there, back = (
        ours.paired_interval(pair, draw=draw) for pair in (means(one, two), means(two, one))
    )
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low), abs=1e-12)
    p = ours.exchange_p(means(one, two), draw=draw), ours.exchange_p(means(two, one), draw=draw)
    assert p[0] == p[1]


def test_false_alarms_are_one_in_twenty():
    """Two hundred rows of the same model, compared many times: a 95 % interval leaves out zero, and
    p falls below 0.05, in about 5 % of cases; more than 9 % of 300 would have odds under 1:500."""
    rng = np.random.default_rng(9)
    draw = ours.Resampling(400, 0)
    alarms = {"interval": 0, "exchange": 0, "perplexity": 0}
    for _ in range(300):
        pair = means(rng.gamma(2, 1, 200), rng.gamma(2, 1, 200))
        found = ours.paired_interval(pair, draw=draw)
        alarms["interval"] += found.low > 0 or found.high < 0
        alarms["exchange"] += ours.exchange_p(pair, draw=draw) < 0.05
        corpus = likelihoods(rng, 200)
        times = ours.paired_interval(corpus, ours.ratio, draw)
        alarms["perplexity"] += times.low > 1 or times.high < 1
    assert all(6 <= count <= 27 for count in alarms.values()), alarms
