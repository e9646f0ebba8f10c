from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose
from scipy.ndimage import gaussian_filter, map_coordinates, uniform_filter

from custom_components.errors import ScanError
from custom_components.transforms import CheckPair, CheckPaird, LoadScan, LoadScand, RandHRPatchd, TakePaird
from custom_components.transforms.registration import (
    covered_share,
    dice,
    head_mask,
    local_mean,
    registration_gain,
    same_grid,
)

DATA = Path(__file__).parents[3] / "shared" / "data" / "adult_multimodal"


def anatomy(seed):
    """A head of 2 mm voxels, ellipsoid in air, with an inside of its own: a function of points in mm and two contrasts."""
    inside = gaussian_filter(np.random.default_rng(seed).normal(size=(52, 48, 44)), 1.2)
    inside = inside / inside.std()

    def at(points, contrast="a"):
        voxels = points / 2.0
        value = map_coordinates(inside, voxels, order=3, mode="nearest")
        value = {"a": 4 + value, "b": 5 - 0.8 * value + 0.3 * value**2}[contrast]
        centre = np.array([25.5, 23.5, 21.5]).reshape(3, *[1] * (points.ndim - 1))
        radius = np.sqrt((((voxels - centre) / np.reshape([22, 20, 18], centre.shape)) ** 2).sum(0))
        return value * np.clip((1 - radius) / 0.1, 0, 1)

    return at


def scan_of(head, affine, shape, contrast="a", moved=(0, 0, 0), name="x.nii"):
    """Sample a head on a grid; `moved` moves it in mm while the affine says nothing of it."""
    index = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"))
    points = np.einsum("ij,jxyz->ixyz", affine[:3, :3], index) + affine[:3, 3].reshape(3, 1, 1, 1)
    voxels = head(points - np.reshape(moved, (3, 1, 1, 1)), contrast)
    noise = 0.05 * np.random.default_rng(len(name)).normal(size=(2, *shape))
    voxels = np.hypot(voxels + noise[0], noise[1]).astype(np.float32)
    return MetaTensor(
        torch.from_numpy(voxels[None]), meta={"affine": torch.from_numpy(affine), "filename_or_obj": name}
    )


PLAIN = np.diag([2.0, 2, 2, 1])
SHAPE = (52, 48, 44)


@pytest.fixture(scope="module")
def head():
    return anatomy(0)


@pytest.fixture(scope="module")
def target(head):
    return scan_of(head, PLAIN, SHAPE, "b", name="high.nii")


def other_grid(oblique):
    """A rotated, permuted and flipped grid of other voxels whose middle is the middle of the head."""
    affine = oblique((2.4, 2.2, 2.7), angles=(0.15, -0.1, 0.2), axes=(2, 0, 1), flips=(1, -1, 1))
    shape = (48, 58, 42)
    affine[:3, 3] = np.array([51, 47, 43]) - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return affine, shape


