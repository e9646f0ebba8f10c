import itertools

import numpy as np
import pytest
import torch
from monai.transforms import Compose
from scipy.ndimage import gaussian_filter

from custom_components.acquisition import PROTOCOLS, acquisition_operator, interpolation_operator
from custom_components.transforms import RandAcquire, RandAcquired
from custom_components.transforms.acquire import per_axis

FACTORS = [2, 3, 2.5, (2, 2, 3), (1, 1, 3.3)]


def smooth(shape, sigma=3.0, seed=0, dtype=np.float32):
    x = gaussian_filter(np.random.default_rng(seed).normal(size=shape), sigma)
    return torch.from_numpy(((x - x.min()) / (x.max() - x.min())).astype(dtype))[None]


def offsets_of(transform):
    """First LR centre per axis in the patch, in HR voxels."""
    return [o % f for o, f in zip(transform.offsets, transform.factors, strict=True)]


class TestRandAcquire:
    @pytest.mark.parametrize("factor", FACTORS, ids=str)
    @pytest.mark.parametrize("margin", [0, 4, 12])
    def test_truth_is_the_centre_of_the_patch(self, factor, margin):
        patch = smooth([11 + 2 * margin] * 3, 1.0)
        image, target = RandAcquire([factor], 11, margin=margin)(patch)
        inner = slice(margin, margin + 11)
        assert torch.equal(target, patch[:, inner, inner, inner])
        assert image.shape == (1, 11, 11, 11)
        assert image.dtype == torch.float32
        assert type(image) is type(target) is torch.Tensor
        target.zero_()
        assert patch.any()  # the target is a copy, not a view of the cached scan

    @pytest.mark.parametrize("kind", ["nearest", "linear", "cubic", "bspline"])
    @pytest.mark.parametrize("protocol", PROTOCOLS)
    def test_a_constant_patch_stays(self, protocol, kind):
        image, target = RandAcquire(FACTORS, 9, [protocol], kind=kind)(torch.full((1, 33, 33, 33), 0.6))
        torch.testing.assert_close(image, target, rtol=0, atol=1e-6)

    @pytest.mark.parametrize("factor", FACTORS, ids=str)
    @pytest.mark.parametrize("protocol", ["gaussian_spline", "bicubic", "slice_profile", "box"])
    def test_pair_is_aligned(self, protocol, factor):
        """Fit `image = target + shift . gradient + a laplacian` (blur is even); a wrong grid shifts by 0.25 or more."""
        patch = smooth([44] * 3, 3.0, dtype=np.float64)
        transform = RandAcquire([factor], 20, [protocol]).set_random_state(1)
        for _ in range(3):
            image, target = (v[0].numpy() for v in transform(patch))
            derivatives = np.gradient(target)
            second = [np.gradient(d, axis=a) for a, d in enumerate(derivatives)]
            inner = (slice(2, -2),) * 3
            terms = np.stack([t[inner].ravel() for t in (*derivatives, *second)], 1)
            shift = np.linalg.lstsq(terms, (image - target)[inner].ravel(), rcond=None)[0][:3]
            assert np.abs(shift).max() < 0.02

    @pytest.mark.parametrize("factor", [2, 3, 2.5, (2, 3), (1, 3.3), (4, 4)], ids=str)
    @pytest.mark.parametrize(("margin", "atol"), [(30, 1e-4), (12, 0.02)])
    @pytest.mark.parametrize("protocol", ["gaussian_spline", "slice_profile"])
    def test_patch_is_the_whole_volume_at_the_same_offset(self, monkeypatch, protocol, factor, margin, atol):
        """Where the LR grid of the patch is that of the scan, the pair is what acquiring the whole scan gives.

        The scan is white noise, the worst case: what is left is the tail of the spline beyond the margin, in LR voxels.
        """
        factors = per_axis(factor, 2)
        shape = [round(100 // f * f) for f in factors]
        low = [round(n / f) for n, f in zip(shape, factors, strict=True)]
        scan = torch.rand((1, *shape), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        whole = interpolation_operator(low, shape)(acquisition_operator(shape, low, protocol)(scan[None]))[0]
        start, size = 7, 9
        transform = RandAcquire([factor], size, [protocol], margin=margin)

        def grid_of_the_scan(_):
            transform.factors, transform.protocol, transform.std = factors, PROTOCOLS[protocol], 0.0
            transform.offsets = [((f - 1) / 2 - start) % f for f in factors]

        monkeypatch.setattr(transform, "randomize", grid_of_the_scan)
        box, inner = slice(start, start + size + 2 * margin), slice(start + margin, start + margin + size)
        image, _ = transform(scan[:, box, box])
        torch.testing.assert_close(image, whole[:, inner, inner], rtol=0, atol=atol)

    def test_same_seed_same_pairs(self):
        patch = smooth([29] * 3, 1.0)
        arguments = {"scale_factors": FACTORS, "patch_size": 5, "noise_std": (0.01, 0.1), "noise_prob": 0.5}
        runs = [
            [t(patch)[0] for _ in range(4)]
            for t in (RandAcquire(**arguments).set_random_state(seed) for seed in (1, 1, 2))
        ]
        assert all(torch.equal(a, b) for a, b in zip(runs[0], runs[1], strict=True))
        assert not any(torch.equal(a, b) for a, b in zip(runs[0], runs[2], strict=True))
        assert not any(torch.equal(a, b) for a, b in itertools.combinations(runs[0], 2))

    @pytest.mark.parametrize(("factor", "expected"), [(2, {0.5, 1.5}), (3, {0, 1, 2}), (4, {0.5, 1.5, 2.5, 3.5})])
    def test_every_position_of_a_whole_grid_is_met(self, factor, expected):
        transform = RandAcquire([factor]).set_random_state(0)
        seen = [set(), set(), set()]
        for _ in range(60):
            transform.randomize(3)
            for axis, offset in enumerate(offsets_of(transform)):
                seen[axis].add(offset)
        assert seen == [expected] * 3

    def test_positions_of_a_fractional_grid_are_uniform(self):
        transform = RandAcquire([2.5]).set_random_state(0)
        drawn = []
        for _ in range(1000):
            transform.randomize(3)
            drawn += offsets_of(transform)
        counts, _ = np.histogram(drawn, bins=5, range=(0, 2.5))
        assert counts.sum() == 3000
        assert counts.min() > 500  # 600 each, give or take 22

    def test_factors_and_protocols_are_drawn_from_the_lists(self):
        transform = RandAcquire([2, 3, (1, 1, 3.3)], protocols=["box", "bicubic"]).set_random_state(0)
        seen = []
        for _ in range(200):
            transform.randomize(3)
            seen.append((transform.factors, transform.protocol))
        anisotropic = set(itertools.permutations((1.0, 1.0, 3.3)))
        assert {f for f, _ in seen} == {(2.0,) * 3, (3.0,) * 3} | anisotropic
        assert {p for _, p in seen} == {PROTOCOLS["box"], PROTOCOLS["bicubic"]}
        assert sum(f in anisotropic for f, _ in seen) == pytest.approx(200 / 3, abs=20)

    def test_only_the_axis_with_the_factor_loses_resolution(self):
        transform = RandAcquire([(1, 1, 3)], 9).set_random_state(0)
        axes = set()
        for _ in range(12):
            for axis in range(3):
                line = torch.rand(33, generator=torch.Generator().manual_seed(0))
                shape = [1] * 4
                shape[axis + 1] = 33
                state = transform.R.get_state()
                image, target = transform(line.reshape(shape).expand(1, 33, 33, 33))
                loses = transform.factors[axis] == 3
                assert loses == (float((image - target).abs().max()) > 0.05)
                if loses:
                    axes.add(axis)
                transform.R.set_state(state)
            transform.randomize(3)
        assert axes == {0, 1, 2}

    def test_noise_statistics(self):
        """At factor 1 nothing but the noise is left."""
        transform = RandAcquire([1], 30, noise_std=(0.02, 0.06), noise_prob=0.5, margin=0).set_random_state(0)
        patch = torch.full((1, 30, 30), 2.0)
        measured, drawn = [], []
        for _ in range(200):
            image, target = transform(patch)
            assert torch.equal(target, patch)
            measured.append(float((image - patch).std()))
            drawn.append(transform.std)
        np.testing.assert_allclose(measured, drawn, rtol=0.12, atol=1e-7)
        noisy = [d for d in drawn if d]
        assert len(noisy) == pytest.approx(100, abs=30)
        assert 0.02 <= min(noisy) < 0.025
        assert 0.055 < max(noisy) <= 0.06

    def test_without_probability_there_is_no_noise(self):
        transform = RandAcquire([1], 5, noise_std=(0.1, 0.2), margin=0)
        patch = torch.rand(1, 5, 5, 5)
        assert all(torch.equal(transform(patch)[0], patch) for _ in range(5))

    def test_two_dimensions_and_one_size_per_axis(self):
        image, target = RandAcquire([(1, 2)], (7, 10), margin=3)(torch.rand(1, 13, 16))
        assert image.shape == target.shape == (1, 7, 10)

    @pytest.mark.parametrize("shape", [(1, 29, 29, 30), (1, 5, 5, 5), (1, 29, 29, 28)])
    def test_a_patch_of_another_size(self, shape):
        with pytest.raises(ValueError, match=r"expected a patch of \[29, 29, 29\] voxels, got \[" + str(shape[1])):
            RandAcquire([2], 5)(torch.rand(shape))

    @pytest.mark.parametrize(
        ("kwargs", "match"),
        [
            ({"scale_factors": []}, "at least one scale factor and one protocol, got none"),
            ({"protocols": []}, "at least one scale factor and one protocol, got none"),
            ({"protocols": ["box", "mri"]}, r"protocols must be among .*got \['mri'\]"),
            ({"spatial_dims": 1}, "spatial_dims must be 2 or 3, got 1"),
            ({"kind": None, "scale_factors": [2, 2.5]}, r"scale_factors must be whole numbers, got \[2, 2\.5\]"),
            ({"kind": None, "scale_factors": [(2, 2, 3.3)]}, r"must be whole numbers, got \[\(2, 2, 3\.3\)\]"),
        ],
    )
    def test_errors(self, kwargs, match):
        with pytest.raises(ValueError, match=match):
            RandAcquire(**kwargs)

    def test_a_factor_larger_than_the_patch(self):
        """On whichever axis it comes to lie, as they are permuted."""
        transform = RandAcquire([(1, 1, 5)], (9, 9, 3), margin=1)
        for _ in range(4):
            with pytest.raises(ValueError, match=r"at least 5\.5 voxels with margins where the factor is 5, got 5"):
                transform(torch.rand(1, 11, 11, 5))

    def test_a_factor_of_another_dimension(self):
        with pytest.raises(ValueError, match="one number or 3 numbers >= 1, got"):
            RandAcquire([(2, 2)], 5)(torch.rand(1, 29, 29, 29))


def ramp(shape, axis):
    """Each voxel holds its index on one axis."""
    view = [-1 if a == axis else 1 for a in range(len(shape))]
    return torch.arange(shape[axis], dtype=torch.float64).reshape(view).expand(shape)[None]


class TestWithoutInterpolation:
    """`kind` None, for networks that upsample."""

    @pytest.mark.parametrize("factor", [2, 3, 4, (1, 2, 3)], ids=str)
    @pytest.mark.parametrize("protocol", PROTOCOLS)
    def test_an_lr_voxel_lies_at_the_centre_of_its_hr_voxels(self, factor, protocol):
        """On a ramp the acquisition, a symmetric kernel, gives the mean of the HR voxels over the LR voxel's extent."""
        factors = [int(f) for f in per_axis(factor, 3)]
        transform = RandAcquire([factor], 12, [protocol], margin=12, kind=None)
        for axis in range(3):
            image, target = transform(ramp([36] * 3, axis))
            assert target.shape == (1, 12, 12, 12)
            assert list(image.shape[1:]) == [12 // f for f in factors]
            expected = torch.nn.functional.avg_pool3d(target[None], factors)[0]
            torch.testing.assert_close(image, expected, rtol=0, atol=1e-4)

    @pytest.mark.parametrize("factor", [2, 3, 4, (2, 1)], ids=str)
    @pytest.mark.parametrize("protocol", ["gaussian_spline", "bicubic", "slice_profile", "box"])
    def test_is_the_acquisition_of_the_whole_scan(self, factor, protocol):
        """Of white noise; where the patch begins with an LR voxel of the scan."""
        factors = [int(f) for f in per_axis(factor, 2)]
        scan = torch.rand((1, 60, 72), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        low = [n // f for n, f in zip(scan.shape[1:], factors, strict=True)]
        whole = acquisition_operator(scan.shape[1:], low, protocol)(scan[None])[0]
        margin, size, starts = 16, 12, (8, 20)  # the inner patch at 24 and 36
        box = [slice(s, s + size + 2 * margin) for s in starts]
        image, target = RandAcquire([factor], size, [protocol], margin=margin, kind=None)(scan[:, box[0], box[1]])
        inner = [slice((s + margin) // f, (s + margin + size) // f) for s, f in zip(starts, factors, strict=True)]
        torch.testing.assert_close(image, whole[:, inner[0], inner[1]], rtol=0, atol=1e-6)
        assert torch.equal(target, scan[:, 24:36, 36:48])

    @pytest.mark.parametrize(
        ("size", "factor", "low", "high"),
        [
            (11, 2, (5, 5, 5), (10, 10, 10)),
            (11, (1, 2, 4), (11, 5, 2), (11, 10, 8)),
            ((6, 7, 8), 3, (2, 2, 2), (6, 6, 6)),
        ],
    )
    def test_sizes_where_the_patch_is_no_multiple(self, size, factor, low, high):
        sizes = [n + 6 for n in ((size,) * 3 if isinstance(size, int) else size)]
        patch = torch.rand(1, *sizes)
        image, target = RandAcquire([factor], size, margin=3, kind=None)(patch)
        assert tuple(image.shape[1:]) == low
        inner = [slice(3, 3 + n) for n in high]
        assert torch.equal(target, patch[:, inner[0], inner[1], inner[2]])

    def test_the_network_s_own_factors_are_not_permuted(self):
        transform = RandAcquire([(1, 2, 3)], 12, margin=0, kind=None).set_random_state(0)
        assert {tuple(transform(torch.rand(1, 12, 12, 12))[0].shape[1:]) for _ in range(20)} == {(12, 6, 4)}

    def test_a_patch_smaller_than_the_factor(self):
        with pytest.raises(ValueError, match=r"at least \(2\.0, 2\.0, 4\.0\) voxels, got 3"):
            RandAcquire([(2, 2, 4)], 3, margin=2, kind=None)(torch.rand(1, 7, 7, 7))

    def test_noise_is_that_of_the_lr_image(self):
        transform = RandAcquire([2], 40, noise_std=(0.05, 0.05), noise_prob=1.0, margin=4, kind=None, spatial_dims=3)
        patch = torch.full((1, 48, 48), 2.0)
        image, target = transform(patch)
        assert torch.equal(target, torch.full((1, 40, 40), 2.0))
        assert float((image - 2).std()) == pytest.approx(0.05, rel=0.15)
        neighbours = torch.corrcoef(torch.stack([image[:, :-1].flatten(), image[:, 1:].flatten()]))[0, 1]
        assert abs(float(neighbours)) < 0.2  # interpolated noise would be correlated

    def test_nothing_is_acquired_at_factor_one(self):
        patch = torch.rand(1, 9, 9, 9)
        image, target = RandAcquire([1], 5, margin=2, kind=None)(patch)
        assert torch.equal(image, patch[:, 2:7, 2:7, 2:7])
        image.zero_()
        target.zero_()
        assert patch.all()  # neither is a view


class TestSlices:
    """`spatial_dims` 2: patches of one slice with margin, the slices last."""

    @pytest.mark.parametrize("kind", ["bspline", None])
    @pytest.mark.parametrize("size", [12, (8, 12)], ids=str)
    def test_the_pair_has_no_last_axis(self, kind, size):
        plane = (size, size) if isinstance(size, int) else size
        patch = torch.rand(1, *(n + 8 for n in plane), 9)
        image, target = RandAcquire([(2, 4, 1)], size, margin=4, kind=kind, spatial_dims=2)(patch)
        assert torch.equal(target, patch[:, 4:-4, 4:-4, 4])
        assert tuple(image.shape[1:]) == (plane if kind else (plane[0] // 2, plane[1] // 4))

    @pytest.mark.parametrize("kind", ["bspline", None])
    @pytest.mark.parametrize(
        ("factor", "blurs"), [((2, 2, 1), False), (2, True), ((1, 1, 2), True), ((1, 1, 1), False)]
    )
    def test_slices_keep_their_thickness_or_not(self, kind, factor, blurs):
        """The neighbours of the slice are seen where there is a factor across."""
        patch = smooth((32, 32, 25), 1.0)
        other = patch.clone()
        other[..., [11, 13]] += 1
        transform = RandAcquire([factor], 8, margin=12, kind=kind, spatial_dims=2)
        first = transform.set_random_state(3)(patch)
        second = transform.set_random_state(3)(other)
        assert torch.equal(first[1], second[1])
        assert torch.equal(first[0], second[0]) != blurs

    @pytest.mark.parametrize("kind", ["bspline", None])
    def test_of_one_slice_is_the_2d_acquisition(self, kind):
        patch = smooth((33, 37, 25), 1.0, dtype=np.float64)
        transform = RandAcquire([(2, 3, 1)], (9, 13), margin=12, kind=kind, spatial_dims=2).set_random_state(1)
        image, _ = transform(patch)
        flat = RandAcquire([(2, 3)], (9, 13), margin=12, kind=kind).set_random_state(1)
        offsets, factors = transform.offsets[:2], transform.factors[:2]
        flat.randomize = lambda _: None  # type: ignore[method-assign]
        flat.offsets, flat.factors, flat.protocol, flat.std = offsets, factors, transform.protocol, 0.0
        torch.testing.assert_close(image, flat(patch[..., 12])[0])

    @pytest.mark.parametrize(("factor", "across"), [(2, 2), (3, 3), ((2, 2, 4), 4)], ids=str)
    @pytest.mark.parametrize("protocol", ["gaussian_spline", "slice_profile", "box"])
    def test_a_slice_of_the_whole_scan_s_acquisition(self, monkeypatch, protocol, factor, across):
        """Where the LR grid of the patch is that of the scan, across the slices too."""
        factors = per_axis(factor, 3)
        scan = smooth((48, 36, 60), 1.5, dtype=np.float64)
        shape = scan.shape[1:]
        low = [round(n / f) for n, f in zip(shape, factors, strict=True)]
        whole = interpolation_operator(low, shape)(acquisition_operator(shape, low, protocol)(scan[None]))[0]
        margin, start = 13, (5, 3, 18)
        transform = RandAcquire([factor], (9, 7), [protocol], margin=margin, spatial_dims=2)

        def grid_of_the_scan(_):
            transform.factors, transform.protocol, transform.std = factors, PROTOCOLS[protocol], 0.0
            transform.offsets = [((f - 1) / 2 - s) % f for f, s in zip(factors, start, strict=True)]

        monkeypatch.setattr(transform, "randomize", grid_of_the_scan)
        box = [slice(s, s + n + 2 * margin) for s, n in zip(start, (9, 7, 1), strict=True)]
        image, target = transform(scan[:, box[0], box[1], box[2]])
        x, y, z = (s + margin for s in start)
        assert torch.equal(target, scan[:, x : x + 9, y : y + 7, z])
        expected = whole[:, x : x + 9, y : y + 7, z]
        torch.testing.assert_close(image, expected, rtol=0, atol=5e-3)
        assert float((expected - target).abs().max()) > 0.02

    @pytest.mark.parametrize("across", [2, 3, 4])
    def test_a_thick_slice_lies_about_the_thin_one(self, across):
        """Without interpolation, on a ramp across the slices; blurred as a slice profile of that thickness blurs."""
        transform = RandAcquire([(1, 1, across)], 4, ["slice_profile"], margin=12, kind=None, spatial_dims=2)
        image, target = transform(ramp((28, 28, 25), 2))
        assert image.shape == target.shape == (1, 4, 4)
        torch.testing.assert_close(image, target, rtol=0, atol=1e-6)
        impulse = torch.zeros(1, 28, 28, 25, dtype=torch.float64)
        impulse[..., 12] = 1
        sigma = across / np.sqrt(8 * np.log(2))
        line = gaussian_filter(np.eye(25)[12], sigma, truncate=8)
        assert float(transform(impulse)[0].mean()) == pytest.approx(line[12], rel=0.02)

    def test_factors_are_never_permuted(self):
        for kind in ("bspline", None):
            transform = RandAcquire([(1, 2, 3)], 6, kind=kind, spatial_dims=2).set_random_state(0)
            for _ in range(10):
                transform.randomize(3)
                assert transform.factors == (1.0, 2.0, 3.0)

    def test_noise(self):
        """One slice's own noise, of the drawn strength."""
        transform = RandAcquire([(1, 1, 1)], 50, noise_std=(0.04, 0.04), noise_prob=1.0, margin=2, spatial_dims=2)
        image, target = transform(torch.full((1, 54, 54, 5), 2.0))
        assert torch.equal(target, torch.full((1, 50, 50), 2.0))
        assert float((image - 2).std()) == pytest.approx(0.04, rel=0.06)

    @pytest.mark.parametrize(
        ("factor", "margin", "match"),
        [
            ((2, 2, 2), 0, "at least 2.5 voxels with margins where the factor is 2, got 1: raise the margin"),
            ((1, 1, 4), 1, "at least 4.5 voxels with margins where the factor is 4, got 3: raise the margin"),
            ((1, 1, 2.7), 1, "at least 3.2 voxels with margins where the factor is 2.7, got 3"),
        ],
    )
    def test_too_few_neighbours_for_the_factor_across(self, factor, margin, match):
        """Always, not only where the LR grid that is drawn has no voxel in the patch."""
        patch = torch.rand(1, 9 + 2 * margin, 9 + 2 * margin, 1 + 2 * margin)
        for seed in range(4):
            transform = RandAcquire([1, factor], 9, margin=margin, spatial_dims=2).set_random_state(seed)
            with pytest.raises(ValueError, match=match):
                transform(patch)
        RandAcquire([(*factor[:2], 1)], 9, margin=margin, spatial_dims=2)(patch)

    @pytest.mark.parametrize("factor", [2, 2.5])
    def test_enough_neighbours_for_the_factor_across(self, factor):
        transform = RandAcquire([factor], 9, margin=1, spatial_dims=2).set_random_state(0)
        for _ in range(20):
            assert transform(torch.rand(1, 11, 11, 3))[0].shape == (1, 9, 9)

    def test_a_patch_without_slices(self):
        with pytest.raises(ValueError, match=r"patch of 3 axes, the slices last, got \[29, 29\] voxels"):
            RandAcquire([2], 5, spatial_dims=2)(torch.rand(1, 29, 29))

    @pytest.mark.parametrize("shape", [(29, 29, 1), (29, 29, 29), (25, 29, 5)])
    def test_a_patch_of_another_size(self, shape):
        with pytest.raises(ValueError, match=r"expected a patch of \[29, 29, 25\] voxels, got"):
            RandAcquire([2], 5, spatial_dims=2)(torch.rand(1, *shape))


ARGUMENTS = {"scale_factors": [2, 3, 2.5], "patch_size": 5, "noise_std": (0.01, 0.1), "noise_prob": 1.0}


class TestRandAcquired:
    def test_is_the_array_version(self):
        patch = smooth([29] * 3, 1.0)
        image, target = RandAcquire(**ARGUMENTS).set_random_state(5)(patch)
        given = {"image": patch, "other": 1}
        item = RandAcquired("image", **ARGUMENTS, target_key="truth").set_random_state(5)(given)
        assert torch.equal(item["image"], image)
        assert torch.equal(item["truth"], target)
        assert item["other"] == 1
        assert given["image"] is patch

    def test_is_the_array_version_for_slices(self):
        arguments = {**ARGUMENTS, "scale_factors": [(2, 2, 1), (2, 2, 2)], "kind": None, "spatial_dims": 2, "margin": 3}
        patch = smooth((11, 11, 7), 1.0)
        image, target = RandAcquire(**arguments).set_random_state(5)(patch)
        item = RandAcquired("image", **arguments).set_random_state(5)({"image": patch})
        assert torch.equal(item["image"], image)
        assert torch.equal(item["target"], target)
        assert image.shape == (1, 2, 2)

    def test_compose_hands_on_the_seed(self):
        patch = smooth([29] * 3, 1.0)
        runs = []
        for seed in (3, 3, 4):
            transform = Compose([RandAcquired("image", **ARGUMENTS)]).set_random_state(seed)
            runs.append([transform({"image": patch})["image"] for _ in range(3)])
        assert all(torch.equal(a, b) for a, b in zip(runs[0], runs[1], strict=True))
        assert not any(torch.equal(a, b) for a, b in zip(runs[0], runs[2], strict=True))
