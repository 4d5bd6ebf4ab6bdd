"""Text for numbers, energies and durations; confidence intervals; rows as CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any


def percent(share: float | None, digits: int = 2) -> str:
    """A share as "99.54%"; "–" for None."""
    if share is None or not math.isfinite(share):
        return "–"
    return f"{100 * share:.{digits}f}%"


def small_percent(share: float | None) -> str:
    """A share that may be tiny: "24.6%", "0.63%", "< 0.01%", "0%"."""
    if share is None or not math.isfinite(share):
        return "–"
    if 0 < share < 1e-4:
        return "< 0.01%"
    return "0%" if share == 0 else percent(share, 1 if share >= 0.0995 else 2)


def number(value: float | None) -> str:
    """A count, or a mean of counts: "30,791", "31.4", "1.23 million"; "–" for None."""
    if value is None or not math.isfinite(value):
        return "–"
    for size, word in ((1e12, "trillion"), (1e9, "billion"), (1e6, "million")):
        if abs(value) >= size:
            return f"{value / size:.3g} {word}" if abs(value) < 999.5 * size else f"{value / size:,.0f} {word}"
    if value == int(value) or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2g}"


def ratio(value: float | None) -> str:
    """A factor: "0.31", "12.4", "1,830"; "–" for None."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def energy(pj: float | None) -> str:
    """Picojoules in a unit that reads well: "12.3 nJ"; "–" for None or NaN."""
    if pj is None or not math.isfinite(pj):
        return "–"
    units = (("pJ", 1.0), ("nJ", 1e3), ("µJ", 1e6), ("mJ", 1e9))
    unit, size = next((entry for entry in units if abs(pj) < 999.5 * entry[1]), ("J", 1e12))
    return f"{pj / size:.3g} {unit}"


def duration(us: float | None) -> str:
    """Microseconds in a unit that reads well: "1.28 ms"; "–" for None."""
    if us is None:
        return "–"
    unit, size = next((entry for entry in (("µs", 1.0), ("ms", 1e3)) if us < 999.5 * entry[1]), ("s", 1e6))
    return f"{us / size:.3g} {unit}"


def interval(share: float, trials: int) -> tuple[float, float]:
    """Wilson's 95 % confidence interval of a share, in [0, 1], of independent trials (JASA 22, 1927)."""
    z = 1.959964
    centre = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    return max(0.0, centre - half), min(1.0, centre + half)


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as CSV text, with one column per key of any row, in order of first appearance; None is an empty cell."""
    file = io.StringIO()
    writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()