class TestCheckPair:
    def test_one_grid_is_left_alone(self, head, target):
        source = scan_of(head, PLAIN, SHAPE, name="low.nii")
        x, y = CheckPair()(source, target)
        assert x is source
        assert y is target

    def test_another_grid_is_brought_onto_the_targets(self, head, target, oblique):
        """Against the head itself, sampled on the target's grid."""
        source = scan_of(head, *other_grid(oblique), name="low.nii")
        before = source.clone()
        x, y = CheckPair()(source, target)
        assert y is target
        assert x.shape == target.shape
        assert x.dtype == torch.float32
        assert torch.equal(x.affine, target.affine)
        assert x.meta["filename_or_obj"] == "low.nii"
        truth = scan_of(head, PLAIN, SHAPE).as_tensor()
        inner = (0, *(slice(6, n - 6) for n in SHAPE))
        error = (x.as_tensor() - truth)[inner].square().mean().sqrt()
        assert float(error) < 0.15 * float(truth[inner].std())
        assert torch.equal(source, before)
        assert torch.equal(source.affine, before.affine)

    def test_edge_voxels_are_continued(self, head, target):
        """A field of view that is one slice short on one side: those slices are copies of the last, not zeros."""
        source = scan_of(head, PLAIN, SHAPE)
        short = MetaTensor(source.as_tensor()[..., :-1] + 1, meta=dict(source.meta))
        x, _ = CheckPair()(short, target)
        assert x.shape == target.shape
        torch.testing.assert_close(x.as_tensor()[..., -1], short.as_tensor()[..., -1], rtol=0, atol=1e-4)

    @pytest.mark.parametrize("mm", [5, 10])
    @pytest.mark.parametrize("axis", [0, 1, 2])
    def test_a_head_that_was_moved_by_a_little(self, head, target, axis, mm):
        """The outlines still agree."""
        moved = np.eye(3)[axis] * mm
        source = scan_of(head, PLAIN, SHAPE, moved=moved, name="low.nii")
        with pytest.raises(
            ScanError, match=r"\(similarity over that when 5 mm off >= 2\), got [01]\.\d+: low.nii and high.nii"
        ):
            CheckPair()(source, target)
        affine = PLAIN.copy()
        affine[:3, 3] = moved  # the affine says that it was moved: no fault
        CheckPair(min_overlap=0.8)(scan_of(head, affine, SHAPE), target)

    def test_a_head_that_was_moved_by_much(self, head, target):
        source = scan_of(head, PLAIN, SHAPE, moved=(40, 0, 0), name="low.nii")
        expected = (
            r"^expected a pair registered to each other \(Dice of the heads >= 0.7\), got 0\.\d+: low.nii and high.nii$"
        )
        with pytest.raises(ScanError, match=expected):
            CheckPair()(source, target)

    def test_a_head_that_was_turned(self, head, target):
        affine, c = PLAIN.copy(), np.cos(0.2)
        turn = np.array([[c, -np.sin(0.2), 0], [np.sin(0.2), c, 0], [0, 0, 1]])
        affine[:3, :3] = turn * 2
        affine[:3, 3] = np.array([51, 47, 43]) - affine[:3, :3] @ [25.5, 23.5, 21.5]
        turned = scan_of(head, affine, SHAPE, name="low.nii")
        CheckPair()(turned, target)
        turned.affine = torch.from_numpy(PLAIN)  # a registration that was lost from the header
        with pytest.raises(ScanError, match="similarity over that when 5 mm off"):
            CheckPair()(turned, target)

    def test_another_head_of_the_same_outline(self, target):
        other = scan_of(anatomy(1), PLAIN, SHAPE, name="low.nii")
        assert dice(*(head_mask(x.as_tensor()[0], (2.0, 2.0, 2.0)) for x in (other, target))) > 0.95
        with pytest.raises(ScanError, match="similarity over that when 5 mm off"):
            CheckPair()(other, target)
        CheckPair(min_gain=0)(other, target)

    def test_a_field_of_view_beside_the_target(self, head, target):
        affine = PLAIN.copy()
        affine[0, 3] = 30.0
        source = scan_of(head, affine, SHAPE, name="low.nii")
        with pytest.raises(ScanError, match=r"field of view that is covered >= 0.9\), got 0.712: low.nii and high.nii"):
            CheckPair()(source, target)
        CheckPair(min_overlap=0.7, min_dice=0.5)(source, target)

    def test_single_slices(self, head, target):
        source = scan_of(head, PLAIN, SHAPE)
        one, two = (MetaTensor(x.as_tensor()[..., 20:21], meta=dict(x.meta)) for x in (source, target))
        CheckPair()(one, two)
        turned = MetaTensor(one.as_tensor().flip(1), meta=dict(one.meta))
        with pytest.raises(ScanError, match="similarity"):
            CheckPair()(turned, two)

    @pytest.mark.parametrize(
        ("kwargs", "match"),
        [
            ({"min_overlap": 1.5}, "min_overlap and min_dice must be from 0 to 1, got 1.5 and 0.7"),
            ({"min_dice": -1}, "min_overlap and min_dice must be from 0 to 1, got 0.9 and -1"),
            ({"min_gain": -1}, "expected min_gain >= 0 and shift > 0, got -1 and 5"),
            ({"shift": 0}, "expected min_gain >= 0 and shift > 0, got 2.0 and 0"),
        ],
    )
    def test_errors(self, kwargs, match):
        with pytest.raises(ValueError, match=match):
            CheckPair(**kwargs)

    def test_dictionary_version_on_files(self, head, target, tmp_path, oblique):
        affine, shape = other_grid(oblique)
        paths = []
        for name, scan in (("low.nii.gz", scan_of(head, affine, shape)), ("high.nii.gz", target)):
            paths.append(tmp_path / name)
            nib.save(nib.Nifti1Image(scan.numpy()[0], scan.affine.numpy()), paths[-1])
        given = {"image": str(paths[0]), "target": str(paths[1]), "stem": "low"}
        load = Compose([LoadScand(["image", "target"]), CheckPaird()])
        item = load(given)
        x, _ = CheckPair()(LoadScan()(paths[0]), LoadScan()(paths[1]))
        torch.testing.assert_close(item["image"].as_tensor(), x.as_tensor())
        assert item["image"].shape == item["target"].shape
        assert item["stem"] == "low"
        with pytest.raises(ValueError, match="expected two keys, source and target, got"):
            CheckPaird("image")


