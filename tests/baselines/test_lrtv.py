from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy.optimize import minimize
from skimage.restoration import denoise_tv_chambolle

from custom_components.acquisition import SeparableOperator, acquisition_operator
from custom_components.baselines import LRTV, Interpolation
from custom_components.baselines.lrtv import (
    _adjoint_gradient,
    _gradient,
    shrink_singular_values,
    shrink_variation,
)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def psnr(image: torch.Tensor, truth: torch.Tensor) -> float:
    return float(-10 * torch.log10((image - truth).square().mean()))


def variation(x: npt.NDArray[np.float64]) -> float:
    """Isotropic total variation with forward differences."""
    differences = [np.diff(x, axis=a, append=x.take([-1], axis=a)) for a in range(x.ndim)]
    return float(np.sqrt(np.sum(np.square(differences), axis=0)).sum())


def trace_norms(x: npt.NDArray[np.float64]) -> float:
    """Mean over the axes of the trace norm of the unfolding."""
    return float(np.mean([np.linalg.norm(np.moveaxis(x, a, 0).reshape(n, -1), "nuc") for a, n in enumerate(x.shape)]))


def objective(x: torch.Tensor, y: torch.Tensor, acquire: SeparableOperator, rank: float, tv: float) -> float:
    image = x[0, 0].numpy()
    return float((acquire(x) - y).square().sum()) + rank * trace_norms(image) + tv * variation(image)


