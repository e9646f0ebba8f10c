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
        ],
    )
    def test_errors(self, kwargs, match):
        with pytest.raises(ValueError, match=match):
            RandAcquire(**kwargs)

    def test_a_factor_of_another_dimension(self):
        with pytest.raises(ValueError, match="one number or 3 numbers >= 1, got"):
            RandAcquire([(2, 2)], 5)(torch.rand(1, 29, 29, 29))


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

    def test_compose_hands_on_the_seed(self):
        patch = smooth([29] * 3, 1.0)
        runs = []
        for seed in (3, 3, 4):
            transform = Compose([RandAcquired("image", **ARGUMENTS)]).set_random_state(seed)
            runs.append([transform({"image": patch})["image"] for _ in range(3)])
        assert all(torch.equal(a, b) for a, b in zip(runs[0], runs[1], strict=True))
        assert not any(torch.equal(a, b) for a, b in zip(runs[0], runs[2], strict=True))
