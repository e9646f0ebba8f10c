from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from custom_components.acquisition import FieldChange, background_noise, simulate_low_field, tissue_t1
from custom_components.acquisition.low_field import steady_state

N = 400_000  # a standard deviation is then known to about 0.1 %


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def bloch_signal(sequence, tr, te, flip_angle, t1, t2):
    """Oracle: play pulses and relaxation for many TR, spoiling what is transverse before each excitation."""
    z, angle, signal = 1.0, np.deg2rad(flip_angle), 0.0
    for _ in range(4000):
        transverse, z = z * np.sin(angle), z * np.cos(angle)
        if sequence == "spin_echo":  # the 180 degree pulse, TE much shorter than TR
            z = -z
        signal = transverse * np.exp(-te / t2)
        z = 1 + (z - 1) * np.exp(-tr / t1)
    return signal


class TestRelaxation:
    @pytest.mark.parametrize(
        ("tissue", "field", "seconds"),
        [
            ("white_matter", 1.0, 0.583),  # the coefficients that Rooney gives for fields in T
            ("white_matter", 3.0, 0.583 * 3**0.382),
            ("grey_matter", 1.0, 0.857),
            ("grey_matter", 7.0, 0.857 * 7**0.376),
        ],
    )
    def test_t1(self, tissue, field, seconds):
        assert tissue_t1(field, tissue) == pytest.approx(seconds, rel=0.004)

    @pytest.mark.parametrize("sequence", ["gradient_echo", "spin_echo"])
    @pytest.mark.parametrize(
        ("tr", "te", "angle"), [(0.0046, 0.0026, 5), (0.02, 0.003, 30), (2.0, 0.02, 90), (0.5, 0, 60)]
    )
    def test_steady_state_is_where_bloch_ends(self, sequence, tr, te, angle):
        expected = bloch_signal(sequence, tr, te, angle, 0.8, 0.09)
        assert steady_state(sequence, tr, te, angle, 0.8, 0.09) == pytest.approx(expected, rel=1e-6)

    def test_correction(self):
        change = FieldChange(3, 0.5, "gradient_echo", 0.01, 0.004, 20, 0.02, 0.006, 1.1, 0.5, 0.07)
        low = bloch_signal("gradient_echo", 0.02, 0.006, 20, 0.5, 0.07)
        high = bloch_signal("gradient_echo", 0.01, 0.004, 20, 1.1, 0.07)
        assert change.relaxation == pytest.approx(low / high, rel=1e-6)

    def test_defaults_are_white_matter_at_3_and_1_5_tesla(self):
        t1 = 0.583 * np.array([1.5, 3.0]) ** 0.382
        low, high = (bloch_signal("gradient_echo", 0.0046, 0.0026, 5, t, 0.092) for t in t1)
        assert FieldChange().relaxation == pytest.approx(low / high, rel=1e-3)
        assert 1 < FieldChange().relaxation < 2**0.382  # T1 is shorter, by no more than that
        long_tr = FieldChange(sequence="spin_echo", tr=20.0, te=0.02, flip_angle=90)
        assert long_tr.relaxation == pytest.approx(1, abs=1e-6)

    def test_no_change_of_field_is_no_change(self):
        change = FieldChange(3, 3)
        assert (change.relaxation, change.signal_scale, change.snr_ratio, change.added_noise) == (1, 1, 1, 0)


CHANGES = [
    FieldChange(),
    FieldChange(3, 0.5, bandwidth_ratio=0.5),
    FieldChange(7, 3, "spin_echo", 7.0, 0.071, 90, te_low=0.0895),
    FieldChange(3, 3, bandwidth_ratio=2.0),
]


class TestSimulation:
    @pytest.mark.parametrize("change", CHANGES)
    @pytest.mark.parametrize("keep_scale", [True, False])
    def test_signal_and_noise_of_a_constant_phantom(self, change, keep_scale):
        """SNR_l / SNR_h = a f / sqrt(b), where the high field's scan is already noisy; far above the noise it is normal."""
        a, signal, std = change.b_low / change.b_high, 100.0, 0.5
        scan = torch.full((N,), signal) + std * torch.randn(N, generator=generator(1))
        low = simulate_low_field(scan, std, change, keep_scale, generator(2))
        scale = 1.0 if keep_scale else a**2 * change.relaxation
        noise = a * math.sqrt(change.bandwidth_ratio) * std  # as the low field's receiver has it
        noise = noise / (a**2 * change.relaxation) if keep_scale else noise
        assert low.mean() == pytest.approx(math.sqrt((scale * signal) ** 2 + noise**2 - (scale * std) ** 2), rel=1e-3)
        assert low.std() == pytest.approx(noise, rel=0.006)
        snr = (low.mean() / low.std()) / (scan.mean() / scan.std())
        assert snr == pytest.approx(a * change.relaxation / math.sqrt(change.bandwidth_ratio), rel=0.01)
        assert change.snr_ratio == pytest.approx(a * change.relaxation / math.sqrt(change.bandwidth_ratio))

    @pytest.mark.parametrize("signal", [0.0, 0.5, 2.0])
    def test_a_rician_scan_gives_a_rician_one(self, signal):
        """Against the low-field acquisition itself, noise in both channels, where the signal is no larger than the noise."""
        change, std = FieldChange(3, 1), 0.5
        rng = np.random.default_rng(0)
        high = np.abs(signal + std * (rng.normal(size=N) + 1j * rng.normal(size=N)))
        low = simulate_low_field(torch.from_numpy(high), std, change, False, generator())
        noise = std / 3
        expected = np.abs(change.signal_scale * signal + noise * (rng.normal(size=N) + 1j * rng.normal(size=N)))
        levels = [0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99]
        np.testing.assert_allclose(np.quantile(low, levels), np.quantile(expected, levels), rtol=0.03)

    @pytest.mark.parametrize("keep_scale", [True, False])
    def test_equal_fields_are_the_identity(self, keep_scale):
        x = torch.rand(1, 4, 5, 6)
        assert torch.equal(simulate_low_field(x, 0.1, FieldChange(3, 3), keep_scale), x)

    def test_without_noise_only_the_scale_changes(self):
        x, change = torch.rand(1, 4, 5, 6), FieldChange(3, 1)
        assert torch.equal(simulate_low_field(x, 0.0, change), x)
        torch.testing.assert_close(simulate_low_field(x, 0.0, change, False), x * change.signal_scale)

    def test_generator_decides_and_input_stays(self):
        x = torch.rand(1, 4, 5, 6)
        before = x.clone()
        first, same, other = (simulate_low_field(x, 0.1, generator=generator(seed)) for seed in (1, 1, 2))
        assert torch.equal(first, same)
        assert not torch.equal(first, other)
        assert torch.equal(x, before)
        assert first.dtype == torch.float32


