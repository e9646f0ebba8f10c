from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from custom_components.errors import ScanError
from custom_components.figures import head_position, plane_slice, three_planes
from custom_components.figures.planes import Slice, finest_plane, shown_planes

PLANES = {"axial": (0, 1), "coronal": (0, 2), "sagittal": (1, 2)}
SPACING = (1.0, 2.0, 3.0)


def _ras_volume() -> np.ndarray:
    """Each voxel its own value; index grows to right, anterior, superior."""
    return np.arange(5 * 6 * 7, dtype=np.float32).reshape(5, 6, 7)


def _grid(axes: tuple[int, ...], signs: tuple[int, ...]) -> tuple[torch.Tensor, np.ndarray]:
    """The same volume with its array axes in another order and direction, and the affine, turned a little, for it."""
    volume = _ras_volume().transpose(axes)
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, (world, sign) in enumerate(zip(axes, signs, strict=True)):
        affine[world, axis] = sign * SPACING[world]
        volume = np.flip(volume, axis) if sign < 0 else volume
    angle = 0.2
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine[:3, :3] = turn @ affine[:3, :3]
    return torch.from_numpy(volume.copy())[None], affine


@pytest.mark.parametrize("axes", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, -1, 1), (1, -1, -1)])
@pytest.mark.parametrize("plane", PLANES)
def test_a_plane_looks_the_same_for_any_order_and_direction_of_axes(
    axes: tuple[int, ...], signs: tuple[int, ...], plane: str
) -> None:
    across, down = PLANES[plane]
    normal = 3 - across - down
    volume = _ras_volume()
    index = [2, 1, 4]
    expected = volume.take(index[normal], axis=normal).T[::-1, ::-1]  # right, anterior, superior come first
    img, affine = _grid(axes, signs)
    parts = [(index[w] + 0.5) / volume.shape[w] for w in axes]
    position = tuple(1 - p if s < 0 else p for p, s in zip(parts, signs, strict=True))
    shown = plane_slice(img, affine, plane, position)
    np.testing.assert_array_equal(shown.pixels, expected)
    sizes = [n * s for n, s in zip(volume.shape, SPACING, strict=True)]
    assert shown.size == pytest.approx((sizes[across], sizes[down]))


def test_a_place_is_the_same_on_a_coarser_grid() -> None:
    fine = torch.zeros(1, 8, 8, 8)
    fine[0, 4:6, 2:4, 6:8] = 1
    coarse = fine[:, ::2, ::2, ::2]
    for plane in PLANES:
        pixels = [plane_slice(x, np.eye(4), plane, (0.6, 0.3, 0.9)).pixels for x in (fine, coarse)]
        assert pixels[0].max() == 1
        np.testing.assert_array_equal(pixels[0][::2, ::2], pixels[1])


def test_head_position_is_the_middle_of_what_is_bright() -> None:
    img = torch.zeros(1, 100, 200, 40)
    img[0, 20:40, 100:160, 10:20] = 5
    assert head_position(img) == pytest.approx((0.3, 0.65, 0.375), abs=0.02)
    assert head_position(torch.ones(1, 4, 4, 4)) == (0.5, 0.5, 0.5)


def _picture(path: Path) -> np.ndarray:
    from matplotlib.image import imread

    return np.asarray(imread(path))[..., :3]


def _volumes() -> dict[str, MetaTensor]:
    affine = torch.diag(torch.tensor([1.0, 1.0, 2.0, 1.0], dtype=torch.float64))
    hr = torch.zeros(1, 40, 40, 20)
    hr[:, 8:32, 8:32, 4:16] = 0.8
    half = torch.diag(torch.tensor([2.0, 2.0, 2.0, 1.0], dtype=torch.float64))
    return {
        "HR": MetaTensor(hr, affine=affine),
        "LR": MetaTensor(hr[:, ::2, ::2], affine=half),
        "SR": MetaTensor(hr + 0.25, affine=affine),
    }


