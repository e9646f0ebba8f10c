"""Results survive a file; names of scale factors."""

from __future__ import annotations

from math import inf, isnan, nan

import pytest

from custom_components.compare.results import Result, factor_name, factor_values, read_results, write_results
from custom_components.errors import ScanError


def test_round_trip(tmp_path):
    rows = [
        Result("007", "2", "p = 1.9", 1 / 3, 0.5, 1e-9, inf, 0.1, 0.2, 3.0, 1.5),
        Result("b", "1x1x3", 'a, "b"', error="scan.nii.gz: expected, got\tthis"),
    ]
    write_results(tmp_path / "new" / "results.csv", rows)
    first, second = read_results(tmp_path / "new" / "results.csv")
    assert first == rows[0]
    assert (second.scan, second.scale_factor, second.method, second.error) == ("b", "1x1x3", 'a, "b"', rows[1].error)
    assert isnan(second.psnr) and isnan(second.seconds)


def test_nan_is_an_empty_cell(tmp_path):
    write_results(tmp_path / "r.csv", [Result("a", "2", "m", psnr=30.25, ssim=nan)])
    head, line = (tmp_path / "r.csv").read_text().splitlines()
    assert head == (
        "scan,scale_factor,method,psnr,ssim,rmse,psnr_head,ssim_head,rmse_head,seconds,peak_memory_gib,error"
    )
    assert line == "a,2,m,30.25,,,,,,,,"


@pytest.mark.parametrize("text", ["", "scan,method\na,b\n", "\x00\x01"])
def test_a_foreign_file_is_refused(tmp_path, text):
    (tmp_path / "r.csv").write_text(text)
    with pytest.raises(ScanError, match=r"r\.csv: expected (the columns scan, scale_factor|a table of results)"):
        read_results(tmp_path / "r.csv")


def test_a_damaged_number_and_a_missing_file_are_refused(tmp_path):
    write_results(tmp_path / "r.csv", [Result("a", "2", "m", psnr=30.25)])
    (tmp_path / "r.csv").write_text((tmp_path / "r.csv").read_text().replace("30.25", "thirty"))
    with pytest.raises(ScanError, match=r"r\.csv: expected a table of results, got: .*'thirty'"):
        read_results(tmp_path / "r.csv")
    with pytest.raises(ScanError, match="No such file"):
        read_results(tmp_path / "none.csv")


@pytest.mark.parametrize(
    ("factor", "name", "values"),
    [
        (2, "2", 2.0),
        (2.0, "2", 2.0),
        ("2", "2", 2.0),
        (2.5, "2.5", 2.5),
        ([1, 1, 3], "1x1x3", [1.0, 1.0, 3.0]),
        ("1x1x3", "1x1x3", [1.0, 1.0, 3.0]),
        ((2, 2.0, 2), "2", 2.0),
    ],
)
def test_factor_names(factor, name, values):
    assert factor_name(factor) == name
    assert factor_values(name) == values
    assert factor_name(name) == name


@pytest.mark.parametrize("factor", [0.5, [1, 2], "two", None, [1, 1, float("inf")], {}, "1x2"])
def test_a_bad_factor_is_refused(factor):
    with pytest.raises(ValueError, match="one number or 3 numbers >= 1, got"):
        factor_name(factor)
