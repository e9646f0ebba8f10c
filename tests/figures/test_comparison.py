"""The charts of a comparison: files, pixels, and what smoothing and cut axes do."""

from __future__ import annotations

from math import inf, nan

import nibabel as nib
import numpy as np
import pytest
from matplotlib.image import imread

from custom_components.errors import ScanError
from custom_components.figures import (
    loss_curves,
    mean_intervals,
    rank_bars,
    residual_pictures,
    score_bars,
    speed_scatter,
)
from custom_components.figures.bars import axis_begin
from custom_components.figures.curves import read_losses, smooth
from custom_components.figures.style import COLOURS, look, new_figure, save, shorten


def picture(path):
    """Pixels `(rows, columns, 3)` from 0 to 255."""
    x = np.round(np.asarray(imread(path)) * 255).astype(int)
    return np.repeat(x[..., None], 3, 2) if x.ndim == 2 else x[..., :3]


def colour_rows(path, colour):
    """Number of pixels of a colour in each row."""
    rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return (np.abs(picture(path) - rgb).max(-1) <= 2).sum(1)


def rows_of_bars(path, colour):
    """Heights in pixels of the bars of a colour, from its rows that are wide."""
    return int((colour_rows(path, colour) > 40).sum())


def test_bars_are_as_high_as_their_scores(tmp_path):
    panel = {"a": {"s": 0.0, "t": 4.0}, "b": {"s": 0.0, "t": 2.0}}
    score_bars({"PSNR": panel}, tmp_path / "a.png")
    tall, low = (rows_of_bars(tmp_path / "a.png", c) for c in COLOURS[:2])
    legend = 8  # rows of the legend's patch at most
    assert tall > 100
    assert low == pytest.approx(tall / 2, abs=legend)


def test_colours_belong_to_methods_and_not_to_places(tmp_path):
    score_bars({"x": {"b": {"s": 2.0, "t": 3.0}}}, tmp_path / "b.png", methods=("a", "b"))
    assert rows_of_bars(tmp_path / "b.png", COLOURS[0]) == 0
    assert rows_of_bars(tmp_path / "b.png", COLOURS[1]) > 50


def test_bars_of_missing_scores_leave_a_gap(tmp_path):
    score_bars({"x": {"a": {"s": 1.0}, "b": {"s": nan}}, "y": {"a": {}, "b": {"s": inf}}}, tmp_path / "c.png")
    assert rows_of_bars(tmp_path / "c.png", COLOURS[0]) > 50
    assert rows_of_bars(tmp_path / "c.png", COLOURS[1]) == 0


@pytest.mark.parametrize(
    ("values", "begin"),
    [([30.1, 34.0], 29), ([0.951, 0.962], 0.949), ([1.0, 100.0], 0), ([-1.0, 2.0], -1), ([], 0), ([25.0, 25.0], 20)],
)
def test_axis_begins_at_a_round_number_below(values, begin):
    assert axis_begin(values) == pytest.approx(begin)


def test_rank_bars_are_as_long_as_their_points(tmp_path):
    rank_bars({"x2": {"PSNR": {"a": 10.0, "b": 5.0}}}, tmp_path / "a.png")
    columns = colour_rows(tmp_path / "a.png", COLOURS[0])
    lengths = sorted({int(n) for n in columns if n > 60})
    assert lengths[-1] == pytest.approx(2 * lengths[0], rel=0.02)
    rank_bars({"x2": {"PSNR": {"a": nan}}, "x3": {}, "x4": {"SSIM": {"b": 1.0}}}, tmp_path / "b.png")


def test_smoothing_keeps_constants_lines_and_the_place_of_a_step():
    np.testing.assert_allclose(smooth(np.full(20, 3.5), 7), 3.5)
    np.testing.assert_allclose(smooth(np.arange(20.0), 5), np.arange(20))
    step = smooth(np.repeat([4.0, 0.0], 50), 9)
    assert np.flatnonzero(step < 2)[0] == 50
    np.testing.assert_allclose(step[::-1] + step, 4)
    x = np.random.default_rng(0).random(30)
    np.testing.assert_allclose(smooth(x, 5)[2:-2], np.convolve(x, np.ones(5) / 5, "valid"))
    np.testing.assert_array_equal(smooth(x, 1)[[0, -1]], smooth(x, 99)[[0, -1]])
    assert smooth([], 3).shape == (0,)
    with pytest.raises(ValueError, match="window must be odd and >= 1, got 4"):
        smooth(x, 4)


def losses(path, values, head="epoch,iteration,seconds,loss"):
    path.write_text("\n".join([head, *(f"{i + 1},{100 * (i + 1)},2.5,{v}" for i, v in enumerate(values))]))
    return path


