"""The sharpest and smoothest patches against a search through all of them by scipy's Laplacian."""

from __future__ import annotations

import csv
import itertools
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from scipy import ndimage

from custom_components.errors import ScanError
from custom_components.losses import SharpnessFilterLoss
from custom_components.sharp_patches import main, select_patches, write_patches
from custom_components.splits import training_scans

ROOT = Path(__file__).parents[1]
SIZE = 6


def scan(voxels, file="a.nii.gz", **meta):
    return {
        "image": MetaTensor(torch.as_tensor(voxels, dtype=torch.float32)[None], meta={"filename_or_obj": file, **meta})
    }


def noise(shape=(15, 13, 11), seed=0, blur=1.0):
    """Foreground all over; detail of changing strength, so that places differ."""
    rng = np.random.default_rng(seed)
    strength = ndimage.gaussian_filter(rng.random(shape), 3)
    strength = (strength - strength.min()) / np.ptp(strength)
    x = 0.5 + 0.4 * (0.1 + strength) * (ndimage.gaussian_filter(rng.random(shape), blur) - 0.5)
    return x.astype(np.float32)


def all_responses(voxels, axis, size=SIZE, stride=1):
    """(slice, row, column) -> squared norm of a patch's Laplacian where the patch has all neighbours, one patch at a time."""
    slices = np.moveaxis(voxels.astype(np.float64), axis, 0)
    rows, columns = (range(0, n - size + 1, stride) for n in slices.shape[1:])
    return {
        (k, i, j): (ndimage.laplace(slices[k, i : i + size, j : j + size])[1:-1, 1:-1] ** 2).sum()
        for k, i, j in itertools.product(range(len(slices)), rows, columns)
    }


def greedy(found, count, gap, size=SIZE):
    """The best places, one after the other, each clear of those before."""
    kept = []
    for place in sorted(found, key=found.__getitem__):
        if all(abs(place[0] - p[0]) >= gap and max(abs(place[1] - p[1]), abs(place[2] - p[2])) >= size for p in kept):
            kept.append(place)
    return kept[:count]


def places(records, kind):
    return [(r.slice, r.row, r.column) for r in records if r.kind == kind]


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("stride", [1, 2])
def test_extremes_of_all_patches(axis, stride):
    voxels = noise()
    got = select_patches([scan(voxels)], SIZE, slice_axis=axis, stride=stride)
    found = all_responses(voxels, axis, stride=stride)
    assert got.sharp.shape == got.smooth.shape == (1, 1, SIZE, SIZE)
    for patch, record, best in zip((got.sharp, got.smooth), got.records, (max, min), strict=True):
        place = (record.slice, record.row, record.column)
        assert place == best(found, key=found.__getitem__)
        assert record.response == pytest.approx(found[place], rel=1e-4)
        cut = np.moveaxis(voxels, axis, 0)[place[0], place[1] : place[1] + SIZE, place[2] : place[2] + SIZE]
        np.testing.assert_array_equal(patch[0, 0].numpy(), cut)
        assert (record.slice_axis, record.file) == (axis, "a.nii.gz")
    assert [r.kind for r in got.records] == ["sharp", "smooth"]
    assert type(got.sharp) is torch.Tensor and got.sharp.dtype == torch.float32


@pytest.mark.parametrize(("gap", "stride"), [(1, 1), (2, 1), (4, 1), (2, 3)])
def test_patches_of_one_scan_are_apart(gap, stride):
    voxels = noise((26, 25, 12))
    got = select_patches([scan(voxels)], SIZE, per_scan=4, slice_axis=2, stride=stride, slice_gap=gap)
    found = all_responses(voxels, 2, stride=stride)
    assert places(got.records, "smooth") == greedy(found, 4, gap)
    assert places(got.records, "sharp") == greedy({place: -value for place, value in found.items()}, 4, gap)