def independent_minimum(
    y: torch.Tensor, shape: tuple[int, ...], acquire: SeparableOperator, rank: float, tv: float, soft: float
) -> torch.Tensor:
    """The same objective with its corners rounded by `soft`, by L-BFGS from nothing."""

    def rounded(flat: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        x = torch.from_numpy(flat).reshape(1, 1, *shape).requires_grad_()
        total = (acquire(x) - y).square().sum()
        squares = 0
        for axis in range(len(shape)):
            s = torch.linalg.svdvals(x[0, 0].movedim(axis, 0).flatten(1))
            total = total + rank / len(shape) * (s.square() + soft**2).sqrt().sum()
            last = x[0, 0].narrow(axis, shape[axis] - 1, 1)
            squares = squares + torch.diff(x[0, 0], dim=axis, append=last).square()
        total = total + tv * (squares + soft**2).sqrt().sum()
        (slope,) = torch.autograd.grad(total, x)
        return float(total.detach()), slope.numpy().ravel()

    start = Interpolation()(y, shape).numpy().ravel()
    options = {"maxiter": 20000, "maxfun": 40000, "maxcor": 30, "ftol": 1e-15, "gtol": 1e-9}
    found = minimize(rounded, start, jac=True, method="L-BFGS-B", options=options)
    return torch.from_numpy(found.x).reshape(1, 1, *shape)


@pytest.mark.parametrize(("shape", "axis"), [((6, 9), 0), ((6, 9), 1), ((5, 6, 4), 0), ((5, 6, 4), 1), ((3, 2, 8), 2)])
def test_singular_values_are_shrunk_as_by_numpy(shape: tuple[int, ...], axis: int) -> None:
    x = random(*shape)
    moved = np.moveaxis(x.numpy(), axis, 0)
    u, s, vt = np.linalg.svd(moved.reshape(shape[axis], -1), full_matrices=False)
    threshold = float(s[:2].mean()) if len(s) == 2 else float(np.median(s[1:]))
    assert (s < threshold).any() and (s > threshold).any()
    expected = np.moveaxis(((u * np.maximum(s - threshold, 0)) @ vt).reshape(moved.shape), 0, axis)
    np.testing.assert_allclose(shrink_singular_values(x, axis, threshold).numpy(), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("shape", [(5, 7), (4, 1, 6)])
def test_gradient_and_its_adjoint(shape: tuple[int, ...]) -> None:
    x, field = random(*shape), [random(*shape, seed=i + 1) for i in range(len(shape))]
    left = sum(float((g * p).sum()) for g, p in zip(_gradient(x), field, strict=True))
    assert left == pytest.approx(float((x * _adjoint_gradient(field)).sum()), abs=1e-12)
    assert float(torch.stack(_gradient(x)).square().sum(0).sqrt().sum()) == pytest.approx(variation(x.numpy()))


@pytest.mark.parametrize("shape", [(12, 10), (6, 7, 5)])
def test_variation_is_shrunk_as_by_skimage(shape: tuple[int, ...]) -> None:
    """skimage runs Chambolle's fixed point on the same dual; both are run long."""
    x, threshold = random(*shape), 0.15
    result, field = shrink_variation(x, threshold, [torch.zeros_like(x) for _ in shape], steps=3000)
    expected = denoise_tv_chambolle(x.numpy(), weight=threshold, eps=1e-12, max_num_iter=20000)
    np.testing.assert_allclose(result.numpy(), expected, rtol=0, atol=2e-4)
    assert torch.stack(field).square().sum(0).sqrt().max() <= threshold * (1 + 1e-9)


@pytest.mark.parametrize(
    ("shape", "lr_shape", "rank", "tv"),
    [
        ((8, 8), (4, 4), 0.02, 0.01),
        ((8, 8), (4, 4), 0.05, 0.0),
        ((8, 8), (4, 4), 0.0, 0.03),
        ((4, 4, 6), (4, 4, 2), 0.02, 0.01),
    ],
)
def test_minimum_is_that_of_an_independent_solver(
    shape: tuple[int, ...], lr_shape: tuple[int, ...], rank: float, tv: float
) -> None:
    y = random(1, 1, *lr_shape)
    acquire = acquisition_operator(shape, lr_shape)
    solve = LRTV(lambda_rank=rank, lambda_tv=tv, rho=0.1, max_iterations=4000, tolerance=1e-9)
    x = solve(y, shape)
    other = independent_minimum(y, shape, acquire, rank, tv, soft=1e-4)

    def value(image: torch.Tensor) -> float:
        return objective(image, y, acquire, rank, tv)

    assert value(x) <= value(other) + 1e-5
    assert value(x) >= value(other) - 1e-2 * value(other)  # rounding by `soft` may cost the other that much
    start = Interpolation()(y, shape)
    assert value(start) > 1.05 * value(x)


def test_minimum_does_not_depend_on_rho() -> None:
    y, shape = random(1, 1, 4, 5), (8, 10)
    few = LRTV(lambda_rank=0.02, lambda_tv=0.01, rho=0.05, max_iterations=4000, tolerance=1e-10)(y, shape)
    many = LRTV(lambda_rank=0.02, lambda_tv=0.01, rho=0.5, max_iterations=4000, tolerance=1e-10)(y, shape)
    torch.testing.assert_close(few, many, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("lr_shape", "shape"), [((8, 7), (16, 14)), ((5, 6, 4), (5, 6, 12))])
def test_small_weights_give_back_the_scan(lr_shape: tuple[int, ...], shape: tuple[int, ...]) -> None:
    lr = random(1, 1, *lr_shape).float()
    acquire = acquisition_operator(shape, lr_shape)

    def error(scale: float) -> float:
        solve = LRTV(lambda_rank=scale, lambda_tv=scale, rho=10 * scale, tolerance=1e-6)
        return float((acquire(solve(lr, shape)) - lr).abs().max())

    assert error(1e-5) < 2e-3 < error(1e-1)


def test_low_rank_is_found_and_large_weights_lower_it() -> None:
    """A rank-1 image from a 2 x 2 smaller scan: the trace norm alone leaves it at rank 1."""
    hr = torch.outer(torch.linspace(0.2, 1, 16), 0.5 + 0.5 * torch.cos(torch.arange(12) / 3)).double()[None, None]
    lr = acquisition_operator((16, 12), (8, 6))(hr)
    s = np.linalg.svd(
        LRTV(lambda_rank=1e-3, lambda_tv=0, tolerance=1e-8, max_iterations=1000)(lr, (16, 12))[0, 0].numpy(),
        compute_uv=False,
    )
    assert s[1] < 1e-3 * s[0]
    noisy = lr + 0.1 * torch.randn(lr.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ranks = []
    for weight in (1e-3, 0.3):
        found = LRTV(lambda_rank=weight, lambda_tv=0, rho=0.1, tolerance=1e-8, max_iterations=2000)(noisy, (16, 12))
        values = np.linalg.svd(found[0, 0].numpy(), compute_uv=False)
        ranks.append(int((values > 1e-3 * values[0]).sum()))
    assert ranks[1] < ranks[0]


def blocks(*shape: int) -> torch.Tensor:
    """Nested boxes with edges between LR voxels of any factor here, `(1, 1, *shape)`."""
    image = torch.full(shape, 0.1)
    for step, level in enumerate((0.5, 0.9), 1):
        image[tuple(slice(6 * step, n - 6 * step) for n in shape)] = level
    return image[None, None]


@pytest.mark.parametrize(
    ("shape", "factor"), [((40, 32), (2, 2)), ((28, 32, 28), (2, 2, 2)), ((28, 26, 30), (1, 1, 3))]
)
@pytest.mark.parametrize("protocol", ["gaussian_spline", "box"])
def test_edges_come_out_sharper_than_by_splines(protocol: str, shape: tuple[int, ...], factor: tuple[int, ...]) -> None:
    hr = blocks(*shape)
    lr_shape = [n // f for n, f in zip(shape, factor, strict=True)]
    lr = acquisition_operator(shape, lr_shape, protocol)(hr)
    assert psnr(LRTV(protocol)(lr, shape), hr) > psnr(Interpolation()(lr, shape), hr) + 3


def test_iteration_ends_at_the_tolerance_or_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0

    def counted(x: torch.Tensor, axis: int, threshold: float) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return shrink_singular_values(x, axis, threshold)

    def iterations(tolerance: float) -> int:
        nonlocal calls
        calls = 0
        LRTV(max_iterations=40, tolerance=tolerance)(random(1, 1, 6, 6), (12, 12))
        return calls // 2

    monkeypatch.setattr("custom_components.baselines.lrtv.shrink_singular_values", counted)
    assert iterations(0) == 40
    assert 1 < iterations(1e-2) < iterations(1e-3) < 40


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"protocol": "mri"}, "protocol must be one of .*, got 'mri'"),
        ({"lambda_rank": -1}, "weights must be >= 0 and one of them > 0, got -1 and 0.0001"),
        ({"lambda_rank": 0, "lambda_tv": 0}, "weights must be >= 0 and one of them > 0, got 0 and 0"),
        ({"rho": 0}, "rho must be > 0, got 0"),
        ({"max_iterations": 0}, "max_iterations must be >= 1, got 0"),
        ({"tolerance": float("nan")}, "tolerance must be >= 0, got nan"),
    ],
)
def test_bad_arguments(arguments: dict[str, object], message: str) -> None:
    make: Callable[..., LRTV] = LRTV
    with pytest.raises(ValueError, match=message):
        make(**arguments)