def test_losses_are_read_by_their_names(tmp_path):
    iterations, values = read_losses(losses(tmp_path / "l.csv", [3, "nan", 1]))
    np.testing.assert_array_equal(iterations, [100, 200, 300])
    np.testing.assert_array_equal(values, [3, nan, 1])
    for file, got in (
        (tmp_path / "none.csv", "No such file"),
        (losses(tmp_path / "x.csv", [1], "a,b,c,d"), "no column"),
    ):
        with pytest.raises(ScanError, match=f"columns iteration and loss, got: {got}"):
            read_losses(file)


def texts_of(monkeypatch, call):
    """Texts and scale of the figure that a call saves."""
    seen = []
    monkeypatch.setattr("custom_components.figures.curves.save", lambda figure, _: seen.append(figure))
    call()
    (axes,) = seen[0].axes
    return [t.get_text() for t in axes.get_legend().get_texts()], axes


def test_a_diverged_run_ends_where_it_diverged(tmp_path, monkeypatch):
    files = {
        "good": losses(tmp_path / "a.csv", [4, 3, 2, 1]),
        "bad": losses(tmp_path / "b.csv", [4, 5, "inf", 1]),
        "at once": losses(tmp_path / "c.csv", ["nan"]),
        "none": tmp_path / "none.csv",
    }
    texts, axes = texts_of(monkeypatch, lambda: loss_curves(files, tmp_path / "l.png", window=1))
    assert texts == ["good", "bad (diverged at 300)", "at once (diverged at 100)", "none (no curve)"]
    assert axes.get_yscale() == "log"
    (bad,) = (line for line in axes.lines if line.get_label().startswith("bad"))
    np.testing.assert_array_equal(bad.get_xdata(), [100, 200])
    np.testing.assert_array_equal(bad.get_ydata(), [4, 5])
    ends = [line.get_xydata()[0].tolist() for line in axes.lines if line.get_marker() == "X"]
    assert ends[0] == [200, 5]


def test_a_likelihood_below_zero_has_a_linear_axis(tmp_path, monkeypatch):
    file = losses(tmp_path / "a.csv", [1, -1])
    _, axes = texts_of(monkeypatch, lambda: loss_curves({"a": file}, tmp_path / "l.png"))
    assert axes.get_yscale() == "linear"


def test_curves_are_drawn(tmp_path):
    loss_curves({"a": losses(tmp_path / "a.csv", [4, 2, 1]), "b": tmp_path / "no.csv"}, tmp_path / "l.png", window=3)
    assert (colour_rows(tmp_path / "l.png", COLOURS[0]) > 0).sum() > 50


def test_means_and_speed_are_drawn(tmp_path):
    mean_intervals({"x2": {"a": (30, 29, 31), "b": (31, nan, nan), "c": (nan,) * 3}}, tmp_path / "m.png", "dB", "note")
    assert (
        colour_rows(tmp_path / "m.png", COLOURS[0]).max() > 10 * colour_rows(tmp_path / "m.png", COLOURS[1]).max() > 0
    )
    assert colour_rows(tmp_path / "m.png", COLOURS[2]).max() == 0
    speed_scatter(
        {"x2": {"a": (1.0, 0.0), "b": (100.0, 2.0), "c": (nan, 1.0), "d": (0.0, 1.0)}}, tmp_path / "s.png", "dB"
    )
    assert (tmp_path / "s.png").stat().st_size < 100_000


def write(path, voxels, spacing=(1.0, 1.0, 1.0)):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels.astype(np.float32), np.diag([*spacing, 1])), path)
    return path


@pytest.fixture
def head(tmp_path):
    voxels = np.zeros((40, 40, 40))
    voxels[8:32, 8:32, 8:32] = 0.6
    voxels[16:24, 16:24] = 0.9
    return {
        "truth": write(tmp_path / "hr.nii.gz", voxels),
        "lowres": write(tmp_path / "lr.nii.gz", voxels[::2, ::2, ::2], (2, 2, 2)),
        "perfect": write(tmp_path / "perfect.nii.gz", voxels),
        "bright": write(tmp_path / "bright.nii.gz", voxels + 0.1),
        "coarse": write(tmp_path / "coarse.nii.gz", voxels[::2, ::2, ::2], (2, 2, 2)),
    }


def panel(path, column, row, columns):
    """Pixels of a panel without its rim; panels are squares here, of 2.4 inch at most, the pixels are 110 per inch."""
    x = picture(path)
    width = min((9.1 - 0.28) / columns - 0.03, 2.4)
    dpi = x.shape[1] / (0.28 + columns * (width + 0.03))
    left, top = 0.28 + column * (width + 0.03), 0.42 + row * (width + 0.03)
    return x[
        round((top + 0.05) * dpi) : round((top + width - 0.05) * dpi),
        round((left + 0.05) * dpi) : round((left + width - 0.05) * dpi),
    ]


