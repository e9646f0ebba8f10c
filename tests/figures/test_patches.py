"""What stands where in the picture of patches, read from the figure before it is written."""

from __future__ import annotations

import itertools

import pytest
import torch

from custom_components.figures import LabelledPatch, patch_rows


def patches(count, kind):
    """Patches whose first voxel is their number, in hundredths."""
    return [
        LabelledPatch(torch.full((4, 5), i / 100), f"{kind} {i}\nof a scan with a long name", 0.12345 + i)
        for i in range(count)
    ]


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """Draw and give the figure, in place of the file."""

    def draw(rows):
        figures = []
        monkeypatch.setattr("custom_components.figures.patches.save", lambda figure, path, grey: figures.append(figure))
        patch_rows(rows, tmp_path / "x.png")
        return figures[0]

    return draw


@pytest.mark.parametrize("count", [1, 3, 14])
def test_every_patch_of_a_few(drawn, count):
    axes = drawn({"sharp": patches(count, "a"), "smooth": patches(count, "b")}).axes
    assert len(axes) == 2 * count
    for n, panel in enumerate(axes):
        kind, i = ("a", n) if n < count else ("b", n - count)
        assert torch.equal(torch.from_numpy(panel.images[0].get_array().data), torch.full((4, 5), i / 100))
        assert panel.images[0].get_clim() == (0, 1)
        assert panel.get_title() == f"{kind} {i}\nof a sc\u2026g name"
        assert panel.get_xlabel() == ("0.123" if i == 0 else f"{i}.12" if i < 10 else f"{i}.1")
        assert panel.get_ylabel() == ({"a": "sharp", "b": "smooth"}[kind] if i == 0 else "")


@pytest.mark.parametrize("count", [15, 40, 140])
def test_many_patches_evenly(drawn, count):
    axes = drawn({"one": patches(count, "a")}).axes
    taken = [int(panel.get_title().split()[1]) for panel in axes]
    assert len(taken) == 14
    assert taken[0] == 0
    steps = {after - before for before, after in itertools.pairwise([*taken, count])}
    assert max(steps) - min(steps) <= 1


def test_rows_of_three_in_a_file_of_their_folder(tmp_path):
    from matplotlib.image import imread

    patch_rows({name: patches(2, name) for name in "abc"}, tmp_path / "new" / "x.png")
    picture = imread(tmp_path / "new" / "x.png")
    assert picture.ndim == 2
    assert picture.shape[0] / picture.shape[1] == pytest.approx(3 * 1.65 / (2 * 1.15 + 0.5), rel=0.02)


@pytest.mark.parametrize(
    ("rows", "got"),
    [
        ({}, r"\{\}"),
        ({"a": [], "b": []}, r"\{'a': 0, 'b': 0\}"),
        ({"a": patches(2, "a"), "b": patches(1, "b")}, r"\{'a': 2, 'b': 1\}"),
    ],
)
def test_rows_that_are_no_table(tmp_path, rows, got):
    with pytest.raises(ValueError, match=f"expected rows of patches, as many in each, got {got}"):
        patch_rows(rows, tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()