def test_patches_lie_in_the_head():
    """A head with an edge that is sharper than anything in it, in air without any detail."""
    voxels = np.full((30, 30, 3), 0.02, np.float32)
    voxels[6:24, 6:24] = noise((18, 18, 3))
    for share, inside in ((1.0, True), (0.0, False)):
        got = select_patches([scan(voxels)], SIZE, slice_axis=2, head_share=share)
        low, high = (6, 24 - SIZE) if inside else (25, -1)
        for _, row, column in places(got.records, "sharp") + places(got.records, "smooth"):
            assert all(low <= n <= high for n in (row, column)) == inside
    part = select_patches([scan(voxels)], SIZE, slice_axis=2, head_share=0.5)
    assert (part.sharp > 0.1).float().mean((1, 2, 3)) >= 0.5
    assert part.records[0].response > select_patches([scan(voxels)], SIZE, slice_axis=2).records[0].response
    none = select_patches([scan(voxels)], SIZE, slice_axis=2, head_share=1.0, foreground=0.01)
    assert places(none.records, "smooth")[0][1:] == (0, 0), "all of it is foreground, and air has no detail"


def test_slice_axis_of_meta_data_of_the_argument_and_found():
    voxels = noise((12, 13, 11))
    thick = MetaTensor(torch.from_numpy(voxels)[None], affine=torch.diag(torch.tensor([1.0, 4.0, 1.0, 1.0])))
    assert select_patches([{"image": thick}], SIZE).records[0].slice_axis == 1
    assert select_patches([{"image": thick}], SIZE, slice_axis=0).records[0].slice_axis == 0
    assert select_patches([scan(voxels, slice_axis=0)], SIZE, slice_axis=2).records[0].slice_axis == 0
    assert select_patches([{"image": torch.from_numpy(voxels)[None]}], SIZE).records[0].slice_axis == 2


def test_scans_in_order_and_those_without_patches_left_out(caplog):
    dark, small = np.full((9, 9, 9), 0.01, np.float32), noise((9, 5, 9))
    items = [scan(noise(seed=1), "a"), scan(dark, "b"), scan(noise((8, 9, 9), seed=2), "c"), scan(small, "d")]
    with caplog.at_level(logging.WARNING):
        got = select_patches(items, SIZE, per_scan=2, slice_axis=2)
    assert [(r.kind, r.file) for r in got.records] == [(k, f) for k in ("sharp", "smooth") for f in ("a", "a", "c")]
    assert len(got.sharp) == len(got.smooth) == 3
    assert [record.getMessage() for record in caplog.records] == [
        f"{file}: expected 2 sharp and smooth patches in the head, got {count}"
        for file, count in (("b", 0), ("c", 1), ("d", 0))
    ]
    with pytest.raises(ScanError, match="expected a patch of 6 x 6 voxels in the head of a scan, got none in 2 scans"):
        select_patches([items[1], items[3]], SIZE)


def test_the_same_again_and_the_scan_untouched():
    item = scan(noise())
    before = item["image"].clone()
    one, two = (select_patches([item], SIZE, per_scan=3) for _ in range(2))
    assert one.records == two.records
    assert torch.equal(one.sharp, two.sharp) and torch.equal(one.smooth, two.smooth)
    one.sharp.zero_()
    assert torch.equal(item["image"], before)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"size": 3}, "size must be >= 4, got 3"),
        ({"per_scan": 0}, "per_scan must be >= 1, got 0"),
        ({"stride": 0}, "stride must be >= 1, got 0"),
        ({"slice_gap": 0}, "slice_gap must be >= 1, got 0"),
        ({"head_share": 1.1}, r"head_share must be in \[0, 1\], got 1.1"),
        ({"slice_axis": -1}, "slice_axis must be 0, 1, 2 or None, got -1"),
    ],
)
def test_bad_arguments(options, match):
    with pytest.raises(ValueError, match=match):
        select_patches([scan(noise())], **{"size": SIZE, **options})


def test_another_shape():
    with pytest.raises(ValueError, match=r"a\.nii\.gz: expected a scan \(1, X, Y, Z\), got the shape \(1, 9, 9\)"):
        select_patches([scan(np.ones((9, 9)))], SIZE)


