from __future__ import annotations

import itertools
from math import inf, isnan, nan

import numpy as np
import pytest
from scipy import stats

from custom_components.compare.anova import anova
from custom_components.compare.paired import holm, paired_test, paired_tests
from custom_components.compare.results import Result
from custom_components.compare.statistics import (
    best,
    common_scans,
    difference,
    mean_and_deviation,
    rank_points,
    scores_of,
    within_scan_intervals,
)

TABLE = np.array([[30.1, 28.4, 33.0, 31.2], [31.0, 28.9, 33.1, 32.5], [32.4, 30.3, 34.9, 33.1]])  # 3 methods, 4 scans
METHODS = ["a", "b 'q\"", "c"]


def scores(table, methods=METHODS):
    return {m: {f"s{j}": float(v) for j, v in enumerate(row)} for m, row in zip(methods, table, strict=False)}


def test_scores_are_those_of_the_factor_and_failures_have_none():
    results = [
        Result("s", "2", "a", psnr=30.0, ssim=0.9),
        Result("t", "2", "a", error="no"),
        Result("s", "3", "a", psnr=20.0),
        Result("t", "2", "b", error="no"),
    ]
    assert scores_of(results, "2", "psnr") == {"a": {"s": 30.0}, "b": {}}
    assert scores_of(results, "3", "ssim") == {"a": {}}


def test_common_scans_keep_their_order():
    given = {"a": {"z": 1, "y": 2, "x": 3}, "b": {"x": 1, "z": 2}}
    assert common_scans(given, ["a", "b"]) == ["z", "x"]
    assert common_scans(given, ["a", "no"]) == common_scans(given, []) == []


def test_mean_and_deviation():
    assert mean_and_deviation([1, 2, 3, 6]) == (3, pytest.approx((14 / 3) ** 0.5))
    assert mean_and_deviation([2.5])[0] == 2.5
    assert isnan(mean_and_deviation([2.5])[1])
    assert all(isnan(v) for v in mean_and_deviation([]))
    assert mean_and_deviation([1, inf])[0] == inf


def test_difference_is_that_of_the_t_test():
    got = difference(scores(TABLE), "c", "a")
    expected = stats.ttest_rel(TABLE[2], TABLE[0]).confidence_interval(0.95)
    assert (got.scans, got.mean) == (4, pytest.approx((TABLE[2] - TABLE[0]).mean()))
    assert (got.low, got.high) == pytest.approx((expected.low, expected.high))


def test_difference_is_over_the_common_scans_alone():
    got = difference({"a": {"x": 1.0, "y": 5.0}, "b": {"y": 3.0, "z": 100.0}}, "a", "b")
    assert (got.scans, got.mean) == (1, 2.0)
    assert isnan(got.low)
    assert difference({"a": {}, "b": {}}, "a", "b").scans == 0


def exact_wilcoxon(d):
    """Two-sided p and rank-biserial correlation by all assignments of signs."""
    ranks = stats.rankdata(np.abs(d))
    total = ranks.sum()
    sums = [
        sum(r for r, s in zip(ranks, signs, strict=True) if s) for signs in itertools.product((0, 1), repeat=len(d))
    ]
    plus = ranks[np.asarray(d) > 0].sum()
    extreme = abs(plus - total / 2) - 1e-9
    return np.mean([abs(s - total / 2) >= extreme for s in sums]), (2 * plus - total) / total


@pytest.mark.parametrize(
    "d",
    [[1, 2, 3, 4, 5], [1.5, -0.5, 2.5, 3.5, 0.25, -3], [1, -1, 2, 2, -3, 5, 6], [3, -1]],
    ids=["one side", "both sides", "ties", "two scans"],
)
def test_wilcoxon_by_enumeration_of_signs(d):
    test = paired_test(scores([10 + np.array(d, float), [10] * len(d)]), METHODS[0], METHODS[1])
    p, correlation = exact_wilcoxon(d)
    assert test.p == pytest.approx(p)
    assert test.rank_biserial == pytest.approx(correlation)
    assert test.cohens_dz == pytest.approx(np.mean(d) / np.std(d, ddof=1))
    assert test.p_floor == 2 ** (1 - len(d)) <= test.p + 1e-12


