from __future__ import annotations

import itertools
import math

import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose

from custom_components.transforms import RandHRPatchd
from custom_components.transforms.patch import RandHRPatch, inner_patch, per_network_axis


def indexed(*shape):
    """A scan whose voxels tell their place: the index per axis in base 100."""
    axes = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in shape), indexing="ij")
    return sum(100.0**i * a for i, a in enumerate(reversed(axes)))[None]


def cutter(*args, seed=0, **kwargs):
    return RandHRPatch(*args, **kwargs).set_random_state(seed)


@pytest.mark.parametrize(("shape", "size"), [((9, 8, 7), 4), ((9, 8, 7), (2, 8, 3)), ((12, 10), 5)])
def test_a_patch_is_a_block_of_the_scan(shape, size):
    scan, cut = indexed(*shape), cutter(size)
    sizes = (size,) * len(shape) if isinstance(size, int) else size
    for _ in range(20):
        patch = cut(scan)
        start = [int(patch.flatten()[0] // 100**i % 100) for i in reversed(range(len(shape)))]
        block = scan[(slice(None), *(slice(s, s + n) for s, n in zip(start, sizes, strict=True)))]
        assert torch.equal(patch, block)


def test_each_place_comes_and_none_beyond():
    scan, cut = indexed(5, 4, 3), cutter((3, 3, 3))
    assert {cut(scan)[0, 0, 0, 0].item() for _ in range(200)} == {
        100.0**2 * i + 100 * j for i in range(3) for j in (0, 1)
    }


def test_a_small_scan_is_continued_by_its_edge():
    scan = indexed(5, 2, 3)
    patch = cutter(5)(scan)
    assert patch.shape == (1, 5, 5, 5)
    second, third = [0, 0, 1, 1, 1], [0, 0, 1, 2, 2]
    assert torch.equal(patch, scan[:, :, second][:, :, :, third])


def test_the_result_is_a_plain_tensor_of_its_own():
    scan = MetaTensor(torch.rand(1, 6, 6, 6))
    before = scan.clone()
    patch = cutter(6)(scan)
    assert type(patch) is torch.Tensor
    patch += 1
    assert torch.equal(scan, before)


def test_coarser_voxels_are_of_the_drawn_size():
    """On a ramp a voxel of factor times the size has factor times the slope, and the patch keeps its shape."""
    ramp = torch.arange(60, dtype=torch.float32)[None, :, None, None].expand(1, 60, 30, 30)
    cut = cutter((16, 8, 8), coarsen=1.5, prob=1.0)
    factors = []
    for _ in range(20):
        patch = cut(ramp)
        assert patch.shape == (1, 16, 8, 8)
        slope = patch[0, 5:11].diff(dim=0)
        torch.testing.assert_close(slope, torch.full_like(slope, cut.factor), rtol=1e-3, atol=0)
        first = cut.start[0] + 7.5 * cut.factor - 0.5  # centre of voxel 7 in voxels of the scan
        assert patch[0, 7, 0, 0].item() == pytest.approx(first, abs=1e-3)
        factors.append(cut.factor)
    assert 1 <= min(factors) < 1.1 and 1.4 < max(factors) <= 1.5


def test_a_constant_stays_constant_when_coarsened():
    patch = cutter(9, coarsen=2.0, prob=1.0)(torch.full((1, 12, 30, 30), 0.7))
    torch.testing.assert_close(patch, torch.full((1, 9, 9, 9), 0.7))


def test_probability_of_coarser_patches():
    cut = cutter(4, coarsen=2.0, prob=0.3)
    scan = torch.zeros(1, 10, 10, 10)
    coarser = sum(cut(scan) is not None and cut.factor > 1 for _ in range(400))
    assert 90 < coarser < 150


def test_random_state_of_the_dictionary_version():
    scan = torch.rand(1, 20, 20, 20)
    chain = Compose([RandHRPatchd("image", 6, coarsen=1.5)]).set_random_state(3)
    first = [chain({"image": scan, "stem": "a"}) for _ in range(3)]
    chain.set_random_state(3)
    again = [chain({"image": scan, "stem": "a"}) for _ in range(3)]
    assert all(torch.equal(a["image"], b["image"]) and b["stem"] == "a" for a, b in zip(first, again, strict=True))
    array = cutter(6, coarsen=1.5, seed=4)
    other = RandHRPatchd("image", 6, coarsen=1.5).set_random_state(4)
    assert torch.equal(array(scan), other({"image": scan})["image"])


@pytest.mark.parametrize(("size", "margin"), [((3, 4, 2), 2), (2, 3)])
def test_a_margin_makes_the_patch_larger(size, margin):
    sizes = [n + 2 * margin for n in ((size,) * 3 if isinstance(size, int) else size)]
    scan = torch.rand(1, 12, 13, 14)
    with_margin, larger = cutter(size, margin=margin), cutter(sizes)
    for _ in range(3):
        patch = with_margin(scan)
        assert list(patch.shape[1:]) == sizes
        assert torch.equal(patch, larger(scan))


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"coarsen": 0.5}, r"coarsen must be >= 1, got 0\.5"),
        ({"spatial_dims": 2, "share": 0.0}, r"share must be in \(0, 1\], got 0\.0"),
        ({"spatial_dims": 2, "share": 1.5}, r"share must be in \(0, 1\], got 1\.5"),
        ({"share": 0.5}, "any_orientation and share are for spatial_dims 2, got 3"),
        ({"any_orientation": True}, "any_orientation and share are for spatial_dims 2, got 3"),
        ({"spatial_dims": 1}, "spatial_dims must be 2 or 3, got 1"),
        ({"least_std": -0.1}, r"least_std must be >= 0, got -0\.1"),
        ({"least_std": math.nan}, "least_std must be >= 0, got nan"),
    ],
)
def test_bad_arguments(kwargs, match):
    for make in (lambda **kw: RandHRPatch(8, **kw), lambda **kw: RandHRPatchd("image", 8, **kw)):
        with pytest.raises(ValueError, match=match):
            make(**kwargs)


