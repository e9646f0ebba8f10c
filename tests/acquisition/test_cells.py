"""Cell averages against numerical quadrature, and what makes grids agree with each other."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest
import torch
from numpy.polynomial.legendre import leggauss, legval

from custom_components.acquisition import cell_average_matrix, sub_voxel_matrix

GRIDS = [(1, 1), (3, 3), (3, 6), (4, 5), (5, 12), (2, 7), (7, 10), (6, 29), (11, 13)]
IDS = [f"{n}to{m}" for n, m in GRIDS]


def coefficients(n, degree):
    return np.random.default_rng(0).normal(size=(n, degree + 1))


def averages(c, n_hr):
    """Mean over each HR voxel by Gauss quadrature between the borders of both grids, which are exact fractions."""
    n, count = c.shape
    points, weights = leggauss(count)
    norms = np.sqrt(2 * np.arange(count) + 1)
    result = []
    for j in range(n_hr):
        low, high = Fraction(j * n, n_hr), Fraction((j + 1) * n, n_hr)
        borders = [low, *(Fraction(i) for i in range(n + 1) if low < i < high), high]
        total = 0.0
        for a, b in itertools.pairwise(borders):
            t = float(a - int(a)) + float(b - a) * (points + 1) / 2
            total += float(b - a) / 2 * (weights * legval(2 * t - 1, c[int(a)] * norms)).sum()
        result.append(total / float(high - low))
    return np.array(result)


@pytest.mark.parametrize("degree", [0, 1, 3, 5])
@pytest.mark.parametrize(("n", "n_hr"), GRIDS, ids=IDS)
def test_is_the_average_of_the_polynomial(n, n_hr, degree):
    matrix, c = cell_average_matrix(n, n_hr, degree), coefficients(n, degree)
    assert matrix.shape == (n_hr, n * (degree + 1))
    assert matrix.dtype == torch.float64
    np.testing.assert_allclose(matrix.numpy() @ c.ravel(), averages(c, n_hr), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("n", "n_hr"), GRIDS, ids=IDS)
def test_a_constant_stays(n, n_hr):
    c = torch.zeros(n, 4, dtype=torch.float64)
    c[:, 0] = 0.7
    torch.testing.assert_close(
        cell_average_matrix(n, n_hr) @ c.ravel(), torch.full((n_hr,), 0.7, dtype=torch.float64), rtol=0, atol=1e-14
    )


@pytest.mark.parametrize(("n", "coarse", "times"), [(5, 10, 2), (3, 3, 4), (4, 5, 3), (7, 16, 2)])
def test_grids_agree(n, coarse, times):
    """The mean of a block of the fine grid is the voxel of the coarse one."""
    fine = cell_average_matrix(n, coarse * times)
    torch.testing.assert_close(
        fine.reshape(coarse, times, -1).mean(1), cell_average_matrix(n, coarse), rtol=0, atol=1e-13
    )


@pytest.mark.parametrize("degree", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("factor", [1, 2, 3, 4, 5, 6])
def test_any_values_can_be_written_up_to_the_degree_and_no_more(factor, degree):
    matrix = sub_voxel_matrix(factor, degree)
    assert torch.linalg.matrix_rank(matrix) == min(factor, degree + 1)
    values = torch.from_numpy(np.random.default_rng(1).normal(size=factor))
    best = torch.linalg.lstsq(matrix, values, driver="gelsd").solution
    residual = (matrix @ best - values).abs().max()
    assert (residual < 1e-10) == (factor <= degree + 1)


def test_polynomials_are_orthonormal():
    """In the limit of many HR voxels the averages are the values."""
    matrix = sub_voxel_matrix(4000, 3)
    torch.testing.assert_close(matrix.T @ matrix / 4000, torch.eye(4, dtype=torch.float64), rtol=0, atol=1e-5)
    assert (matrix[-1] > 0).all()  # P_k(1) > 0, as numpy's
    assert torch.equal(matrix[0] > 0, torch.tensor([True, False, True, False]))


@pytest.mark.parametrize("factor", [1, 2, 3, 5])
def test_whole_factors_are_one_block_per_lr_voxel(factor):
    expected = np.kron(np.eye(6), sub_voxel_matrix(factor, 2).numpy())
    np.testing.assert_allclose(cell_average_matrix(6, 6 * factor, 2), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ((4, 3), "expected 1 <= n <= n_hr, got 4 and 3"),
        ((0, 3), "expected 1 <= n <= n_hr, got 0 and 3"),
        ((2, 4, -1), "degree must be >= 0, got -1"),
    ],
)
def test_errors(arguments, match):
    with pytest.raises(ValueError, match=match):
        cell_average_matrix(*arguments)