def test_residuals_of_a_perfect_method_are_grey(head, tmp_path):
    residual_pictures(
        head["truth"],
        head["lowres"],
        {"p": head["perfect"], "b": head["bright"]},
        tmp_path / "r.png",
        residual_range=0.4,
    )
    np.testing.assert_array_equal(panel(tmp_path / "r.png", 2, 2, 4), 128)
    np.testing.assert_allclose(panel(tmp_path / "r.png", 3, 2, 4), 255 * (0.5 - 0.1 / 0.4), atol=1)
    assert panel(tmp_path / "r.png", 0, 2, 4).max() == 0  # HR has none
    same = np.abs(panel(tmp_path / "r.png", 2, 0, 4) - panel(tmp_path / "r.png", 0, 0, 4))
    assert same.mean() < 0.5  # edges lie at other parts of a pixel


@pytest.mark.parametrize(("error", "width"), [(0.01, 0.1), (0.09, 0.2), (-0.11, 0.4), (0.6, 1.0)])
def test_the_range_of_residuals_follows_them(head, tmp_path, error, width):
    truth = nib.load(head["truth"]).get_fdata()
    result = write(tmp_path / "r.nii.gz", truth + error)
    residual_pictures(head["truth"], head["lowres"], {"b": result}, tmp_path / "r.png")
    grey = max(255 * (0.5 - error / width), 0)
    np.testing.assert_allclose(panel(tmp_path / "r.png", 2, 2, 3), grey, atol=1)


def test_gaps_of_results_that_are_not_there(head, tmp_path):
    (tmp_path / "rubbish.nii.gz").write_bytes(b"no scan")
    given = {"none": tmp_path / "none.nii.gz", "rubbish": tmp_path / "rubbish.nii.gz", "coarse": head["coarse"]}
    residual_pictures(head["truth"], tmp_path / "no_lr.nii.gz", given, tmp_path / "r.png")
    for column in (2, 3):
        for row in range(3):
            assert (panel(tmp_path / "r.png", column, row, 5) == 0).mean() > 0.9
    assert (panel(tmp_path / "r.png", 4, 2, 5) == 0).mean() > 0.8
    assert panel(tmp_path / "r.png", 4, 0, 5).max() > 200
    with pytest.raises(ScanError, match=r"none\.nii\.gz: expected a scan"):
        residual_pictures(given["none"], head["lowres"], {"a": head["perfect"]}, tmp_path / "x.png")


def test_many_methods_go_on_below(head, tmp_path):
    six = {f"m{i}": head["perfect"] for i in range(6)}
    residual_pictures(head["truth"], head["lowres"], six, tmp_path / "r.png", columns=4)
    residual_pictures(head["truth"], head["lowres"], {"m": head["perfect"], "n": head["perfect"]}, tmp_path / "s.png")
    tall, low = (picture(tmp_path / f"{n}.png").shape for n in "rs")
    assert tall[1] == low[1]
    assert tall[0] == pytest.approx(2 * low[0], rel=0.05)


def test_bad_arguments(tmp_path, head):
    for draw in (score_bars, rank_bars, loss_curves):
        with pytest.raises(ValueError, match="at least, got none"):
            draw({}, tmp_path / "a.png")
    for draw in (mean_intervals, speed_scatter):
        with pytest.raises(ValueError, match="at least, got none"):
            draw({}, tmp_path / "a.png", "dB")
    with pytest.raises(ValueError, match=r"plane must be one of .*, got 'oblique'"):
        residual_pictures(head["truth"], head["lowres"], {}, tmp_path / "a.png", plane="oblique")
    with pytest.raises(ValueError, match="columns must be >= 2, got 1"):
        residual_pictures(head["truth"], head["lowres"], {}, tmp_path / "a.png", columns=1)


def test_files_keep_to_their_size(tmp_path):
    figure = new_figure(4, 4)
    figure.subplots().imshow(np.random.default_rng(0).random((400, 400)), cmap="gray")
    save(figure, tmp_path / "large.png", grey=True)
    save(figure, tmp_path / "small.png", grey=True, largest=60_000)
    assert (tmp_path / "small.png").stat().st_size <= 60_000 < (tmp_path / "large.png").stat().st_size
    assert imread(tmp_path / "small.png").ndim == 2


def test_looks_of_many_methods_differ():
    looks = [look(i) for i in range(32)]
    assert len(set(looks)) == len({(s.colour, s.hatch) for s in looks}) == 32


def test_long_names_are_shortened():
    assert shorten("short\nname") == "short name"
    assert shorten("a very long name of a method", 11) == "a ver\u2026ethod"
    assert shorten("cost in $") == r"cost in \$"