def test_wilcoxon_of_a_known_example():
    """Darwin's maize, crossed less self-fertilised, in eighths of an inch: W- = 24, the exact p is 0.0413."""
    d = [49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48]
    test = paired_test(scores([[float(v) for v in d], [0.0] * 15]), METHODS[0], METHODS[1])
    assert test.p == pytest.approx(0.0413, abs=5e-5)
    assert test.rank_biserial == pytest.approx((96 - 24) / 120)


def test_differences_of_zero_take_no_part_in_the_test():
    test = paired_test(scores([[1, 2, 3, 0, 0], [0, 0, 0, 0, 0]]), METHODS[0], METHODS[1])
    assert (test.p, test.p_floor, test.gain.scans) == (0.25, 0.25, 5)
    alone = paired_test(scores([[1, 0], [0, 0]]), METHODS[0], METHODS[1])
    assert (alone.p, alone.p_floor) == (1, 1)


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        ([[1.0], [2.0]], "at least 2 scans that both methods finished, got 1"),
        ([[], []], "got 0"),
        ([[1.0, 2.0], [1.0, 2.0]], "the same scores"),
        ([[inf, 2.0], [inf, 1.0]], "not all scores are finite"),
    ],
)
def test_degenerate_pairs_have_a_reason(table, reason):
    test = paired_test(scores(table), METHODS[0], METHODS[1])
    assert reason in test.reason
    assert all(isnan(v) for v in (test.p, test.p_floor, test.rank_biserial, test.cohens_dz))


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, nan, 0.02]) == [0.5, pytest.approx(nan, nan_ok=True), 0.04]
    assert holm([0.9, 0.8]) == [1, 1]
    assert holm([]) == []


def test_the_family_of_holm_spans_the_scale_factors():
    rng = np.random.default_rng(0)
    table = {(f, m): 30 + i + rng.normal(size=8) for f in "23" for i, m in enumerate("abc")}
    results = [Result(f"s{j}", f, m, psnr=v) for (f, m), row in table.items() for j, v in enumerate(row)]
    tests = paired_tests(results, "psnr", ["2", "3"], [("b", "a"), ("c", "a"), ("b", "a")])
    assert [(t.scale_factor, t.first, t.second) for t in tests] == [
        *(("2", "b", "a"), ("2", "c", "a"), ("3", "b", "a"), ("3", "c", "a"))
    ]
    p = [stats.wilcoxon(table[f, m], table[f, "a"]).pvalue for f in "23" for m in "bc"]
    assert [t.p for t in tests] == pytest.approx(p)
    assert [t.p_holm for t in tests] == pytest.approx(holm(p))


def test_anova_of_a_table_by_sums_of_squares():
    made = anova({"2": scores(TABLE)}, METHODS)
    grand = TABLE.mean()
    rows, columns = TABLE.mean(1), TABLE.mean(0)
    squares = {"method": 4 * ((rows - grand) ** 2).sum(), "scan": 3 * ((columns - grand) ** 2).sum()}
    residual = ((TABLE - rows[:, None] - columns + grand) ** 2).sum()
    assert (made.scans, made.methods, made.reason) == (4, tuple(METHODS), "")
    assert [(e.name, e.df, e.df_residual) for e in made.effects] == [("method", 2, 6), ("scan", 3, 6)]
    for effect in made.effects:
        f = squares[effect.name] / effect.df / (residual / 6)
        assert effect.f == pytest.approx(f)
        assert effect.p == pytest.approx(stats.f.sf(f, effect.df, 6))
        assert effect.partial_eta_squared == pytest.approx(squares[effect.name] / (squares[effect.name] + residual))


def test_anova_of_two_methods_is_the_paired_t_test():
    made = anova({"2": scores(TABLE[:2])}, METHODS[:2])
    t = stats.ttest_rel(TABLE[0], TABLE[1])
    assert made.effects[0].f == pytest.approx(t.statistic**2)
    assert made.effects[0].p == pytest.approx(t.pvalue)