class TestMeasures:
    def test_covered_share_counts_voxels(self, oblique):
        """Against each centre of the target, looked up one by one."""
        source = MetaTensor(torch.zeros(1, 9, 12, 10), affine=torch.from_numpy(oblique((3, 2, 2.5), origin=(0, 0, 0))))
        target = MetaTensor(
            torch.zeros(1, 11, 8, 9), affine=torch.from_numpy(oblique((2, 2, 2), (0.5, 0.1, 0), origin=(3, -8, 4)))
        )
        index = np.stack(np.meshgrid(*(np.arange(n) for n in (11, 8, 9)), indexing="ij")).reshape(3, -1)
        world = nib.affines.apply_affine(target.affine.numpy(), index.T)
        place = nib.affines.apply_affine(np.linalg.inv(source.affine.numpy()), world)
        inside = ((place >= -0.5) & (place <= np.array([9, 12, 10]) - 0.5)).all(1).mean()
        assert 0.05 < inside < 0.95
        assert covered_share(source, target) == pytest.approx(inside, abs=2e-3)
        assert covered_share(target, target) == 1

    def test_same_grid_is_within_a_hundredth_of_a_mm_at_each_corner(self):
        """Turned by 0.0995 mrad about the first voxel: a corner 100 mm off moves by 9.95 um, one 101 mm off by 10.05 um."""
        turn = np.array([[1, -9.95e-5, 0, 0], [9.95e-5, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
        for n, same in ((101, True), (102, False)):
            here = MetaTensor(torch.zeros(1, n, 2, 2), affine=torch.eye(4))
            there = MetaTensor(torch.zeros(1, n, 2, 2), affine=torch.from_numpy(turn))
            assert same_grid(here, there) == same_grid(there, here) == same
        assert not same_grid(here, MetaTensor(torch.zeros(1, 2, n, 2), affine=torch.eye(4)))

    def test_dice(self):
        a, b = torch.zeros(10, dtype=torch.bool), torch.zeros(10, dtype=torch.bool)
        assert dice(a, b) == 1
        a[:4], b[2:8] = True, True
        assert dice(a, b) == pytest.approx(2 * 2 / 10)

    @pytest.mark.parametrize("noise", [0.0, 0.05, 0.2])
    def test_head_mask(self, noise):
        """A cube of 1 in air, with noise of both channels up to a fifth of it; its outline is known to the reach of 2 mm."""
        x = torch.zeros(40, 40, 40)
        x[10:30, 10:30, 10:30] = 1
        g = torch.Generator().manual_seed(0)
        x = torch.hypot(x + noise * torch.randn(x.shape, generator=g), noise * torch.randn(x.shape, generator=g))
        mask = head_mask(x, (1.0, 1.0, 2.0))
        assert mask[10:30, 10:30, 10:30].float().mean() > 0.99
        mask[8:32, 8:32, 9:31] = False
        assert mask.float().mean() < 0.003

    def test_local_mean(self):
        x = torch.rand(9, 8, 7, dtype=torch.float64)
        mean = local_mean(x, (2, 1, 1)).numpy()
        inner = (slice(2, -2), slice(1, -1), slice(1, -1))
        np.testing.assert_allclose(mean[inner], uniform_filter(x.numpy(), (5, 3, 3))[inner], atol=1e-12)
        np.testing.assert_allclose(mean[0, 0, 0], x[:3, :2, :2].mean(), atol=1e-12)
        torch.testing.assert_close(local_mean(torch.full((5, 5, 1), 3.0), (2, 9, 2)), torch.full((5, 5, 1), 3.0))

    def test_gain_where_nothing_can_be_said(self):
        none = torch.zeros(8, 8, 8, dtype=torch.bool)
        assert registration_gain(torch.rand(8, 8, 8), torch.rand(8, 8, 8), (none, ~none), (1.0, 1.0, 1.0)) == 0
        flat = torch.ones(8, 8, 8)
        assert registration_gain(flat, flat, (~none, ~none), (1.0, 1.0, 1.0), 2.0) == 0


@pytest.mark.real_data
@pytest.mark.slow
def test_contrasts_of_one_head_and_of_two():
    if not DATA.is_dir():
        pytest.skip("the scans are not here")
    t1, t2 = (LoadScan()(DATA / f"ms-07_{contrast}.nii.gz") for contrast in ("T1w", "T2w"))
    CheckPair(min_gain=4)(t1, t2)
    for contrast in ("T1w", "T2w", "FLAIR"):
        with pytest.raises(ScanError, match=r"similarity .* got [01]\.\d"):
            CheckPair()(LoadScan()(DATA / f"ms-19_{contrast}.nii.gz"), t1)
    moved = MetaTensor(t2.as_tensor(), affine=t2.affine.clone())
    moved.affine[0, 3] += 3.0
    with pytest.raises(ScanError, match=r"similarity .* got 0\.\d"):
        CheckPair()(moved, t1)


class TestTakePair:
    def test_the_centre_of_both(self):
        image, target = torch.rand(1, 9, 9, 9), torch.rand(1, 9, 9, 9)
        given = {"image": image, "target": MetaTensor(target), "other": 1}
        item = TakePaird(margin=2)(given)
        assert torch.equal(item["image"], image[:, 2:7, 2:7, 2:7])
        assert torch.equal(item["target"], target[:, 2:7, 2:7, 2:7])
        assert type(item["image"]) is type(item["target"]) is torch.Tensor
        assert item["other"] == 1
        item["image"].zero_()
        assert image[:, 2:7, 2:7, 2:7].any()

    @pytest.mark.parametrize(("dims", "size"), [(3, (6, 6, 6)), (2, (6, 6))])
    def test_after_the_patch_transform(self, dims, size):
        """Both are cut at one place: where one scan is a function of the other, so are the patches."""
        scan = torch.rand(1, 20, 21, 22)
        item = {"image": MetaTensor(scan), "target": MetaTensor(scan**2)}
        keys = ["image", "target"]
        pipeline = Compose(
            [RandHRPatchd(keys, 6, margin=2, spatial_dims=dims), TakePaird(keys, 2, dims)]
        ).set_random_state(0)
        for _ in range(5):
            pair = pipeline(item)
            assert pair["image"].shape == (1, *size)
            torch.testing.assert_close(pair["image"] ** 2, pair["target"])
