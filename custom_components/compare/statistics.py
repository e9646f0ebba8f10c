"""What the scores of a comparison let one say: means, gains with their intervals, paired tests, ANOVA, rank points.

Scores are values of one metric in a table: method -> scan -> value. A statement about several methods is made on the scans that
all of them finished, and carries their number.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf, isfinite, isnan, nan, sqrt
from typing import Any

import numpy as np
import numpy.typing as npt

from .results import Result

Scores = Mapping[str, Mapping[str, float]]
Array = npt.NDArray[np.float64]

LOWER_IS_BETTER = ("rmse", "rmse_head", "seconds", "peak_memory_gib")
ROUNDING = 1e-12  # of the total variation: what is below it is rounding of the sums
CONFIDENCE = 0.95


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


def _table(scores: Scores, methods: Sequence[str]) -> Array:
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


def _differences(scores: Scores, first: str, second: str) -> Array:
    table = _table(scores, [first, second])
    with np.errstate(invalid="ignore"):  # the difference of two perfect results, whose PSNR is infinite
        difference: Array = table[0] - table[1]
    return difference


def difference(scores: Scores, first: str, second: str) -> Difference:
    """What `first` gains over `second`, scan by scan."""
    from scipy.stats import t

    d = _differences(scores, first, second)
    mean, deviation = mean_and_deviation(d)
    half = float(t.ppf(0.5 + CONFIDENCE / 2, len(d) - 1)) * deviation / sqrt(len(d)) if len(d) > 1 else nan
    return Difference(len(d), mean, mean - half, mean + half)


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
    d = _differences(scores, first, second)
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


@dataclass(frozen=True)
class Effect:
    """A line of an analysis of variance.

    Attributes:
        name: `method`, `scan`, `scale factor` or `method x scale factor`.
        df, df_residual: degrees of freedom.
        f, p: of the F test against the residual.
        partial_eta_squared: SS_effect / (SS_effect + SS_residual).
    """

    name: str
    df: int
    df_residual: int
    f: float
    p: float
    partial_eta_squared: float


@dataclass(frozen=True)
class Anova:
    """An analysis of variance.

    Attributes:
        scale_factors, methods, scans: what entered it.
        effects: its lines; none when it could not be made.
        reason: why not.
    """

    scale_factors: tuple[str, ...]
    methods: tuple[str, ...]
    scans: int
    effects: tuple[Effect, ...] = ()
    reason: str = ""


NAMES = {"C(method)": "method", "C(scan)": "scan", "C(factor)": "scale factor"}


def anova(scores: Mapping[str, Scores], methods: Sequence[str]) -> Anova:
    """Two-way analysis of variance of balanced scores, with each scan as a block.

    At one scale factor the factors are method and scan, without replication, so that their interaction is the residual. Over
    several scale factors they are method, scale factor and their interaction, with scan as the block. Methods without any score
    at one of the scale factors are left out, then scans that one of the others has not finished everywhere.

    Args:
        scores: scale factor -> scores.
        methods: names of those that are compared.

    Reference:
        The comparison of methods in V. Cherukuri et al., Deep MR brain image super-resolution using spatio-structural priors,
        IEEE Transactions on Image Processing 2020, doi:10.1109/TIP.2019.2942510: figures 10 and 16.
    """
    factors = tuple(scores)
    methods = [m for m in methods if all(scores[f].get(m) for f in factors)]
    finished = [set(common_scans(scores[f], methods)) for f in factors]
    scans = sorted(set.intersection(*finished)) if finished else []
    made = Anova(factors, tuple(methods), len(scans))
    if len(methods) < 2 or len(scans) < 2:
        return replace(
            made, reason=f"needs 2 methods and 2 scans that they finished, got {len(methods)} and {len(scans)}"
        )
    cells = [(f, m, s, scores[f][m][s]) for f in factors for m in methods for s in scans]
    if not all(isfinite(cell[3]) for cell in cells):
        return replace(made, reason="not all scores are finite")
    effects = _effects(cells, len(factors) > 1)
    return replace(made, effects=effects, reason="" if effects else "the scores leave no residual variance")


def _effects(cells: Sequence[tuple[str, str, str, float]], several_factors: bool) -> tuple[Effect, ...]:
    from pandas import DataFrame
    from statsmodels.formula.api import ols
    from statsmodels.stats.anova import anova_lm

    data: dict[str, Any] = dict(
        zip(("factor", "method", "scan"), zip(*(c[:3] for c in cells), strict=True), strict=True)
    )
    score = np.array([c[3] for c in cells])
    data["score"] = score - score.mean()  # for the precision of the sums
    formula = f"score ~ C(method){' * C(factor)' if several_factors else ''} + C(scan)"
    fit = ols(formula, DataFrame(data)).fit()
    residual, df_residual = float(fit.ssr), round(float(fit.df_resid))
    if df_residual < 1 or residual <= ROUNDING * max(float((data["score"] ** 2).sum()), ROUNDING * score.mean() ** 2):
        return ()
    table = anova_lm(fit, typ=2)
    return tuple(
        Effect(
            " x ".join(NAMES[part] for part in name.split(":")),
            round(float(row["df"])),
            df_residual,
            float(row["F"]),
            float(row["PR(>F)"]),
            float(row["sum_sq"] / (row["sum_sq"] + residual)),
        )
        for name, row in table.iterrows()
        if name != "Residual"
    )


def rank_points(scores: Scores, methods: Sequence[str], lower_is_better: bool = False) -> tuple[dict[str, float], int]:
    """Points of the methods over the scans that all of them finished, and the number of those scans; fewer points are better.

    Each scan gives points from 1 (best) to the number of methods; equal scores share the mean of their places.

    Reference:
        K. Thurnhofer-Hemsi et al., Deep learning networks with p-norm loss layers for spatial resolution enhancement of 3D medical
        images, IWINAC 2019, doi:10.1007/978-3-030-19651-6_28: figure 4.
    """
    from scipy.stats import rankdata

    table = _table(scores, methods)
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

    table = _table(scores, methods)
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