class TestLeastStd:
    @staticmethod
    def half_air(n=40):
        """Noise of standard deviation 0.29 in the last half of the first axis, none in the other."""
        scan = torch.rand(1, n, 20, 20, generator=torch.Generator().manual_seed(0))
        scan[:, : n // 2] = 0
        return scan

    @staticmethod
    def starts(cut, monkeypatch):
        """List to which each drawn place is added."""
        starts, draw = [], cut._draw

        def recorded(data):
            draw(data)
            starts.append(cut.start)

        monkeypatch.setattr(cut, "_draw", recorded)
        return starts

    def test_air_comes_less_often(self):
        """Of 31 places 11 are all air: one in 2.8, and with three more draws one in 2.8^4 = 63."""
        scan = self.half_air()
        air = {
            least: sum(not cut(scan).any() for _ in range(300))
            for least in (0.0, 0.02)
            for cut in [cutter(10, least_std=least)]
        }
        assert 80 < air[0.0] < 135
        assert 0 < air[0.02] < 15

    def test_the_place_is_drawn_three_times_more_at_most(self, monkeypatch):
        cut, air = cutter(6, least_std=0.1), torch.zeros(1, 12, 12, 12)
        starts = self.starts(cut, monkeypatch)
        assert cut(air).shape == (1, 6, 6, 6)
        assert len(starts) == 4 and len({tuple(s) for s in starts}) > 1
        cut(torch.rand(1, 12, 12, 12))
        assert len(starts) == 5

    def test_compared_with_the_spread_of_the_patch(self, monkeypatch):
        """A scan of 0 and 1 in half of the planes has the standard deviation 1/2 at each place, also for the sparse voxels."""
        scan = (torch.arange(32) // 4 % 2).float()[None, :, None, None].expand(1, 32, 16, 16)
        for least, draws in ((0.499, 1), (0.501, 4)):
            cut = cutter(16, least_std=least)
            starts = self.starts(cut, monkeypatch)
            cut(scan)
            assert len(starts) == draws

    def test_one_that_has_enough_is_the_one_without(self):
        scan = torch.rand(1, 20, 21, 22)
        first, second = cutter(6, least_std=0.1, coarsen=1.5, margin=1), cutter(6, coarsen=1.5, margin=1)
        assert all(torch.equal(first(scan), second(scan)) for _ in range(5))

    @pytest.mark.parametrize(("shape", "dims"), [((9, 9, 3), 2), ((9, 9), 3), ((2, 2, 2), 3)])
    def test_slices_planes_and_few_voxels(self, shape, dims):
        cut = cutter(3, spatial_dims=dims, least_std=0.1)
        assert cut(torch.rand(1, *shape)).shape[1:3] == (3, 3)

    def test_dictionary_version(self):
        scan = self.half_air()
        single = RandHRPatch(10, least_std=0.02).set_random_state(5)
        both = RandHRPatchd("image", 10, least_std=0.02).set_random_state(5)
        assert all(torch.equal(single(scan), both({"image": scan})["image"]) for _ in range(20))


class TestPerNetworkAxis:
    @pytest.mark.parametrize(
        ("size", "spatial_dims", "dims", "expected"),
        [
            (5, 3, 3, (5, 5, 5)),
            ([4, 5, 6], 3, 3, (4, 5, 6)),
            (5, 2, 3, (5, 5, 1)),
            ((4, 5), 2, 3, (4, 5, 1)),
            (5, 3, 2, (5, 5)),
        ],
    )
    def test_values(self, size, spatial_dims, dims, expected):
        assert per_network_axis(size, spatial_dims, dims) == expected

    @pytest.mark.parametrize(("size", "spatial_dims", "axes"), [((4, 5), 3, 3), ((4, 5, 1), 2, 2), ((), 2, 2)])
    def test_errors(self, size, spatial_dims, axes):
        with pytest.raises(ValueError, match=f"one number or {axes} numbers, got"):
            per_network_axis(size, spatial_dims)


def sliced(shape, across, thickness=4.0):
    """An indexed scan with thick slices on one axis."""
    spacing = [thickness if axis == across else 1.0 for axis in range(3)]
    return MetaTensor(indexed(*shape), affine=torch.diag(torch.tensor([*spacing, 1.0])))


def place(patch, index=(0, 0, 0)):
    """Scan index per array axis of a voxel of a patch of an indexed scan."""
    value = float(patch[(0, *index)])
    return [int(value // 100**i % 100) for i in (2, 1, 0)]


class TestSlices:
    @pytest.mark.parametrize("across", [0, 1, 2])
    @pytest.mark.parametrize(("size", "margin"), [(4, 0), ((3, 5), 0), (3, 2)])
    def test_a_block_of_the_scan_with_the_slices_last(self, across, size, margin):
        scan, cut = sliced((11, 12, 13), across), cutter(size, margin=margin, spatial_dims=2)
        order = [0, *(axis + 1 for axis in range(3) if axis != across), across + 1]
        plane = [n + 2 * margin for n in ((size, size) if isinstance(size, int) else size)]
        seen = set()
        for _ in range(40):
            patch = cut(scan)
            assert patch.shape == (1, *plane, 1 + 2 * margin)
            assert type(patch) is torch.Tensor
            first, centre = place(patch), place(patch, (0, 0, margin))
            rows, columns = (first[axis - 1] for axis in order[1:3])
            middle = centre[across]
            slices = [min(max(middle + i, 0), scan.shape[across + 1] - 1) for i in range(-margin, margin + 1)]
            stack = scan.as_tensor().permute(order)[:, rows : rows + plane[0], columns : columns + plane[1]]
            assert torch.equal(patch, stack[..., slices])
            seen.add(middle)
        assert len(seen) > 5

    @pytest.mark.parametrize("margin", [0, 3])
    def test_each_slice_comes(self, margin):
        """Those at the ends too, though their margin lies outside."""
        scan, cut = sliced((10, 7, 10), 1), cutter(2, margin=margin, spatial_dims=2)
        assert {place(cut(scan), (0, 0, margin))[1] for _ in range(150)} == set(range(7))

    def test_the_scan_s_own_orientation_or_all(self):
        def orientations(**kwargs):
            cut = cutter((2, 3), spatial_dims=2, **kwargs)
            found = set()
            for _ in range(60):
                patch = cut(scan)
                a, b = place(patch), place(patch, (1, 2, 0))
                steps = [q - p for p, q in zip(a, b, strict=True)]  # 1 along rows, 2 along columns
                found.add((steps.index(1), steps.index(2), steps.index(0)))
            return found

        scan = sliced((9, 9, 9), 0)
        assert orientations() == {(1, 2, 0)}
        assert orientations(any_orientation=True) == {(1, 2, 0), (0, 2, 1), (0, 1, 2)}

    def test_axial_slices_of_an_isotropic_scan(self, oblique):
        """The array axes are those of the world in the order 2, 0, 1: head-foot comes first."""
        scan = MetaTensor(indexed(8, 8, 8), affine=torch.from_numpy(oblique((1, 1, 1), axes=(2, 0, 1))))
        patch = cutter((2, 2), spatial_dims=2)(scan)
        assert place(patch)[0] == place(patch, (1, 1, 0))[0]

    @pytest.mark.parametrize(
        ("share", "expected"),
        [(0.25, {2, 6, 10, 14, 18}), (0.5, set(range(1, 20, 2))), (0.01, {10}), (1.0, set(range(20)))],
    )
    @pytest.mark.parametrize("margin", [0, 4])
    def test_share_of_the_slices_spread_evenly(self, share, expected, margin):
        scan, cut = sliced((12, 12, 20), 2), cutter(2, margin=margin, spatial_dims=2, share=share)
        assert {place(cut(scan), (0, 0, margin))[2] for _ in range(200)} == expected

    def test_a_small_scan_is_continued_by_its_edge(self):
        scan = sliced((5, 2, 3), 2)
        patch = cutter(4, spatial_dims=2, margin=1)(scan)
        middle = place(patch, (0, 0, 1))[2]
        rows, columns = [0, 1, 2, 3, 4, 4], [0, 0, 0, 1, 1, 1]
        expected = scan.as_tensor()[:, rows][:, :, columns][..., [max(middle - 1, 0), middle, min(middle + 1, 2)]]
        assert patch.shape == (1, 6, 6, 3)
        assert torch.equal(patch, expected)

    def test_a_single_slice(self):
        scan = MetaTensor(indexed(1, 9, 9), affine=torch.eye(4))
        patch = cutter(4, spatial_dims=2, margin=2)(scan)
        assert patch.shape == (1, 8, 8, 5)
        assert torch.equal(patch, patch[..., :1].expand_as(patch))

    def test_coarser_voxels_across_too(self):
        """On a ramp across the slices the step between slices is the drawn factor, and the inner slice lies at the drawn one."""
        ramp = torch.arange(60, dtype=torch.float64)[None, None, None].expand(1, 30, 30, 60)
        cut = cutter(6, margin=3, spatial_dims=2, coarsen=2.0, prob=1.0, share=0.01)  # one slice only: 30
        for _ in range(20):
            patch = cut(ramp)
            assert patch.shape == (1, 12, 12, 7)
            steps = patch[0, 6, 6, 1:-1].diff()
            torch.testing.assert_close(steps, torch.full_like(steps, cut.factor), rtol=0.02, atol=0)
            assert abs(float(patch[0, 6, 6, 3]) - 30) <= 0.51

    @pytest.mark.parametrize("any_orientation", [False, True])
    def test_three_axes_are_needed(self, any_orientation):
        with pytest.raises(ValueError, match=r"expected a scan of 3 axes for slices, got the shape \(9, 9\)"):
            cutter(4, spatial_dims=2, any_orientation=any_orientation)(torch.rand(1, 9, 9))


SLICES = {"size": 4, "coarsen": 1.5, "margin": 1, "spatial_dims": 2, "any_orientation": True, "share": 0.5}


class TestDictionary:
    @pytest.mark.parametrize("kwargs", [{"size": 5, "coarsen": 1.5}, SLICES], ids=["volume", "slices"])
    def test_two_scans_are_cut_at_one_place(self, kwargs):
        scan = torch.rand(1, 12, 13, 14)
        both = RandHRPatchd(["image", "target"], **kwargs).set_random_state(0)
        alone = RandHRPatchd("image", **kwargs).set_random_state(0)
        for _ in range(5):
            item = both({"image": scan, "target": 2 * scan, "other": scan})
            torch.testing.assert_close(item["target"], 2 * item["image"])
            assert torch.equal(item["image"], alone({"image": scan})["image"])
            assert item["other"] is scan

    def test_the_first_key_tells_the_orientation(self):
        item = {"image": sliced((9, 9, 9), 0), "target": sliced((9, 9, 9), 1)}
        result = RandHRPatchd(["image", "target"], 4, spatial_dims=2).set_random_state(0)(item)
        assert torch.equal(result["image"], result["target"])
        assert place(result["target"])[0] == place(result["target"], (1, 1, 0))[0]

    @pytest.mark.parametrize("kwargs", [SLICES, {**SLICES, "share": 1.0, "coarsen": 1.0}])
    def test_random_state(self, kwargs):
        scan = torch.rand(1, 12, 13, 14)
        runs = []
        for seed in (3, 3, 4):
            chain = Compose([RandHRPatchd("image", **kwargs)]).set_random_state(seed)
            runs.append([chain({"image": scan})["image"] for _ in range(4)])
        array = RandHRPatch(**kwargs).set_random_state(7)
        single = RandHRPatchd("image", **kwargs).set_random_state(7)
        assert all(torch.equal(a, b) for a, b in zip(runs[0], runs[1], strict=True))
        assert not all(torch.equal(a, b) for a, b in zip(runs[0], runs[2], strict=True))
        assert not any(torch.equal(a, b) for a, b in itertools.combinations(runs[0], 2))
        assert torch.equal(array(scan), single({"image": scan})["image"])

    @pytest.mark.parametrize("coarsen", [1.0, 2.0])
    def test_spacing_of_a_volume(self, oblique, coarsen):
        """That of the scan, 0.9 x 1.1 x 3.3 mm, times the drawn factor."""
        scan = MetaTensor(torch.rand(1, 30, 31, 32), affine=torch.from_numpy(oblique((0.9, 1.1, 3.3))))
        cut = RandHRPatchd("image", 8, coarsen=coarsen, prob=1.0).set_random_state(0)
        for _ in range(3):
            spacing = cut({"image": scan})["spacing"]
            expected = torch.tensor([0.9, 1.1, 3.3], dtype=torch.float64) * cut.patch.factor
            torch.testing.assert_close(spacing, expected, rtol=1e-6, atol=0)
            assert (cut.patch.factor > 1) == (coarsen > 1)

    def test_spacing_of_slices_is_in_the_order_of_the_patch(self, oblique):
        scan = MetaTensor(torch.rand(1, 12, 13, 14), affine=torch.from_numpy(oblique((4.0, 0.8, 1.0))))
        item = RandHRPatchd("image", 4, spatial_dims=2).set_random_state(0)({"image": scan})
        torch.testing.assert_close(
            item["spacing"], torch.tensor([0.8, 1.0, 4.0], dtype=torch.float64), rtol=1e-6, atol=0
        )

    def test_spacing_is_that_of_the_first_key_and_of_none_without_an_affine(self):
        image, target = (
            MetaTensor(torch.rand(1, 9, 9, 9), affine=torch.diag(torch.tensor([s, s, s, 1]))) for s in (2, 3)
        )
        cut = RandHRPatchd(["image", "target"], 4)
        assert cut({"image": image, "target": target})["spacing"].tolist() == [2, 2, 2]
        assert "spacing" not in cut({"image": image.as_tensor(), "target": target})

    def test_unlike_shapes(self):
        item = {"image": torch.rand(1, 9, 9, 9), "target": torch.rand(1, 9, 9, 8)}
        with pytest.raises(ValueError, match=r"one grid, got the shapes \[\(9, 9, 9\), \(9, 9, 8\)\]"):
            RandHRPatchd(["image", "target"], 4)(item)

    def test_missing_keys(self):
        item = {"target": torch.rand(1, 9, 9, 9)}
        assert RandHRPatchd(["image", "target"], 4, allow_missing_keys=True)(item)["target"].shape == (1, 4, 4, 4)
        assert RandHRPatchd("image", 4, allow_missing_keys=True)(item) == item
        with pytest.raises(KeyError):
            RandHRPatchd("image", 4)(item)


class TestInnerPatch:
    @pytest.mark.parametrize(("patch", "margin"), [((40, 40, 1), 0), ((46, 46, 7), 3), ((46, 44, 1), (3, 2, 0))])
    def test_slices(self, patch, margin):
        x = torch.rand(1, *patch)
        inner = inner_patch(x, margin, 2)
        m = (margin,) * 3 if isinstance(margin, int) else margin
        assert torch.equal(inner, x[:, m[0] : m[0] + 40, m[1] : m[1] + 40, m[2]])

    @pytest.mark.parametrize("margin", [4, (1, 1), (4, 0, 0), -1])
    def test_a_margin_that_does_not_fit(self, margin):
        with pytest.raises(
            ValueError, match=r"expected a patch of more than twice the margin .*, got \[8, 8, 8\] voxels"
        ):
            inner_patch(torch.rand(1, 8, 8, 8), margin)

    def test_a_patch_that_is_no_slice(self):
        with pytest.raises(ValueError, match=r"expected a patch of one slice with margin 2, got \[8, 8, 8\] voxels"):
            inner_patch(torch.rand(1, 8, 8, 8), 2, 2)