def test_anova_over_scale_factors_by_sums_of_squares():
    rng = np.random.default_rng(1)
    x = (
        30 + rng.normal(size=(2, 3, 4)) + np.arange(3)[:, None] + np.array([0, -3])[:, None, None]
    )  # factor, method, scan
    made = anova({"2": scores(x[0]), "3": scores(x[1])}, METHODS)
    grand, by_factor, by_method, by_scan = x.mean(), x.mean((1, 2)), x.mean((0, 2)), x.mean((0, 1))
    cells = x.mean(2) - by_factor[:, None] - by_method + grand
    squares = {
        "method": 8 * ((by_method - grand) ** 2).sum(),
        "scale factor": 12 * ((by_factor - grand) ** 2).sum(),
        "scan": 6 * ((by_scan - grand) ** 2).sum(),
        "method x scale factor": 4 * (cells**2).sum(),
    }
    residual = ((x - grand) ** 2).sum() - sum(squares.values())
    df = {"method": 2, "scale factor": 1, "scan": 3, "method x scale factor": 2}
    assert {e.name: e.df for e in made.effects} == df
    for e in made.effects:
        assert e.df_residual == 23 - 8
        assert e.f == pytest.approx(squares[e.name] / df[e.name] / (residual / 15))


def test_anova_leaves_out_what_is_not_complete():
    given = {**scores(TABLE), "d": {}}
    del given["a"]["s1"]
    made = anova({"2": given}, [*METHODS, "d"])
    assert (made.methods, made.scans) == (tuple(METHODS), 3)
    whole = anova({"2": scores(TABLE[:, [0, 2, 3]])}, METHODS)
    assert made.effects[0].f == pytest.approx(whole.effects[0].f)


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        (TABLE[:1], "got 1 and 4"),
        (TABLE[:, :1], "got 3 and 1"),
        (np.repeat(TABLE[:1], 3, 0), "no residual variance"),
        (np.full((3, 4), 30.1), "no residual variance"),
        (np.where(TABLE > 34, inf, TABLE), "not all scores are finite"),
        (np.zeros((0, 0)), "got 0 and 0"),
    ],
)
def test_degenerate_anova_has_a_reason(table, reason):
    made = anova({"2": scores(table)}, METHODS)
    assert made.effects == ()
    assert reason in made.reason


def test_rank_points_by_hand():
    given = scores([[30, 31, 32], [30, 33, 31], [29, 32, 33]])  # places 1.5 3 2, 1.5 1 3, 3 2 1
    assert rank_points(given, METHODS) == ({"a": 6.5, "b 'q\"": 5.5, "c": 6.0}, 3)
    assert rank_points(given, METHODS, lower_is_better=True)[0] == {"a": 5.5, "b 'q\"": 6.5, "c": 6.0}
    del given["a"]["s1"]
    assert rank_points(given, METHODS) == ({"a": 3.5, "b 'q\"": 4.5, "c": 4.0}, 2)
    points, count = rank_points(given, ["a", "none"])
    assert (count, all(isnan(p) for p in points.values())) == (0, True)


def test_within_scan_intervals_know_no_level_of_the_scans():
    got, count = within_scan_intervals(scores(TABLE), METHODS)
    shifted, _ = within_scan_intervals(scores(TABLE + np.array([0, 50, -20, 7])), METHODS)
    assert count == 4
    for method, row in zip(METHODS, TABLE, strict=True):
        assert got[method].mean == pytest.approx(row.mean())
        assert shifted[method].high - shifted[method].low == pytest.approx(got[method].high - got[method].low)


def test_within_scan_interval_of_two_methods_is_the_paired_one_over_root_two():
    """With two methods the normalised values differ by -+ d / 2, so that the corrected interval is that of d by sqrt(2)."""
    got, _ = within_scan_intervals(scores(TABLE[:2]), METHODS[:2])
    d = difference(scores(TABLE[:2]), METHODS[0], METHODS[1])
    for one in got.values():
        assert one.high - one.low == pytest.approx((d.high - d.low) / 2**0.5)
    alone, _ = within_scan_intervals(scores(TABLE[:1]), METHODS[:1])
    assert alone["a"].mean == pytest.approx(TABLE[0].mean())
    assert isnan(alone["a"].low)


def test_best():
    assert best({"a": 1.0, "b": 2.0, "c": 2.0, "d": nan}, "psnr") == {"b", "c"}
    assert best({"a": 1.0, "b": 2.0, "d": nan}, "rmse_head") == {"a"}
    assert best({"a": nan}, "psnr") == best({}, "rmse") == set()
