"""Batches against whole volumes that were acquired on the same grid, and what the network is told against what was drawn."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.engines import SupervisedTrainer
from scipy.ndimage import zoom

from custom_components.acquisition import PROTOCOLS, Protocol, acquisition_operator
from custom_components.engines import RandAcquireBatch
from custom_components.losses import DetailLoss
from custom_components.networks import AcquisitionEstimator, AnyScaleSR

ORIENTATIONS = [
    (order, mirrored)
    for order in itertools.permutations(range(3))
    for count in range(4)
    for mirrored in itertools.combinations(range(3), count)
]
FWHM = 2.3548200450309493


def turned(x, orientation):
    order, mirrored = orientation
    return x.permute(order).flip(mirrored)


def orientation_of(hr, patch):
    """Orientation in which the voxels `hr` are the first ones of a patch `(n, n, n)`; each patch here is white noise."""
    box = tuple(slice(0, n) for n in hr.shape)
    (found,) = [o for o in ORIENTATIONS if torch.equal(turned(patch, o)[box], hr)]
    return found


def batch(n, size=2, seed=0, spacing=(0.8, 1.1, 3.0)):
    image = torch.rand(size, 1, n, n, n, generator=torch.Generator().manual_seed(seed))
    return {"image": image, "spacing": torch.tensor([spacing] * size, dtype=torch.float64)}


def drawn(seed=0, **kwargs):
    """A batch maker with all known and without noise, unless told otherwise."""
    return RandAcquireBatch(**{"known_prob": 1.0, "noise_known_prob": 1.0, "margin": 4, **kwargs}).set_random_state(
        seed
    )


class TestAcquisition:
    @pytest.mark.parametrize(
        "profile",
        [
            {"sigma": 1.0},
            {"thickness": 0.8},
            {"blur": "box", "thickness": 0.9, "boundary": "reflect"},
            {"blur": "none", "sampling": "cubic", "antialias": True, "boundary": "reflect"},
        ],
        ids=lambda p: p.get("blur", "gaussian"),
    )
    @pytest.mark.parametrize("factor", [2, 2.5, 4, (1, 1, 2.5), (1, 2, 5)], ids=str)
    def test_a_patch_is_a_part_of_the_whole_volume(self, factor, profile):
        """The patch lies in the middle of a volume whose LR voxels fall on those of the patch, in each orientation."""
        volume = torch.rand(60, 60, 60, generator=torch.Generator().manual_seed(1))
        margin, start, n = 12, 8, 20
        patch = volume[8:52, 8:52, 8:52]
        make = drawn(scale_factors=[factor], profiles=[profile], margin=margin)
        for _ in range(3):
            item = {"image": patch[None, None], "spacing": torch.ones(1, 3)}
            lr, target, _, kwargs = make(item)
            assert kwargs["shape"] == target.shape[2:] == (n, n, n)
            orientation = orientation_of(target[0, 0], patch[margin:-margin, margin:-margin, margin:-margin])
            shape = [round(60 * m / n) for m in lr.shape[2:]]
            whole = acquisition_operator((60,) * 3, shape, Protocol(**profile))(turned(volume, orientation)[None, None])
            first = [round((start + margin) * m / n) for m in lr.shape[2:]]
            box = (slice(None), slice(None), *(slice(f, f + m) for f, m in zip(first, lr.shape[2:], strict=True)))
            torch.testing.assert_close(lr, whole[box], rtol=0, atol=1e-5)

    @pytest.mark.parametrize(
        ("factor", "lr", "hr"),
        [
            (1, 24, 24),
            (1.3, 24, 31),
            (1.5, 24, 36),
            (2, 24, 48),
            (3, 16, 48),
            (3.3, 14, 46),
            (4, 12, 48),
            (5, 9, 45),
            (48, 1, 48),
        ],
    )
    def test_shapes(self, factor, lr, hr):
        """At most 24 LR voxels, and as many as 48 HR voxels within the margins hold."""
        make = drawn(scale_factors=[(1, factor, 2)])
        x, target, args, kwargs = make(batch(56, 1))
        assert sorted(x.shape[2:]) == sorted([24, lr, 24])
        assert sorted(target.shape[2:]) == sorted([24, hr, 48])
        pairs = set(zip(x.shape[2:], target.shape[2:], strict=True))
        assert pairs == {(24, 24), (lr, hr), (24, 48)}
        assert (args, kwargs["shape"], kwargs["condition"].shape) == ((), tuple(target.shape[2:]), (1, 14))
        assert x.is_contiguous(memory_format=torch.channels_last_3d)

    def test_a_factor_that_rounds_to_none_leaves_the_patch(self):
        x, target, _, kwargs = drawn(scale_factors=[1.01])(batch(56, 1))
        assert torch.equal(x, target[:, :1])
        assert kwargs["condition"][0, 0] == 0

    def test_noise_is_none_without_noise(self):
        _, target, _, _ = drawn()(batch(24))
        assert not target[:, 1].any()

    def test_target_is_the_noise_as_a_spline_interpolates_it(self):
        """The same draws without noise give what the noise was added to."""
        arguments = {"scale_factors": [2.5, (1, 2, 3)], "noise_prob": 1.0}
        noisy, clean = drawn(3, noise_std=(0.01, 0.05), **arguments), drawn(3, noise_std=(0.0, 0.0), **arguments)
        for _ in range(3):
            item = batch(32)
            (y, target, _, told), (x, truth, _, _) = noisy(item), clean(item)
            assert torch.equal(target[:, 0], truth[:, 0])
            for i in range(2):
                noise = (y - x)[i, 0].double().numpy()
                ratio = [m / n for n, m in zip(noise.shape, target.shape[2:], strict=True)]
                expected = zoom(noise, ratio, order=3, mode="nearest", grid_mode=True)
                np.testing.assert_allclose(target[i, 1], expected, rtol=0, atol=1e-6)
                std = 0.03 * told["condition"][i, 12].item()
                assert noise.std() == pytest.approx(std, rel=0.15)
                assert 0.01 <= std <= 0.05

    def test_noise_is_rician(self):
        """Where there is no signal it has the mean of a Rayleigh distribution, and samples have a noise of their own."""
        make = drawn(noise_prob=1.0, noise_std=(0.04, 0.04))
        y, target, _, _ = make({"image": torch.zeros(2, 1, 40, 40, 40), "spacing": torch.ones(2, 3)})
        assert y.min() > 0
        assert y.mean().item() == pytest.approx(0.04 * math.sqrt(math.pi / 2), rel=0.02)
        assert not target[:, 0].any()
        assert abs(np.corrcoef(y[0].flatten(), y[1].flatten())[0, 1]) < 0.1


class TestCondition:
    def test_the_spacing_goes_with_the_axes(self):
        make = drawn(scale_factors=[(1, 1.5, 2.5)], profiles=[{"sigma": 0.7}])
        item = batch(23, 3)
        seen = set()
        for _ in range(4):
            x, target, _, kwargs = make(item)
            factors = [m / n for n, m in zip(x.shape[2:], target.shape[2:], strict=True)]
            for i, told in enumerate(kwargs["condition"]):
                order, _ = orientation_of(target[i, 0], item["image"][i, 0, 4:-4, 4:-4, 4:-4])
                seen.add(order)
                spacing = [(0.8, 1.1, 3.0)[axis] * f for axis, f in zip(order, factors, strict=True)]
                widths = [0.7 * FWHM / f if f > 1 else 0 for f in factors]
                axes = told[:12].reshape(3, 4)
                np.testing.assert_allclose(axes[:, 0], np.log2(factors), atol=1e-6)
                np.testing.assert_allclose(axes[:, 1], np.log2(spacing), atol=1e-6)
                np.testing.assert_allclose(axes[:, 2], widths, atol=1e-6)
                assert axes[:, 3].tolist() == [float(f > 1) for f in factors]
                assert told[12:].tolist() == [0, 1]
        assert len(seen) > 3

    @pytest.mark.parametrize(
        ("profile", "width"),
        [
            ({"thickness": 0.9}, 0.9),
            ({"blur": "box", "thickness": 0.8}, 0.8 * FWHM / math.sqrt(12)),
            ({"sigma": 1.5}, 1.5 * FWHM / 2),
            ({"blur": "none", "sampling": "cubic"}, None),
        ],
    )
    def test_width_of_a_profile(self, profile, width):
        condition = drawn(profiles=[profile])(batch(16))[3]["condition"]
        expected = [0, 0] if width is None else [width, 1]
        np.testing.assert_allclose(condition[:, :12].reshape(2, 3, 4)[..., 2:], np.tile(expected, (2, 3, 1)), rtol=1e-6)

    def test_width_and_noise_are_told_at_times_and_each_by_itself(self):
        make = drawn(noise_prob=1.0, known_prob=0.7, noise_known_prob=0.7)
        condition = torch.cat([make(batch(12, 8))[3]["condition"] for _ in range(50)])
        told = condition[:, [3, 13]].bool()
        counts = [int((told == torch.tensor(case)).all(1).sum()) for case in ([1, 1], [1, 0], [0, 1], [0, 0])]
        for count, expected in zip(counts, (196, 84, 84, 36), strict=True):  # of 400
            assert abs(count - expected) < 4 * math.sqrt(expected)
        assert not condition[~told[:, 0]][:, [2, 6, 10]].any()
        assert not condition[~told[:, 1]][:, 12].any()
        assert (condition[told[:, 1]][:, 12] > 0).all()

    def test_a_profile_may_be_told_more_seldom_than_another(self):
        make = drawn(profiles=[{"thickness": 0.8}, {"thickness": 1.2}], known_prob=[0.0, 1.0])
        told = torch.cat([make(batch(12, 8))[3]["condition"] for _ in range(10)])[:, 2:4]
        np.testing.assert_allclose(np.unique(told.numpy(), axis=0), [[0, 0], [1.2, 1]], rtol=1e-6)

    def test_what_is_not_told_is_estimated_from_the_noisy_patch(self):
        """With the factors given, within the widths that the estimator was trained for, and half as sure."""
        given = []

        class Estimator(torch.nn.Module):
            def forward(self, x, factors):
                given.append((x, factors))
                return torch.tensor([[0.7, 9.0, 0.9, 5.0]]).expand(len(x), 4)

        made = drawn(scale_factors=[(1, 2, 3)], known_prob=0.5, noise_prob=1.0, estimator=Estimator())
        seen = set()
        for _ in range(6):
            lr, _, _, told = made(batch(24))
            condition = told["condition"]
            factors = condition[:, 0:12:4].exp2()
            for row, factor in zip(condition, factors, strict=True):
                was_told = float(row[3:12:4].max()) == 1
                expected = [1.0 if was_told else 0.5] * 3
                finer = (factor > 1).tolist()
                assert row[3:12:4].tolist() == [e * f for e, f in zip(expected, finer, strict=True)]
                if not was_told:
                    limited = [0.7, 2.5, 0.9]
                    assert row[2:12:4].tolist() == pytest.approx([e * f for e, f in zip(limited, finer, strict=True)])
                assert row[13] == 1  # the noise is told or not, by itself
                seen.add(was_told)
            assert torch.equal(given[-1][0], lr) and torch.equal(given[-1][1], factors)
        assert seen == {True, False}

    def test_each_profile_has_its_probability_to_be_estimated(self):
        estimator = AcquisitionEstimator(2)
        profiles = [{"thickness": 0.8}, {"thickness": 1.2}]
        make = drawn(profiles=profiles, known_prob=0.0, estimated_prob=[0.0, 1.0], estimator=estimator)
        sure = torch.cat([make(batch(16))[3]["condition"][:, 3] for _ in range(12)])
        assert set(sure.tolist()) == {0.0, 0.5}
        assert not estimator.training and not any(p.requires_grad for p in estimator.parameters())

    @pytest.mark.parametrize(
        ("name", "given"),
        [("known_prob", 1.1), ("known_prob", [0.5, 0.5]), ("noise_known_prob", -0.1), ("estimated_prob", [0.5, 0.5])],
    )
    def test_bad_probabilities(self, name, given):
        with pytest.raises(ValueError, match=rf"^{name} must be in \[0, 1\], one or one per profile"):
            RandAcquireBatch(**{name: given})


class TestDraws:
    def test_same_seed_same_batches_and_each_step_another(self):
        arguments = {
            "scale_factors": [(1.2, 4), (1, 1, (1.5, 5)), 2],
            "profiles": [{"sigma": (0.4, 1.3)}, {"thickness": (0.7, 1.3)}],
            "noise_prob": 0.5,
        }
        item, runs = batch(24), []
        for seed in (1, 1, 2):
            make = drawn(seed, **arguments)
            runs.append([make(item) for _ in range(5)])
        for a, b in zip(runs[0], runs[1], strict=True):
            assert all(torch.equal(p, q) for p, q in zip(a[:2], b[:2], strict=True))
            assert torch.equal(a[3]["condition"], b[3]["condition"])
        for a, b in [*itertools.combinations(runs[0], 2), *zip(runs[0], runs[2], strict=True)]:
            assert not torch.equal(a[3]["condition"], b[3]["condition"])
        for _, _, _, kwargs in runs[0]:
            assert not torch.equal(*kwargs["condition"][:, 2::4])  # each sample has a profile of its own

    def test_without_a_state_of_its_own_it_follows_torchs(self):
        """As the epochs of a resumed run must be those that would have come; the class's own state is NumPy's, unseeded."""
        item = batch(16)
        arguments = {"scale_factors": [(1.2, 4)], "profiles": [{"sigma": (0.4, 1.3)}], "margin": 4, "known_prob": 1.0}
        first, second = RandAcquireBatch(**arguments), RandAcquireBatch(**arguments).set_random_state(3)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            runs = [first(item)[3]["condition"] for _ in range(3)]
            torch.manual_seed(5)
            again = [first(item)[3]["condition"] for _ in range(3)]
            torch.manual_seed(5)
            own = second(item)[3]["condition"]
            torch.manual_seed(5)
            back = second.set_random_state()(item)[3]["condition"]
        assert all(torch.equal(a, b) for a, b in zip(runs, again, strict=True))
        assert not any(torch.equal(a, b) for a, b in itertools.combinations(runs, 2))
        assert torch.equal(back, runs[0]) and not torch.equal(own, runs[0])

    def test_all_48_orientations_come(self):
        item = {
            "image": torch.arange(8.0).reshape(1, 1, 2, 2, 2).repeat(600, 1, 1, 1, 1),
            "spacing": torch.ones(600, 3),
        }
        _, target, _, _ = drawn(scale_factors=[1], margin=0)(item)
        assert len(torch.unique(target[:, 0].flatten(1), dim=0)) == 48

    def test_factors_come_by_their_weights_on_all_axes(self):
        make = drawn(scale_factors=[2, (1.2, 3), (1, 1, 4), 5], scale_weights=[2, 1, 1, 0], margin=0)
        counts = dict.fromkeys(["two", "range", (0,), (1,), (2,)], 0)
        values = []
        for _ in range(200):
            factors = make(batch(24, 1))[3]["condition"][0, [0, 4, 8]].exp2()
            assert not (factors == 5).any()
            ones = (factors == 1).sum()
            if ones == 2:
                counts[(int(factors.argmax()),)] += 1
            elif (factors == 2).all():
                counts["two"] += 1
            else:
                assert factors.max() == factors.min()
                values.append(float(factors[0]))
                counts["range"] += 1
        assert 75 < counts["two"] < 125
        assert 30 < counts["range"] < 70
        assert min(counts[(axis,)] for axis in range(3)) > 5
        assert 1.15 < min(values) < 1.4 and 2.8 < max(values) < 3.1

    def test_profiles_come_by_their_weights(self):
        profiles = [{"thickness": 0.5}, {"thickness": (0.7, 1.3)}, {"thickness": 2.0}]
        make = drawn(profiles=profiles, profile_weights=[3, 1, 0])
        widths = torch.cat([make(batch(12, 8))[3]["condition"][:, 2] for _ in range(25)])
        assert 125 < (widths == 0.5).sum() < 175  # of 200
        others = widths[widths != 0.5]
        assert 0.7 <= others.min() < 0.8 and 1.2 < others.max() <= 1.3


class TestUse:
    def test_input_is_kept_and_the_result_is_plain(self):
        item = batch(20)
        item["image"] = MetaTensor(item["image"])
        before = item["image"].clone()
        lr, target, _, kwargs = drawn(scale_factors=[(1, 1, 2)], noise_prob=1.0)(item, "cpu", True, other=1)
        assert {type(lr), type(target), type(kwargs["condition"])} == {torch.Tensor}
        assert lr.dtype == target.dtype == torch.float32
        target.zero_()
        lr.zero_()
        assert torch.equal(item["image"], before)

    def test_trains_a_network_in_monais_trainer(self):
        torch.manual_seed(0)
        network = AnyScaleSR(4, 1)
        trainer = SupervisedTrainer(
            device=torch.device("cpu"),
            max_epochs=1,
            train_data_loader=[batch(20, seed=i) for i in range(3)],
            network=network,
            optimizer=torch.optim.Adam(network.parameters(), 1e-2),
            loss_function=DetailLoss(),
            prepare_batch=drawn(scale_factors=[1.5, 2, (1, 1, 3)]),
            decollate=False,
        )
        trainer.run()
        assert trainer.state.iteration == 3
        assert network.detail.weight.any() and network.layers[0].modulation.weight.any()

    @pytest.mark.parametrize(
        ("shape", "match"),
        [
            ((1, 1, 20, 20, 19), r"expected cubes \(B, 1, n, n, n\), got \(1, 1, 20, 20, 19\)"),
            ((1, 1, 20, 20), r"expected cubes \(B, 1, n, n, n\), got \(1, 1, 20, 20\)"),
            ((1, 1, 10, 10, 10), "expected 3 voxels within the margins of 4, got 2"),
        ],
    )
    def test_patches_that_do_not_fit(self, shape, match):
        with pytest.raises(ValueError, match=match):
            drawn(scale_factors=[(1, 1, 3)])({"image": torch.rand(shape), "spacing": torch.ones(1, 3)})

    @pytest.mark.parametrize(
        ("kwargs", "match"),
        [
            ({"scale_factors": []}, "expected scale_factors and one weight for each, got 0 and no weights"),
            (
                {"scale_factors": [2, 3], "scale_weights": [1]},
                "scale_factors and one weight for each, got 2 and 1 weights",
            ),
            ({"profiles": []}, "expected profiles and one weight for each, got 0 and no weights"),
            ({"profile_weights": [1, 2]}, "expected profiles and one weight for each, got 1 and 2 weights"),
            ({"scale_factors": [2, 0.5]}, r"scale_factors must be >= 1, ranges from low to high, got 0\.5"),
            ({"scale_factors": [(3, 2)]}, r"scale_factors must be >= 1, .*got \(3, 2\)"),
            ({"scale_factors": [(1, 2, (0.5, 3))]}, r"scale_factors must be >= 1, .*got \(1, 2, \(0\.5, 3\)\)"),
            ({"profiles": [{"blur": "median"}]}, "blur must be gaussian, box or none, got 'median'"),
            ({"profiles": [{"blur": "box"}]}, "a box blur needs a thickness, got None"),
        ],
    )
    def test_bad_arguments(self, kwargs, match):
        with pytest.raises(ValueError, match=match):
            RandAcquireBatch(**kwargs)

    def test_named_protocols_are_profiles(self):
        """What `PROTOCOLS` holds can be drawn as well."""
        for protocol in PROTOCOLS.values():
            make = drawn(profiles=[vars(protocol)])
            assert make(batch(16, 1))[0].shape == (1, 1, 4, 4, 4)
