"""Paired tests of two methods over the scans of a comparison, with effect sizes and Holm's correction."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import isnan, nan

import numpy as np

from .results import Result
from .statistics import ROUNDING, Difference, Scores, difference, differences, mean_and_deviation, scores_of


@dataclass(frozen=True)
class PairedTest:
    """Wilcoxon's signed-rank test of two methods over the scans that both finished, two-sided.

    Attributes:
        scale_factor, metric, first, second: what is tested; differences are `first - second`.
        gain: the mean difference with its interval.
        p: exact for up to 50 scans without ties (13 with), else by the normal approximation; differences of 0 are left out.
        p_holm: `p` after Holm's correction over the family of tests that it was made with.
        p_floor: the smallest `p` that so many differences can give, 2^(1 - n): with 5 scans no test reaches 0.05.
        rank_biserial: matched-pairs rank-biserial correlation `(W+ - W-) / (W+ + W-)`, from -1 to 1.
        cohens_dz: mean of the differences over their standard deviation.
        reason: why there is no test; the numbers are NaN then.
    """

    scale_factor: str
    metric: str
    first: str
    second: str
    gain: Difference
    p: float = nan
    p_holm: float = nan
    p_floor: float = nan
    rank_biserial: float = nan
    cohens_dz: float = nan
    reason: str = ""


def paired_test(scores: Scores, first: str, second: str, scale_factor: str = "", metric: str = "") -> PairedTest:
    """Test two methods against each other; see `PairedTest`."""
    from scipy.stats import rankdata, wilcoxon

    test = PairedTest(scale_factor, metric, first, second, difference(scores, first, second))
    d = differences(scores, first, second)
    if len(d) < 2:
        return replace(test, reason=f"a test needs at least 2 scans that both methods finished, got {len(d)}")
    if not np.isfinite(d).all():
        return replace(test, reason="not all scores are finite")
    nonzero = d[d != 0]
    if not len(nonzero):
        return replace(test, reason="both methods have the same scores")
    ranks = rankdata(np.abs(nonzero))
    mean, deviation = mean_and_deviation(d)
    return replace(
        test,
        p=float(wilcoxon(nonzero).pvalue) if len(nonzero) > 1 else 1.0,
        p_floor=2.0 ** (1 - len(nonzero)),
        rank_biserial=float((ranks * np.sign(nonzero)).sum() / ranks.sum()),
        cohens_dz=mean / deviation if deviation > ROUNDING * abs(mean) else nan,
    )


def holm(p_values: Sequence[float]) -> list[float]:
    r"""Holm's step-down correction: `max_{j <= i} min(1, (m - j + 1) p_(j))` for the i-th smallest of m; NaN takes no part.

    Reference:
        S. Holm, A simple sequentially rejective multiple test procedure, Scandinavian Journal of Statistics, 1979.
    """
    order = sorted((i for i, p in enumerate(p_values) if not isnan(p)), key=lambda i: p_values[i])
    corrected, largest = [nan] * len(p_values), 0.0
    for place, i in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - place) * p_values[i]))
        corrected[i] = largest
    return corrected


def paired_tests(
    results: Sequence[Result], metric: str, scale_factors: Sequence[str], pairs: Iterable[tuple[str, str]]
) -> list[PairedTest]:
    """Tests of each pair of methods at each scale factor; together they are the family of Holm's correction."""
    pairs = list(dict.fromkeys(pairs))
    tests = [
        paired_test(scores_of(results, factor, metric), first, second, factor, metric)
        for factor in scale_factors
        for first, second in pairs
    ]
    corrected = holm([test.p for test in tests])
    return [replace(test, p_holm=p) for test, p in zip(tests, corrected, strict=True)]
