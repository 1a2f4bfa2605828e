"""Numbers as people read them: as many decimals as tell something, true minus signs, durations in words."""

from __future__ import annotations

import math
from collections.abc import Iterable

MINUS, TIMES, NONE = "\N{MINUS SIGN}", "\N{MULTIPLICATION SIGN}", "\N{EN DASH}"


def decimals(values: Iterable[float]) -> int:
    """How many decimals show three digits of the largest finite value: from 1 to 4."""
    largest = max((abs(value) for value in values if math.isfinite(value)), default=0.0)
    return min(4, max(1, 2 - math.floor(math.log10(largest or 1.0))))


def fixed(value: float, places: int) -> str:
    """A number with so many decimals, nought without a sign; a dash for what is not finite."""
    return f"{round(value, places) + 0.0:.{places}f}".replace("-", MINUS) if math.isfinite(value) else NONE


def signed(value: float, places: int) -> str:
    """A change: with a plus where it is one that these decimals show."""
    return f"+{fixed(value, places)}" if math.isfinite(value) and round(value, places) > 0 else fixed(value, places)


def with_error(mean: float, error: float, places: int) -> str:
    """ "4.00 ± 0.14", mean and standard error; the mean alone of a single video, which tells no error."""
    return f"{fixed(mean, places)} ± {fixed(error, places)}" if error > 0 else fixed(mean, places)


def in_console(text: str) -> str:
    """A text of these numbers for a console: signs that can be typed, searched for and read back as numbers."""
    return text.replace(MINUS, "-").replace(NONE, "-")


def counted(count: int, noun: str) -> str:
    """ "1 video", "16 videos"."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def plain(value: float) -> str:
    """A round number, as on an axis."""
    return f"{value:,.6g}".replace("-", MINUS)


def duration(seconds: float) -> str:
    """From milliseconds to hours, two units at most."""
    if seconds < 0.0995:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 9.995:
        return f"{seconds:.2f} s"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    if seconds < 3599.5:
        return f"{round(seconds) // 60} min {round(seconds) % 60} s"
    return f"{round(seconds / 60) // 60} h {round(seconds / 60) % 60} min"
