"""How the rows' additive statistics become one number: functions of sums [..., k] to [...]."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np

from halfbyte.evaluate.records import Floats


def share(sums: Floats) -> Floats:
    """First sum over second: a mean (value, 1), or a share of tokens. NaN without any."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(sums[..., 1] > 0, sums[..., 0] / sums[..., 1], np.nan))


def perplexity(sums: Floats) -> Floats:
    """exp(negative log-likelihood / tokens)."""
    with np.errstate(over="ignore"):
        return np.exp(share(sums))


def bleu(sums: Floats) -> Floats:
    """Corpus BLEU from (answer length, reference length, 4 matches, 4 totals), 0 to 100.

    sacrebleu's default: exponential smoothing of orders without a match, brevity penalty.
    """
    lengths, references = sums[..., 0], sums[..., 1]
    matches, totals = sums[..., 2:6], sums[..., 6:10]
    logs = np.zeros(lengths.shape)
    smooth = np.ones(lengths.shape)
    dead = matches.sum(-1) == 0
    with np.errstate(divide="ignore", invalid="ignore"):
        for order in range(4):
            match, total = matches[..., order], totals[..., order]
            dead = dead | (total == 0)
            smooth = np.where(match == 0, smooth * 2, smooth)
            precision = np.where(match == 0, 1 / (smooth * total), match / total)
            logs = logs + np.log(np.where(dead, 1.0, precision))
        brevity = np.where(lengths < references, np.exp(1 - references / lengths), 1.0)
    return np.where(dead | (lengths == 0), 0.0, 100 * brevity * np.exp(logs / 4))


def chrf(sums: Floats) -> Floats:
    """Corpus chrF2 from (answer, reference, match) counts of character orders 1 to 6, 0 to 100."""
    counts = sums.reshape(*sums.shape[:-1], -1, 3)
    answer, reference, match = counts[..., 0], counts[..., 1], counts[..., 2]
    used = (answer > 0) & (reference > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        precision = np.where(used, match / answer, 0.0).sum(-1) / used.sum(-1)
        recall = np.where(used, match / reference, 0.0).sum(-1) / used.sum(-1)
        value = 5 * precision * recall / (4 * precision + recall)  # beta = 2
    return np.where(used.any(-1) & (precision + recall > 0), 100 * np.nan_to_num(value), 0.0)


def macro_f1(sums: Floats) -> Floats:
    """Mean over the labels of F1 from (hits, false alarms, misses) of each label, 0 to 1.

    Labels that neither occur nor are predicted do not count, as in scikit-learn.
    """
    counts = sums.reshape(*sums.shape[:-1], -1, 3)
    hits, alarms, misses = counts[..., 0], counts[..., 1], counts[..., 2]
    weight = 2 * hits + alarms + misses
    with np.errstate(divide="ignore", invalid="ignore"):
        each = np.where(weight > 0, 2 * hits / weight, 0.0)
        return np.asarray(each.sum(-1) / (weight > 0).sum(-1))


POOLS: Final[dict[str, Callable[[Floats], Floats]]] = {
    "mean": share,
    "share": share,
    "perplexity": perplexity,
    "bleu": bleu,
    "chrf": chrf,
    "macro_f1": macro_f1,
}
