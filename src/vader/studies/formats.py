"""Numbers of studies as cells of Markdown tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from vader.evaluation.formats import NONE, decimals, fixed


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))


def mean_and_spread(point: Mapping[str, Any], places: int | None = None) -> str:
    """The mean over seeds and the standard deviation between them."""
    digits = min(decimals([point["mean"]]), 3) if places is None else places
    return f"{fixed(point['mean'], digits)} ± {fixed(point['spread'], digits)}"


def count(number: float) -> str:
    """A whole number, or a dash for what never came."""
    return f"{number:,.0f}" if math.isfinite(number) else NONE


def times(ratio: float) -> str:
    return f"{ratio:.2g}" if math.isfinite(ratio) else NONE
