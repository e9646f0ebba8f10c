"""What the scores of a comparison let one say: means, gains with their intervals, rank points.

Scores are values of one metric in a table: method -> scan -> value. A statement about several methods is made on the scans that
all of them finished, and carries their number.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf, isnan, nan, sqrt

import numpy as np
import numpy.typing as npt

from .results import Result

Scores = Mapping[str, Mapping[str, float]]
Array = npt.NDArray[np.float64]

LOWER_IS_BETTER = ("rmse", "rmse_head", "seconds", "peak_memory_gib")
CONFIDENCE = 0.95
ROUNDING = 1e-12  # relative: what is below it is rounding of sums


def scores_of(results: Iterable[Result], scale_factor: str, metric: str) -> dict[str, dict[str, float]]:
    """Scores of one metric at a scale factor, in the order of the results; a failed scan has none."""
    found: dict[str, dict[str, float]] = {}
    for row in results:
        if row.scale_factor == scale_factor:
            value = float(getattr(row, metric))
            found.setdefault(row.method, {}).update({} if isnan(value) else {row.scan: value})
    return found


def common_scans(scores: Scores, methods: Iterable[str]) -> list[str]:
    """Scans that all the methods finished."""
    given = [scores.get(method, {}) for method in methods]
    return [scan for scan in given[0] if all(scan in one for one in given)] if given else []


def table_of(scores: Scores, methods: Sequence[str]) -> Array:
    """`(methods, scans)` on the scans that all the methods finished."""
    scans = common_scans(scores, methods)
    return np.array([[scores[m][s] for s in scans] for m in methods], np.float64).reshape(len(methods), len(scans))


def mean_and_deviation(values: Iterable[float]) -> tuple[float, float]:
    """Mean and standard deviation of the sample (n - 1); NaN where there are too few values, or not all are finite."""
    given = np.array(list(values), np.float64)
    finite = bool(np.isfinite(given).all())
    return (
        float(given.mean()) if len(given) else nan,
        float(given.std(ddof=1)) if len(given) > 1 and finite else nan,
    )


@dataclass(frozen=True)
class Difference:
    """Mean of the paired differences `first - second` and its interval.

    Attributes:
        scans: number of scans that both methods finished.
        mean: in units of the metric; NaN without scans.
        low, high: 95 % interval by Student's t, `mean -+ t(0.975, n - 1) sd / sqrt(n)`; NaN for a single scan.
    """

    scans: int
    mean: float = nan
    low: float = nan
    high: float = nan


def differences(scores: Scores, first: str, second: str) -> Array:
    """`(scans,)` scores of the first method less those of the second, on the scans that both finished."""
    table = table_of(scores, [first, second])
    with np.errstate(invalid="ignore"):  # the difference of two perfect results, whose PSNR is infinite
        difference: Array = table[0] - table[1]
    return difference


def difference(scores: Scores, first: str, second: str) -> Difference:
    """What `first` gains over `second`, scan by scan."""
    from scipy.stats import t

    d = differences(scores, first, second)
    mean, deviation = mean_and_deviation(d)
    half = float(t.ppf(0.5 + CONFIDENCE / 2, len(d) - 1)) * deviation / sqrt(len(d)) if len(d) > 1 else nan
    return Difference(len(d), mean, mean - half, mean + half)


def rank_points(scores: Scores, methods: Sequence[str], lower_is_better: bool = False) -> tuple[dict[str, float], int]:
    """Points of the methods over the scans that all of them finished, and the number of those scans; fewer points are better.

    Each scan gives points from 1 (best) to the number of methods; equal scores share the mean of their places.

    Reference:
        K. Thurnhofer-Hemsi et al., Deep learning networks with p-norm loss layers for spatial resolution enhancement of 3D medical
        images, IWINAC 2019, doi:10.1007/978-3-030-19651-6_28: figure 4.
    """
    from scipy.stats import rankdata

    table = table_of(scores, methods)
    if not table.size:
        return dict.fromkeys(methods, nan), 0
    points = rankdata(table if lower_is_better else -table, axis=0).sum(1)
    return {m: float(p) for m, p in zip(methods, points, strict=True)}, table.shape[1]


def within_scan_intervals(scores: Scores, methods: Sequence[str]) -> tuple[dict[str, Difference], int]:
    """Mean of each method with the 95 % interval that is left when the level of each scan is taken away, and the number of scans.

    Scans differ more from each other than methods do; these intervals tell methods apart, not how well a mean is known. With M
    methods `y - mean of the scan + grand mean` is spread too little; its deviation is multiplied by sqrt(M / (M - 1)).

    Reference:
        R. D. Morey, Confidence intervals from normalized data: a correction to Cousineau (2005), Tutorials in Quantitative Methods
        for Psychology, 2008, doi:10.20982/tqmp.04.2.p061.
    """
    from scipy.stats import t

    table = table_of(scores, methods)
    count = table.shape[1]
    if not count or len(methods) < 2 or not np.isfinite(table).all():
        return {m: Difference(count, mean_and_deviation(row)[0]) for m, row in zip(methods, table, strict=True)}, count
    normal = table - table.mean(0) + table.mean()
    factor = sqrt(len(methods) / (len(methods) - 1) / count)
    quantile = float(t.ppf(0.5 + CONFIDENCE / 2, count - 1)) if count > 1 else nan
    made = {}
    for method, row in zip(methods, normal, strict=True):
        mean, deviation = mean_and_deviation(row)
        half = quantile * factor * deviation
        made[method] = Difference(count, mean, mean - half, mean + half)
    return made, count


def best(values: Mapping[str, float], metric: str) -> set[str]:
    """Names of the best of the values, all of them where several are equal; NaN takes no part."""
    given = {name: value for name, value in values.items() if not isnan(value)}
    wanted = (min if metric in LOWER_IS_BETTER else max)(given.values(), default=inf)
    return {name for name, value in given.items() if value == wanted}
