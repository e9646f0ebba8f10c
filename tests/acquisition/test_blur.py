import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter1d, uniform_filter1d

from custom_components.acquisition import box_matrix, gaussian_matrix
from custom_components.acquisition.blur import FWHM_PER_SIGMA


def full_width_at_half_maximum(profile, step=1.0):
    """Width where a sampled, single-peaked profile crosses half of its maximum, by linear interpolation."""
    profile = np.asarray(profile)
    half, peak = profile.max() / 2, int(profile.argmax())
    left = max(i for i in range(peak) if profile[i] < half)
    right = min(i for i in range(peak, len(profile)) if profile[i] < half)
    start = left + (half - profile[left]) / (profile[left + 1] - profile[left])
    end = right - (half - profile[right]) / (profile[right - 1] - profile[right])
    return (end - start) * step


class TestGaussian:
    @pytest.mark.parametrize("boundary", ["reflect", "nearest", "mirror"])
    @pytest.mark.parametrize("sigma", [0.3, 0.85, 1.0, 2.7])
    @pytest.mark.parametrize("n", [1, 2, 7, 90])
    def test_is_scipys_filter(self, n, sigma, boundary):
        x = np.random.default_rng(0).normal(size=n)
        got = gaussian_matrix(n, sigma, boundary=boundary).numpy() @ x
        np.testing.assert_allclose(got, gaussian_filter1d(x, sigma, mode=boundary), rtol=0, atol=1e-13)

    @pytest.mark.parametrize("truncate", [1.0, 2.5, 6.0])
    def test_truncate(self, truncate):
        x = np.random.default_rng(0).normal(size=40)
        got = gaussian_matrix(40, 1.3, truncate).numpy() @ x
        np.testing.assert_allclose(got, gaussian_filter1d(x, 1.3, truncate=truncate), rtol=0, atol=1e-13)

    @pytest.mark.parametrize("fwhm", [2.0, 3.3, 7.5])
    def test_width_at_half_maximum(self, fwhm):
        row = gaussian_matrix(81, fwhm / FWHM_PER_SIGMA)[40]
        assert full_width_at_half_maximum(row) == pytest.approx(fwhm, rel=0.05)  # linear between samples
        assert pytest.approx(2 * math.sqrt(2 * math.log(2))) == FWHM_PER_SIGMA

    @pytest.mark.parametrize("sigma", [0, -1, math.nan, math.inf])
    def test_errors(self, sigma):
        with pytest.raises(ValueError, match=f"must be positive, got {sigma}"):
            gaussian_matrix(5, sigma)

    def test_truncate_error(self):
        with pytest.raises(ValueError, match="got 1 and 0"):
            gaussian_matrix(5, 1, truncate=0)


class TestBox:
    @pytest.mark.parametrize("boundary", ["reflect", "nearest", "mirror"])
    @pytest.mark.parametrize("width", [1, 3, 5])
    def test_odd_width_is_scipys_uniform_filter(self, width, boundary):
        x = np.random.default_rng(0).normal(size=17)
        got = box_matrix(17, width, boundary).numpy() @ x
        np.testing.assert_allclose(got, uniform_filter1d(x, width, mode=boundary), rtol=0, atol=1e-13)

    @pytest.mark.parametrize("width", [0.4, 1.7, 2, 3.3, 4.9])
    def test_is_the_integral_of_a_piecewise_constant_signal(self, width):
        """The mean over [c - w/2, c + w/2] from the exact antiderivative, in the interior."""
        x = np.random.default_rng(0).normal(size=30)
        edges, integral = np.arange(31) - 0.5, np.concatenate([[0], np.cumsum(x)])
        centres = np.arange(5, 25)
        mean = (
            np.interp(centres + width / 2, edges, integral) - np.interp(centres - width / 2, edges, integral)
        ) / width
        got = box_matrix(30, width).numpy() @ x
        np.testing.assert_allclose(got[5:25], mean, rtol=0, atol=1e-13)

    @pytest.mark.parametrize("factor", [2, 3, 4])
    def test_at_lr_centres_it_is_the_mean_of_whole_voxels(self, factor):
        x = torch.from_numpy(np.random.default_rng(0).normal(size=24))
        centres = torch.arange(24 // factor) * factor + (factor - 1) / 2
        got = box_matrix(24, factor, positions=centres) @ x
        torch.testing.assert_close(got, x.reshape(-1, factor).mean(1), rtol=0, atol=1e-13)

    @pytest.mark.parametrize("width", [0, -2, math.nan, math.inf])
    def test_errors(self, width):
        with pytest.raises(ValueError, match=f"width must be positive, got {width}"):
            box_matrix(5, width)


@pytest.mark.parametrize("matrix", [gaussian_matrix, box_matrix])
@pytest.mark.parametrize("n", [1, 2, 20])
def test_rows_sum_to_one_and_columns_too_by_symmetry(matrix, n):
    """With half-sample reflection blur is symmetric: it keeps the sum of the signal."""
    m = matrix(n, 2.3)
    ones = torch.ones(n, dtype=torch.float64)
    torch.testing.assert_close(m.sum(1), ones, rtol=0, atol=1e-13)
    torch.testing.assert_close(m.sum(0), ones, rtol=0, atol=1e-13)
    torch.testing.assert_close(m, m.T, rtol=0, atol=1e-13)
