"""Quantiles of Student's t, exact for whole degrees of freedom (Abramowitz and Stegun 1964, 26.7.3 and 26.7.4)."""

from __future__ import annotations

import math
from functools import cache


def two_sided(t: float, freedom: int) -> float:
    """The probability that |T| is at most t, for T of Student's distribution with whole degrees of freedom."""
    angle = math.atan(t / math.sqrt(freedom))
    cosine, odd = math.cos(angle), freedom % 2
    term = cosine if odd else 1.0
    terms = [term]
    for n in range(3 if odd else 2, freedom - 1, 2):
        term *= cosine**2 * ((n - 1) / n)
        terms.append(term)
    series = math.sin(angle) * sum(terms)
    return (angle + series) * 2 / math.pi if odd and freedom > 1 else angle * 2 / math.pi if odd else series


@cache
def quantile(level: float, freedom: int) -> float:
    """The t that T stays below with a probability `level` from 0.5 to 1."""
    low, high = 0.0, 1.0
    while two_sided(high, freedom) < 2 * level - 1:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if two_sided(middle, freedom) < 2 * level - 1 else (low, middle)
    return high
