"""`AnyScaleInferer` equals one pass of the network with the same condition, within its memory."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import tqdm.auto
from monai.data import MetaTensor
from torch import nn

from custom_components.inferers import AnyScaleInferer
from custom_components.inferers.planning import GIB
from custom_components.inferers.tiling import LiveBytes
from custom_components.networks import AnyScaleSR, ReCNN, acquisition_condition

LR = (13, 9, 11)
TARGETS = {
    "same": (13, 9, 11),
    "x2": (26, 18, 22),
    "x4": (52, 36, 44),
    "x1.5, odd": (19, 14, 17),
    "x1 x1 x3.3": (13, 9, 36),
    "x1 x3 x6": (13, 27, 66),
    "x1.1": (14, 10, 12),
}


@pytest.fixture
def network():
    """A network whose every parameter matters: those that start at 0 too."""
    torch.manual_seed(0)
    network = AnyScaleSR(8, 4, num_features=16)
    for module in (network.detail, network.noise, network.error, *(layer.modulation for layer in network.layers)):
        nn.init.normal_(module.weight, std=0.05)
    return network


def one_pass(network, x, shape, condition=None):
    """Result, noise and expected standard deviation, each `(1, 1, *shape)`."""
    if condition is None:
        condition = acquisition_condition([m / n for m, n in zip(shape, x.shape[2:], strict=True)], [1, 1, 1])
    with torch.no_grad():
        result, noise, error = network(x, shape, condition[None]).split(1, 1)
    return result, noise, error.clamp(max=0.5)


def assert_equal(result, expected):
    assert result.shape == expected.shape
    assert result.dtype == torch.float32
    assert type(result) is torch.Tensor
    assert float((result - expected).abs().max()) <= 1e-5 * float(expected.max() - expected.min())


@pytest.mark.parametrize("memory_gib", [2.0, 0.0005, 0.00015])
@pytest.mark.parametrize("shape", TARGETS.values(), ids=TARGETS)
def test_equals_one_pass(network, shape, memory_gib):
    x = torch.rand(1, 1, *LR)
    before = x.clone()
    result, noise, std = one_pass(network, x, shape)
    assert noise.abs().max() > 0.01 and std.std() > 0.01 * std.mean()
    assert_equal(AnyScaleInferer(memory_gib)(x, network, shape), result)
    assert_equal(AnyScaleInferer(memory_gib, denoising_strength=0.7)(x, network, shape), result - 0.7 * noise)
    for strength in (0, 1):
        both = AnyScaleInferer(memory_gib, denoising_strength=strength, uncertainty=True)(x, network, shape)
        assert_equal(both[:, :1], result - strength * noise)
        assert_equal(both[:, 1:], std)
    assert torch.equal(x, before)


@pytest.mark.parametrize("shape", [(48, 80, 66), (31, 47, 41)], ids=["whole", "not whole"])
@pytest.mark.parametrize("memory_gib", [0.02, 0.002])
def test_stays_within_its_memory(network, shape, memory_gib):
    """The smaller one is a quarter of what 64 values for each LR voxel take."""
    x = torch.rand(1, 1, 24, 40, 33)
    inferer = AnyScaleInferer(memory_gib)
    with LiveBytes() as live:
        result = inferer(x, network, shape)
    parameters = 2 * sum(p.nbytes for p in network.parameters())
    operators = sum(8 * m * n * 5 for m, n in zip(shape, x.shape[2:], strict=True))
    assert live.peak <= memory_gib * GIB + 2 * x.nbytes + result.nbytes + parameters + 6 * operators + 2**16


def test_a_tiny_memory_cuts_windows(network):
    folded = network.folded(torch.zeros(14), LR, (19, 14, 17), maps=False)
    counts = [len(AnyScaleInferer(m).plan((1, 1, *LR), folded).windows) for m in (2.0, 0.00015)]
    assert counts[0] == 1 < counts[1]


def test_what_the_meta_data_say(network):
    """Voxel size from the affine, also an oblique one, slice width and noise where they are known."""
    x, shape = torch.rand(1, 1, *LR), (26, 9, 36)
    factors = [m / n for m, n in zip(shape, LR, strict=True)]
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    affine = torch.eye(4, dtype=torch.float64)
    affine[:3, :3] = torch.from_numpy(turn @ np.diag([0.8, 1.1, 4.5]))
    seen = []
    for meta, known in (
        ({}, ()),
        ({"slice_width": [1.1, None, 0.8]}, ([1.1, None, 0.8],)),
        ({"slice_width": [None] * 3, "noise_std": 0.02}, (None, 0.02)),
        ({"noise_std": None}, ()),
        ({"noise_std": 0.0}, (None, 0.0)),
    ):
        scan = MetaTensor(x, affine=affine, meta=meta)
        expected = one_pass(network, x, shape, acquisition_condition(factors, [0.8, 1.1, 4.5], *known))[0]
        seen.append(AnyScaleInferer()(scan, network, shape))
        assert_equal(seen[-1], expected)
    seen.append(AnyScaleInferer()(x, network, shape))  # without an affine: 1 mm
    assert_equal(seen[-1], one_pass(network, x, shape)[0])
    differences = [float((a - seen[0]).abs().max()) for a in seen]
    assert [d > 1e-4 for d in differences] == [False, True, True, False, True, True]


def test_self_ensemble_is_the_mean_over_mirror_images(network):
    x, shape, axes = torch.rand(1, 1, *LR), (26, 14, 22), (2, 3, 4)
    results, variances = [], []
    for chosen in (c for n in range(4) for c in itertools.combinations(axes, n)):
        result, _, std = one_pass(network, x.flip(chosen), shape)
        results.append(result.flip(chosen))
        variances.append(std.flip(chosen).square())
    assert len(results) == 8
    both = AnyScaleInferer(uncertainty=True, self_ensemble=True)(x, network, shape)
    assert_equal(both[:, :1], torch.stack(results).mean(0))
    assert_equal(both[:, 1:], torch.stack(variances).mean(0).sqrt())
    assert_equal(AnyScaleInferer(self_ensemble=True)(x, network, shape), both[:, :1])
    assert float((both[:, :1] - results[0]).abs().max()) > 1e-3


def test_low_precision_is_of_the_convolutions_alone(network):
    x, shape = torch.rand(1, 1, *LR), (26, 18, 22)
    exact = AnyScaleInferer()(x, network, shape)
    chosen = AnyScaleInferer(amp_dtype="bfloat16")(x, network, shape)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        surrounded = AnyScaleInferer()(x, network, shape)
    assert chosen.dtype == torch.float32
    assert torch.equal(chosen, surrounded)
    for parameter in network.detail.parameters():
        nn.init.zeros_(parameter)
    spline = AnyScaleInferer()(x, network, shape)
    assert 0 < (chosen - exact).abs().max() < 0.03 * (exact - spline).abs().max()
    assert torch.equal(AnyScaleInferer(amp_dtype="bfloat16")(x, network, shape), spline)


def test_leaves_no_trace_on_the_network_and_sees_further_training(network):
    x, shape = torch.rand(1, 1, *LR).requires_grad_(), (19, 14, 17)
    for _ in range(2):
        result = AnyScaleInferer()(x, nn.DataParallel(network), shape)
        assert_equal(result, one_pass(network, x.detach(), shape)[0])
        assert not result.requires_grad and not result.is_inference()
        assert network.training and all(p.requires_grad for p in network.parameters())
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.mul_(1.2)


def test_progress_counts_every_slice_of_every_window(network, monkeypatch):
    bars = []

    class Bar(tqdm.auto.tqdm):
        def close(self):
            bars.append((self.n, self.total))
            super().close()

    monkeypatch.setattr(tqdm.auto, "tqdm", Bar)
    x, shape = torch.rand(1, 1, *LR), (19, 14, 17)
    AnyScaleInferer(progress=True)(x, network, shape)
    AnyScaleInferer(0.00015, progress=True)(x, network, shape)
    AnyScaleInferer()(x, network, shape)
    whole, windows = dict.fromkeys(bars)
    assert whole[0] == whole[1] in LR
    assert windows[0] == windows[1] > max(LR)


@pytest.mark.parametrize(
    ("x", "shape", "match"),
    [
        (torch.rand(2, 1, *LR), (26, 18, 22), r"\(1, 1, X, Y, Z\), got \(2, 1, 13, 9, 11\)"),
        (torch.rand(1, 2, *LR), (26, 18, 22), r"\(1, 1, X, Y, Z\), got \(1, 2, 13, 9, 11\)"),
        (torch.rand(1, 1, 8, 8), (16, 16), r"\(1, 1, X, Y, Z\), got \(1, 1, 8, 8\)"),
        (torch.rand(1, 1, 8, 0, 8), (16, 16, 16), r"without an empty axis, got \(1, 1, 8, 0, 8\)"),
        (torch.rand(1, 1, *LR), None, "shape must have 3 axes, got None"),
        (torch.rand(1, 1, *LR), (26, 18), r"shape must have 3 axes, got \(26, 18\)"),
        (torch.rand(1, 1, *LR), (26, 8, 22), r"at least \(13, 9, 11\) voxels, got \(26, 8, 22\)"),
    ],
)
def test_bad_input(network, x, shape, match):
    with pytest.raises(ValueError, match=match):
        AnyScaleInferer()(x, network, shape)


def test_bad_arguments(network):
    for strength in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=rf"denoising_strength must be in \[0, 1\], got {strength}"):
            AnyScaleInferer(denoising_strength=strength)
    with pytest.raises(TypeError, match="network must be an AnyScaleSR, got ReCNN"):
        AnyScaleInferer()(torch.rand(1, 1, *LR), ReCNN(3, num_layers=2), (26, 18, 22))
    with pytest.raises(ValueError, match=r"memory_gib must be >= 0\.\d+ for this network on \(13, 9, 11\), got 1e-06"):
        AnyScaleInferer(1e-6)(torch.rand(1, 1, *LR), network, (26, 18, 22))
