"""The figure of learnt filters: what is read, how it is turned, and that a response is that of the filter in the scan's axes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from monai.data import MetaTensor
from scipy import ndimage
from torch import nn

from custom_components.errors import ScanError
from custom_components.figures.filters import draw_filters, filter_responses, main, read_filters
from custom_components.figures.planes import PLANES, plane_slice
from custom_components.losses import CompositeLoss, LearnableSharpness, SharpnessFilterLoss

SPACING = (1.0, 1.5, 2.0)


def volume(shape=(11, 12, 13), seed=0):
    return np.random.default_rng(seed).random(shape, dtype=np.float32)


def some_filters(count=3, seed=1):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((count, 3, 3)).astype(np.float32))


def on_grid(voxels, axes=(0, 1, 2), signs=(1, 1, 1)):
    """An image whose array axes lie along the world axes `axes`, in the directions `signs`."""
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    for k, (world, sign) in enumerate(zip(axes, signs, strict=True)):
        affine[world, k] = sign * SPACING[world]
    return MetaTensor(torch.from_numpy(voxels)[None], affine=torch.from_numpy(affine)), affine


def checkpoint(path, filters, term="sharpness", whole=True):
    """What `TrainingState` writes of a loss with learnt filters, or the state of the loss alone."""
    sharpness = LearnableSharpness(2, num_filters=len(filters))
    with torch.no_grad():
        sharpness.weight.copy_(filters)
    loss = CompositeLoss({"mse": nn.MSELoss(), term: sharpness, "filters": SharpnessFilterLoss(sharpness)})
    torch.save({"network": {}, "loss": loss.state_dict(), "epoch": 1} if whole else loss.state_dict(), path)
    return path, sharpness


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("axes", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, 1, -1)])
def test_responses_in_the_axes_of_the_scan_turned_as_the_slice(axis, axes, signs):
    """scipy's correlation in the array's own axes, slice by slice, then turned like the volume."""
    voxels, filters = volume(), some_filters()
    image, affine = on_grid(voxels, axes, signs)
    pixels, size, shown = filter_responses(image, filters, axis, index=4)
    plane = next(name for name, worlds in PLANES.items() if worlds[2] == axes[axis])
    position = [0.5] * 3
    position[axis] = 4.5 / voxels.shape[axis]
    np.testing.assert_array_equal(pixels, plane_slice(image, affine, plane, tuple(position)).pixels)
    assert size == pytest.approx([voxels.shape[axes.index(w)] * SPACING[w] for w in PLANES[plane][:2]])
    kernels = [np.array([[0, -1, 0], [-1, 4, -1], [0, -1, 0]], float), *filters.numpy()]
    for kernel, response in zip(kernels, shown, strict=True):
        filtered = ndimage.correlate(voxels, np.expand_dims(kernel, axis).astype(np.float32), mode="nearest")
        expected = plane_slice(torch.from_numpy(filtered)[None], affine, plane, tuple(position)).pixels
        np.testing.assert_allclose(response.pixels, expected, atol=1e-5)
        again = ndimage.correlate(pixels, response.coefficients, mode="nearest")
        np.testing.assert_allclose(response.pixels, again, atol=1e-5)
        assert sorted(response.coefficients.ravel()) == pytest.approx(sorted(kernel.ravel()))
    assert [r.name for r in shown] == ["Laplacian", "filter 1", "filter 2", "filter 3"]


def test_the_slice_that_is_taken_by_default():
    voxels = np.zeros((20, 20, 20), np.float32)
    voxels[3:8, 5:15, 5:15] = 1 + volume((5, 10, 10))
    image, _ = on_grid(voxels)
    image.affine[0, 0] *= 5  # thick along the first axis, where the head ends at a third
    pixels, size, _ = filter_responses(image, some_filters())
    assert size == (30, 40)
    assert (pixels > 0).sum() == 100
    assert filter_responses(image, some_filters(), axis=2)[1] == pytest.approx((100, 30))
    assert not filter_responses(image, some_filters(), index=12)[0].any()


def test_filters_as_they_are_used(tmp_path):
    path, sharpness = checkpoint(tmp_path / "last.pt", 7 * some_filters())
    torch.testing.assert_close(read_filters(path), sharpness.filters.detach())
    torch.testing.assert_close(read_filters(path, fixed_norm=False), 7 * some_filters())
    path, _ = checkpoint(tmp_path / "loss.pt", some_filters(), term="edges", whole=False)
    torch.testing.assert_close(read_filters(path, "edges", fixed_norm=False), some_filters())


def test_what_has_no_filters(tmp_path):
    path = tmp_path / "x.pt"
    for content, got in (
        ({"network": {"a": torch.zeros(1)}, "epoch": 1}, "network, epoch"),
        ({"loss": {"terms.other.weight": torch.zeros(8, 3, 3)}}, "terms.other.weight"),
        ({"loss": {}}, "none"),
        ({"loss": torch.zeros(1)}, "Tensor"),
        (torch.zeros(1), "none"),
    ):
        torch.save(content, path)
        with pytest.raises(
            ScanError, match=rf"x\.pt: expected learnt filters as terms.sharpness.weight .*, got {got}$"
        ):
            read_filters(path)
    torch.save({"loss": {"terms.sharpness.weight": torch.zeros(8, 3, 3, 3)}}, path)
    with pytest.raises(ScanError, match=r"expected filters for slices \(L, k, k\) .* got the shape \(8, 3, 3, 3\)"):
        read_filters(path)
    path.write_text("no checkpoint")
    for file in (path, tmp_path / "none.pt"):
        with pytest.raises(ScanError, match=r"expected a checkpoint of tensors, got a file that torch\.load"):
            read_filters(file)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"axis": 3}, "slice_axis must be 0, 1 or 2, got 3"),
        ({"axis": 0, "index": 11}, "slice must be from 0 to 10, got 11"),
        ({"index": -1}, "slice must be from 0 to 12, got -1"),
    ],
)
def test_bad_arguments(options, match):
    with pytest.raises(ValueError, match=match):
        filter_responses(on_grid(volume())[0], some_filters(), **options)


def test_panels_scales_and_labels(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr("custom_components.figures.filters.save", lambda figure, _: figures.append(figure))
    filters = torch.stack([torch.zeros(3, 3), torch.eye(3)])
    image, _ = on_grid(volume())
    draw_filters(image, filters, tmp_path / "x.png", axis=2)
    panels = {axes.get_title(): axes for axes in figures[0].axes if axes.get_title()}
    assert list(panels) == ["slice", "Laplacian", "filter 1", "filter 2"]
    shown = {r.name: r.pixels for r in filter_responses(image, filters, 2)[2]}
    for name, axes in panels.items():
        low, high = axes.images[0].get_clim()
        if name == "slice":
            assert (low, high) == (0, 1)
            continue
        assert low == -high < 0
        if name != "filter 1":
            assert high == pytest.approx(np.percentile(np.abs(shown[name]), 99.5))
        np.testing.assert_array_equal(axes.images[0].get_array(), shown[name])
        assert axes.images[0].get_extent() == [0, 11, 18, 0]
    texts = [text.get_text() for axes in figures[0].axes for text in axes.texts]
    assert texts[0].split() == ["0.00", "-1.00", "0.00", "-1.00", "4.00", "-1.00", "0.00", "-1.00", "0.00"]
    assert len(texts) == 3
    bars = [child for axes in figures[0].axes for child in axes.child_axes]
    assert [bar.get_xlabel() for bar in bars] == ["response"] * 3
    assert all(axes.get_xlabel() == "mm" for axes in panels.values())
    assert panels["slice"].get_ylabel() == "mm"


def test_command(tmp_path, write_nifti, capsys):
    path, _ = checkpoint(tmp_path / "last.pt", some_filters(8))
    scan = write_nifti("scan.nii.gz", (900 * volume()).astype(np.int16), np.diag([1, 1, 3, 1]))
    main(["--state", str(path), "--scan", str(scan), "--output", str(tmp_path / "new/out.png"), "--slice", "3"])
    assert capsys.readouterr().out.strip() == str(tmp_path / "new/out.png")
    assert imread(tmp_path / "new/out.png").shape[1] > 900
    one = write_nifti("slice.nii.gz", (900 * volume((11, 12, 1))).astype(np.int16), np.diag([1, 1, 3, 1]))
    main(["--state", str(path), "--scan", str(one), "--output", str(tmp_path / "one.png"), "--no-fixed_norm"])
    assert (tmp_path / "one.png").is_file()
