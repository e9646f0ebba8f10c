"""Two-way analysis of variance of the scores of a comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any

import numpy as np

from .statistics import ROUNDING, Scores, common_scans


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
