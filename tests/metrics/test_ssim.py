from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage as ndi
import torch

from custom_components.metrics import VolumeSSIM


def _pair(shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    truth = torch.rand(shape, generator=generator)
    return truth + 0.1 * torch.randn(shape, generator=generator), truth


def _oracle(image: np.ndarray, truth: np.ndarray, data_range: float) -> float:
    """The formula, in float64, with scipy's box filter; the border of 3 voxels is left out."""
    image, truth = image.astype(np.float64), truth.astype(np.float64)
    n = 7**image.ndim
    mean = lambda v: ndi.uniform_filter(v, 7)  # noqa: E731
    mx, my = mean(truth), mean(image)
    vx, vy, vxy = (
        (mean(a * b) - mean(a) * mean(b)) * n / (n - 1) for a, b in ((truth, truth), (image, image), (truth, image))
    )
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    ssim = (2 * mx * my + c1) * (2 * vxy + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    return float(ssim[(slice(3, -3),) * image.ndim].mean())


@pytest.mark.parametrize("shape", [(2, 1, 15, 14, 13), (1, 2, 21, 20)])
@pytest.mark.parametrize("data_range", [1.0, 3.0])
def test_formula(shape: tuple[int, ...], data_range: float) -> None:
    image, truth = _pair(shape)
    values = VolumeSSIM(data_range)(image, truth)
    assert values.shape == shape[:2]
    for b in range(shape[0]):
        for c in range(shape[1]):
            expected = _oracle(image[b, c].numpy(), truth[b, c].numpy(), data_range)
            assert float(values[b, c]) == pytest.approx(expected, abs=1e-5)


def test_mean_over_scans_of_different_sizes() -> None:
    metric = VolumeSSIM()
    values = [float(metric(*_pair(shape))) for shape in ((1, 1, 9, 9, 9), (1, 1, 12, 8, 10))]
    assert float(metric.aggregate()) == pytest.approx(np.mean(values))


def test_one_on_equality() -> None:
    _, truth = _pair((1, 1, 9, 9, 9))
    assert float(VolumeSSIM()(truth, truth)) == pytest.approx(1)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="data_range must be positive, got 0"):
        VolumeSSIM(0)
    with pytest.raises(ValueError, match=r"at least 7 voxels along each axis, got \(9, 6, 9\)"):
        VolumeSSIM()(torch.zeros(1, 1, 9, 6, 9), torch.zeros(1, 1, 9, 6, 9))
    with pytest.raises(ValueError, match="shapes dont match"):
        VolumeSSIM()(torch.zeros(1, 1, 9, 9, 9), torch.zeros(1, 1, 9, 9, 8))