def test_from_json_into_the_loss():
    config = ConfigParser(
        {
            "scans": {"_target_": "CacheDataset", "data": [scan(noise()), scan(noise(seed=1))], "progress": False},
            "patches": {"_target_": "custom_components.sharp_patches.select_patches", "scans": "@scans", "size": SIZE},
            "sharpness": {"_target_": "custom_components.losses.LearnableSharpness"},
            "loss": {
                "_target_": "custom_components.losses.SharpnessFilterLoss",
                "sharpness": "@sharpness",
                "patches": "@patches",
            },
        }
    )
    loss = config.get_parsed_content("loss")
    assert isinstance(loss, SharpnessFilterLoss)
    x = torch.rand(2, 1, 9, 9)
    assert loss(x, x) < 0, "the filters begin as Laplacians, to which sharp patches respond more"


def rows_of(folder):
    with open(folder / "patches.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_table_and_picture(tmp_path):
    bright = np.full((9, 9, 2), 0.6, np.float32)
    bright[:, :, 0] = 0.25
    bright[::2, :, 0] = 0.75
    got = select_patches([scan(bright, f"in/{name}.nii.gz") for name in "abc"], 8, slice_axis=2)
    write_patches(got, tmp_path / "new")
    assert [(r["kind"], r["file"], int(r["slice"])) for r in rows_of(tmp_path / "new")] == [
        (kind, f"in/{name}.nii.gz", k) for kind, k in (("sharp", 0), ("smooth", 1)) for name in "abc"
    ]
    # lines of 0.75 and 0.25: each voxel differs by 0.5 from two neighbours, so 36 voxels of 1
    assert [float(r["response"]) for r in rows_of(tmp_path / "new")] == pytest.approx([36] * 3 + [0] * 3, abs=1e-9)
    grey = np.round(np.asarray(imread(tmp_path / "new/patches.png")).squeeze() * 255).astype(int)
    grey = grey if grey.ndim == 2 else grey[..., 0]
    upper, lower = grey[: len(grey) // 2], grey[len(grey) // 2 :]
    for value, here, there in ((round(0.75 * 255), upper, lower), (round(0.6 * 255), lower, upper)):
        assert (np.abs(here - value) <= 1).sum() > 1000 > 10 * (np.abs(there - value) <= 1).sum()
    many = select_patches([scan(bright, str(n)) for n in range(40)], 8, slice_axis=2)
    write_patches(many, tmp_path)
    assert imread(tmp_path / "patches.png").shape[1] < 2000


def test_command(tmp_path, write_nifti, capsys):
    for k in range(3):
        write_nifti(f"in/s{k}.nii.gz", (1000 * noise((20, 18, 7), seed=k)).astype(np.int16), np.diag([1, 1, 3, 1]))
    main(
        ["--dataset_dir", str(tmp_path / "in"), "--output_dir", str(tmp_path / "out"), "--size", "8", "--per_scan", "2"]
    )
    rows = rows_of(tmp_path / "out")
    assert len(rows) == 8, "two scans for training of three: two patches of two kinds of each"
    assert {r["slice_axis"] for r in rows} == {"2"}
    assert "4 sharp and 4 smooth patches" in capsys.readouterr().out
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"patches.csv", "patches.png"}
    given = ["--dataset_dir", str(tmp_path / "in"), "--output_dir", str(tmp_path / "one"), "--size", "8", "--seed", "3"]
    main([*given, "--max_subjects", "1", "--where", "{'population': 'adult'}"])
    (wanted,) = training_scans(tmp_path / "in", "training", 3, max_subjects=1)
    assert {row["file"] for row in rows_of(tmp_path / "one")} == {wanted["image"]}


@pytest.mark.slow
def test_one_line_errors_of_the_command(tmp_path):
    for name in ("a.nii", "b.nii"):
        (tmp_path / name).write_bytes(b"x")
    command = [sys.executable, "-m", "custom_components.sharp_patches", "--dataset_dir", str(tmp_path)]
    result = subprocess.run(
        [*command, "--output_dir", str(tmp_path / "out"), "--size", "2"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stderr) == (1, "error: size must be >= 4, got 2\n")
    assert not (tmp_path / "out").exists()