class TestBackgroundNoise:
    def phantom(self, std, air=0.5, mask=0.0):
        """A head of three tissues and a soft edge, with Rician noise of one coil, zero where there is a mask."""
        rng = np.random.default_rng(0)
        n = 60
        z, y, x = np.ogrid[:n, :n, :n]
        radius = np.sqrt(((z - 30) / 30) ** 2 + ((y - 30) / 29) ** 2 + ((x - 30) / 28) ** 2)
        edge = np.quantile(radius, 1 - air)
        head = np.clip((edge - radius) / 0.05, 0, 1) * rng.choice([0.25, 0.6, 1.0], size=radius.shape)
        noisy = np.abs(head + std * (rng.normal(size=head.shape) + 1j * rng.normal(size=head.shape)))
        if mask:
            noisy[radius > np.quantile(radius, 1 - mask)] = 0
        return torch.from_numpy(noisy.astype(np.float32))[None]

    @pytest.mark.parametrize("std", [0.005, 0.02, 0.05])
    @pytest.mark.parametrize("air", [0.2, 0.5, 0.8])
    def test_of_a_head_in_air(self, std, air):
        assert background_noise(self.phantom(std, air)) == pytest.approx(std, rel=0.06)

    def test_masked_voxels_do_not_count(self):
        assert background_noise(self.phantom(0.02, 0.7, mask=0.3)) == pytest.approx(0.02, rel=0.06)

    def test_of_whole_numbers(self):
        """A scan on disk: 1000 for the brightest tissue, noise of a few units."""
        assert background_noise((1000 * self.phantom(0.004)).round()) == pytest.approx(4, rel=0.06)

    def test_nothing_but_air(self):
        x = torch.randn(2, N, generator=generator()).norm(dim=0)
        with pytest.raises(ValueError, match="expected noisy air around the head, got none below 20%"):
            background_noise(x)
        x[:4000] = 50.0
        x[4000 : N // 20] = 60.0
        assert background_noise(x) == pytest.approx(1, rel=0.02)

    def test_a_scan_without_air(self):
        brain = self.phantom(0.02, 0.5)
        brain[brain < 0.2] = 0
        with pytest.raises(ValueError, match="got none below 20% of the head's intensity"):
            background_noise(brain)
        with pytest.raises(ValueError, match="got an image without a value above 0"):
            background_noise(torch.zeros(3, 3))


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"b_low": 3.5}, "0 < b_low <= b_high in T, got 3.5 and 3.0"),
        ({"b_low": 0}, "0 < b_low <= b_high in T, got 0 and 3.0"),
        ({"b_high": math.nan}, "0 < b_low <= b_high in T, got 1.5 and nan"),
        ({"sequence": "mprage"}, r"sequence must be one of \('gradient_echo', 'spin_echo'\), got 'mprage'"),
        ({"tissue": "bone"}, "tissue must be one of .*, got 'bone'"),
        ({"flip_angle": 180}, "flip_angle must be between 0 and 180 degrees, got 180"),
        ({"tr": 0}, "tr must be > 0, got 0"),
        ({"t1_low": -1.0}, "t1_low must be > 0, got -1.0"),
        ({"te": -0.1}, "te must be >= 0, got -0.1"),
        ({"bandwidth_ratio": 0}, "bandwidth_ratio must be > 0, got 0"),
        ({"bandwidth_ratio": 0.1}, "expected no more SNR at the low field than at the high one, got 1.75 times"),
    ],
)
def test_bad_changes(kwargs, match):
    with pytest.raises(ValueError, match=match):
        FieldChange(**kwargs)


def test_other_errors():
    with pytest.raises(ValueError, match="a field must be > 0 T, got -1"):
        tissue_t1(-1)
    for std in (-0.1, math.nan):
        with pytest.raises(ValueError, match=f"noise_std must be >= 0, got {std}"):
            simulate_low_field(torch.zeros(2), std, FieldChange(3, 3))


def test_a_change_is_a_value():
    assert replace(FieldChange(), b_low=1.0) == FieldChange(3.0, 1.0)
