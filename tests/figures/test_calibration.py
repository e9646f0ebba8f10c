"""What stands where in the figure of a calibration, read from the figure before it is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from custom_components.errors import ScanError
from custom_components.figures import calibration_curves

SCANS = [((0.01, 0.03), (0.02, 0.04)), ((0.02, 0.05), (0.02, 0.1))]
MEAN = ((0.015, 0.04), (0.02, 0.07))


@pytest.fixture
def drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Draw and give the figure, in place of the file."""

    def draw(panels: Any, means: Any, **options: Any) -> Any:
        figures: list[Any] = []
        monkeypatch.setattr("custom_components.figures.calibration.save", lambda figure, path: figures.append(figure))
        calibration_curves(panels, means, tmp_path / "x.png", **options)
        return figures[0]

    return draw


def test_a_thin_line_per_scan_a_thick_mean_and_the_diagonal(drawn: Any) -> None:
    (axes,) = drawn({"factor 2": SCANS}, {"factor 2": MEAN}, label="RMSE").axes
    diagonal, *scans, mean = axes.lines
    np.testing.assert_array_equal(*diagonal.get_data())
    for line, curve in zip((*scans, mean), (*SCANS, MEAN), strict=True):
        np.testing.assert_array_equal(line.get_data(), curve)
    assert max(line.get_linewidth() for line in scans) < mean.get_linewidth() / 2
    assert (axes.get_xscale(), axes.get_yscale(), axes.get_aspect()) == ("log", "log", 1)
    assert axes.get_xlim() == axes.get_ylim()
    assert axes.get_xlim()[0] < 0.01 < 0.1 < axes.get_xlim()[1]
    assert (axes.get_title(), axes.get_xlabel(), axes.get_ylabel()) == ("factor 2", "expected RMSE", "RMSE")
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["as expected", "a scan", "mean of 2"]


def test_panels_have_the_same_axes(drawn: Any) -> None:
    panels = {str(n): [((n, 2 * n), (3 * n, n))] for n in (1, 2, 3, 40)}
    axes = drawn(panels, {}).axes
    assert [a.get_title() for a in axes if a.axison] == ["1", "2", "3", "40"]
    assert len({a.get_xlim() for a in axes if a.axison}) == 1
    assert all(len(a.lines) == 2 for a in axes if a.axison)


def test_an_error_of_zero_makes_the_axes_linear(drawn: Any) -> None:
    (axes,) = drawn({"a": [((0.0, 1.0), (0.5, 1.0))]}, {}).axes
    assert axes.get_xscale() == axes.get_yscale() == "linear"


def test_the_file_is_a_picture(tmp_path: Path) -> None:
    calibration_curves({"factor 2": SCANS, "factor 3": SCANS}, {"factor 2": MEAN}, tmp_path / "new" / "x.png")
    assert (tmp_path / "new" / "x.png").read_bytes()[:4] == b"\x89PNG"


def test_bad_input(tmp_path: Path) -> None:
    for panels in ({}, {"a": []}):
        with pytest.raises(ValueError, match=r"expected panels with a curve at least, got \{"):
            calibration_curves(panels, {}, tmp_path / "x.png")
    (tmp_path / "file").write_text("")
    with pytest.raises(ScanError, match="expected to write the file"):
        calibration_curves({"a": SCANS}, {}, tmp_path / "file" / "x.png")