def test_residuals_and_window_are_as_stated(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "figure.png"
    three_planes(_volumes(), path, residual_to="HR", window=(0, 1))
    picture = _picture(path)
    height, width = picture.shape[:2]
    assert [p.name for p in path.parent.iterdir()] == ["figure.png"]
    # 0.3 inch of margin, then 4 columns of 2.5 inch and a gap of 0.04: HR, LR, SR, HR - SR + 0.5
    middle = [round((0.3 + 2.54 * c + 1.25) / (0.3 + 4 * 2.54) * width) for c in range(4)]
    row = round(height * (0.55 + 1.25) / (0.55 + 3 * 2.54 + 0.32))
    np.testing.assert_allclose(
        [picture[row, x] for x in middle], np.array([[0.8], [0.8], [1.0], [0.25]]) * np.ones(3), atol=0.01
    )
    three_planes(_volumes(), path, residual_to="HR", window=(0, 1), residual_range=0.8)
    assert _picture(path)[row, middle[3], 0] == pytest.approx(0.5 - 0.25 / 0.8, abs=0.01)


def test_zoom_adds_a_row_and_slices_alone_do(tmp_path: Path) -> None:
    three_planes(_volumes(), tmp_path / "plain.png")
    three_planes(_volumes(), tmp_path / "zoom.png", zoom=True)
    plain, zoom = (_picture(tmp_path / f"{n}.png").shape for n in ("plain", "zoom"))
    assert zoom[0] - plain[0] == pytest.approx(2.54 * 130, abs=2)
    assert zoom[1] == plain[1]
    three_planes({"slice": torch.rand(1, 30, 20)}, tmp_path / "slice.png", zoom=True)
    assert _picture(tmp_path / "slice.png").shape[0] < plain[0]


@pytest.mark.parametrize(("axis", "plane"), [(1, "sagittal"), (2, "coronal"), (3, "axial")])
def test_a_single_slice_is_one_plane(tmp_path: Path, axis: int, plane: str) -> None:
    slices = {name: img.narrow(axis, img.shape[axis] // 2, 1) for name, img in _volumes().items()}
    for img in slices.values():
        assert shown_planes(img) == [plane]
    three_planes(slices, tmp_path / "slice.png", window=(0, 1))
    picture = _picture(tmp_path / "slice.png")
    height = 0.55 + 2.5 + 0.04 + 0.32  # as 40 voxels of 1 mm, or 20 of 2 mm, both ways: one square panel
    assert picture.shape[0] == pytest.approx(130 * height, abs=2)
    middle = [round((0.3 + 2.54 * c + 1.25) * 130) for c in range(3)]
    np.testing.assert_allclose(picture[round(130 * (0.55 + 1.25)), middle, 0], [0.8, 0.8, 1.0], atol=0.01)


def test_a_picture_is_shown_as_it_is_and_without_sides(tmp_path: Path) -> None:
    rows = np.arange(24 * 36, dtype=np.float32).reshape(24, 36) / (24 * 36)
    slices = {}
    for name in ("drawn", "scanned"):
        affine = torch.diag(torch.tensor([-1.0, -1.0, 1.0, 1.0], dtype=torch.float64))
        slices[name] = MetaTensor(torch.from_numpy(rows.T.copy())[None, ..., None], affine=affine)
    slices["drawn"].meta["picture"] = True
    assert shown_planes(slices["drawn"]) == ["picture"]
    shown = plane_slice(slices["drawn"], affine.numpy(), "picture", (0.5, 0.5, 0.5))
    np.testing.assert_array_equal(shown.pixels, rows)
    assert shown.size == (36, 24)
    coloured = []
    for name, img in slices.items():
        three_planes({name: img}, tmp_path / f"{name}.png")
        coloured.append(bool((np.ptp(_picture(tmp_path / f"{name}.png"), axis=-1) > 0.05).any()))
    assert coloured == [False, True]  # the letters are all that is not grey


def test_constant_and_tiny_volumes(tmp_path: Path) -> None:
    three_planes({"a": torch.ones(1, 2, 3, 2), "b": torch.zeros(1, 2, 3, 2)}, tmp_path / "a.png", "a", zoom=True)
    assert _picture(tmp_path / "a.png").size


def test_bad_input(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'GT' among them, got"):
        three_planes(_volumes(), tmp_path / "a.png", residual_to="GT")
    with pytest.raises(ValueError, match=r"expected an image \(1, X, Y\)"):
        three_planes({"a": torch.zeros(2, 4, 4, 4)}, tmp_path / "a.png")
    (tmp_path / "file").write_text("")
    with pytest.raises(ScanError, match="expected to write the file"):
        three_planes(_volumes(), tmp_path / "file" / "a.png")


@pytest.mark.parametrize(
    ("coarse", "row"),
    [((20, 20, 20), 0), ((39, 41, 20), 1), ((20, 41, 39), 0), ((40, 40, 40), 0), ((19, 20, 21), 0)],
    ids=["isotropic", "thick axial slices", "thick sagittal slices", "one grid", "rounded sizes"],
)
def test_the_enlarged_plane_is_one_that_gains(coarse: tuple[int, ...], row: int) -> None:
    images = [
        [Slice(np.zeros((shape[b], shape[a]), np.float32), (40.0, 40.0)) for a, b in PLANES.values()]
        for shape in ((40, 40, 40), coarse, (40, 40, 40))
    ]
    assert finest_plane(images) == row
