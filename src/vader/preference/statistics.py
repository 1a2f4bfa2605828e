"""What preferences say beyond chance: intervals, a test, strengths, agreement. Arrays in, numbers out.

Scores are 1 where the first of two systems was preferred, 0 where the second, 0.5 for a tie.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Interval = tuple[float, float]
Numbers = NDArray[np.float64]

NORMAL = NormalDist()
CONFIDENCE = 0.95
RESAMPLES = 4000
FEWEST = 5  # prompts: the spread of fewer says too little
NOTHING: Interval = (math.nan, math.nan)


def wilson(share: float, count: int, confidence: float = CONFIDENCE) -> Interval:
    """Wilson's score interval (1927, JASA 22) of a share of `count` independent answers, ties counted as halves."""
    if not count:
        return NOTHING
    z = NORMAL.inv_cdf((1 + confidence) / 2)
    middle = share + z * z / (2 * count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    whole = 1 + z * z / count
    return max(0.0, (middle - half) / whole), min(1.0, (middle + half) / whole)


def clustered_bootstrap(
    scores: Numbers, clusters: NDArray[np.int64], seed: int = 0, confidence: float = CONFIDENCE
) -> Interval:
    """An interval of the mean score over new prompts: all answers of a prompt are drawn together, with replacement.

    It is the expanded percentile interval (Hesterberg 2015, The American Statistician 69, section 5): the plain one is
    too short by as much as Student's t is wider than a normal, and by sqrt(G / (G - 1)).

    Args:
        scores: one an answer, `[N]`.
        clusters: each answer's prompt, `[N]`, from 0 to G - 1.

    Returns:
        Twice NaN where there are fewer than `FEWEST` prompts.
    """
    sums, counts = np.bincount(clusters, scores), np.bincount(clusters)
    if len(sums) < FEWEST:
        return NOTHING
    groups = len(sums)
    drawn = np.random.default_rng(seed).integers(groups, size=(RESAMPLES, groups))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    tail = NORMAL.cdf(-math.sqrt(groups / (groups - 1)) * t_quantile((1 + confidence) / 2, groups - 1))
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def t_quantile(probability: float, freedom: int) -> float:
    """Student's t, by Abramowitz and Stegun 26.7.5: within 0.002 at 97.5 % from 4 degrees of freedom on."""
    x = NORMAL.inv_cdf(probability)
    terms = (
        (x**3 + x) / 4,
        (5 * x**5 + 16 * x**3 + 3 * x) / 96,
        (3 * x**7 + 19 * x**5 + 17 * x**3 - 15 * x) / 384,
        (79 * x**9 + 776 * x**7 + 1482 * x**5 - 1920 * x**3 - 945 * x) / 92160,
    )
    return x + sum(term / freedom**power for power, term in enumerate(terms, start=1))


def sign_test(wins: int, losses: int) -> float:
    """The exact two-sided binomial test of both being as likely; ties are left out."""
    count, fewer = wins + losses, min(wins, losses)
    ways, total = 1, 0
    for i in range(fewer + 1):
        total += ways
        ways = ways * (count - i) // (i + 1)
    return min(1.0, 2 * total / 2**count)


def bradley_terry(wins: Numbers) -> Numbers | None:
    """Strengths that sum to 1, of which i is preferred to j with probability s_i / (s_i + s_j).

    The maximum likelihood by the MM iteration of Hunter (2004, Annals of Statistics 32, equation 3).

    Args:
        wins: `[S, S]`, how often i was preferred to j; a tie is half a win for each.

    Returns:
        None where there is no maximum: the systems fall into two groups of which one never beats the other.
    """
    if not _connected(wins):
        return None
    won, met = wins.sum(axis=1), wins + wins.T
    strengths = np.full(len(wins), 1 / len(wins))
    for _ in range(100_000):
        better = won / (met / (strengths[:, None] + strengths[None, :])).sum(axis=1)
        better /= better.sum()
        if np.abs(better / strengths - 1).max() < 1e-12:
            return better
        strengths = better
    return strengths


def _connected(wins: Numbers) -> bool:
    """Whether every system beats every other, itself or by way of others that it beats."""
    reached = (wins > 0) | np.eye(len(wins), dtype=bool)
    for _ in range(len(wins)):
        reached = (reached.astype(int) @ reached.astype(int)) > 0
    return bool(reached.all())


def krippendorff_alpha(counts: Numbers) -> float:
    """Agreement of raters beyond chance, 1 at the most and 0 at chance: Krippendorff's alpha for nominal data
    (2011, Computing Krippendorff's Alpha-Reliability, section C).

    Args:
        counts: `[U, V]`, how many raters gave unit u the value v; raters may be missing anywhere.

    Returns:
        NaN where no unit has two answers, or all answers are the same.
    """
    paired = counts[counts.sum(axis=1) >= 2]
    raters, values = paired.sum(axis=1), paired.sum(axis=0)
    total = values.sum()
    expected = (total**2 - (values**2).sum()) / max(1.0, total - 1)
    if not expected:
        return math.nan
    observed = ((raters**2 - (paired**2).sum(axis=1)) / (raters - 1)).sum()
    return float(1 - observed / expected)
