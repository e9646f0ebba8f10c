from __future__ import annotations

import re

import numpy as np
import pytest
import scipy.ndimage as ndi
import torch

from custom_components.acquisition import interpolation_operator
from custom_components.baselines import LRTV, Interpolation, NonLocalMeansUpsampling

BASELINES = {
    "interpolation": Interpolation(),
    "nonlocal means": NonLocalMeansUpsampling(strengths=(0.1, 0.05), max_iterations=1, distance=1),
    "lrtv": LRTV(max_iterations=5),
}


@pytest.fixture(params=BASELINES, ids=str)
def baseline(request: pytest.FixtureRequest) -> torch.nn.Module:
    return BASELINES[request.param]


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", ["nearest", "linear", "cubic", "bspline"])
def test_interpolation_is_the_operator(kind: str) -> None:
    lr = random(2, 1, 5, 6, 4)
    torch.testing.assert_close(
        Interpolation(kind)(lr, (10, 9, 4)), interpolation_operator((5, 6, 4), (10, 9, 4), kind)(lr), rtol=0, atol=0
    )


@pytest.mark.parametrize("shape", [(12, 14), (11, 17), (12, 14, 10)])
@pytest.mark.parametrize(("kind", "order"), [("linear", 1), ("bspline", 3)])
def test_interpolation_equals_scipy(kind: str, order: int, shape: tuple[int, ...]) -> None:
    lr = random(6, 7, 5)[(..., *[slice(None)] * (3 - len(shape)))] if len(shape) == 3 else random(6, 7)
    zoom = [n / m for n, m in zip(shape, lr.shape, strict=True)]
    expected = ndi.zoom(lr.double().numpy(), zoom, order=order, grid_mode=True, mode="nearest")
    result = Interpolation(kind)(lr[None, None], shape)[0, 0]
    np.testing.assert_allclose(result.numpy(), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize(("lr_shape", "shape"), [((6, 7), (12, 14)), ((5, 6, 4), (5, 6, 12)), ((5, 6, 4), (5, 6, 4))])
def test_shapes_and_images_by_themselves(
    baseline: torch.nn.Module, lr_shape: tuple[int, ...], shape: tuple[int, ...]
) -> None:
    """Each image of a batch is what it is alone, but for the rounding of a sum in other order; axes of factor 1 work."""
    lr = random(2, 1, *lr_shape)
    result = baseline(lr, shape)
    assert result.shape == (2, 1, *shape) and result.dtype == torch.float32
    alone = torch.cat([baseline(image, shape) for image in lr.split(1)])
    torch.testing.assert_close(result, alone, rtol=0, atol=1e-5)
    assert list(baseline.parameters()) == []


@pytest.mark.parametrize("value", [0.0, 0.4, -0.2])
@pytest.mark.parametrize(("lr_shape", "shape"), [((6, 7), (12, 14)), ((5, 6, 4), (5, 12, 12))])
def test_a_constant_stays(
    baseline: torch.nn.Module, lr_shape: tuple[int, ...], shape: tuple[int, ...], value: float
) -> None:
    """Also for LRTV, whose trace norm pulls a constant towards 0: by its weight, not more."""
    result = baseline(torch.full((1, 1, *lr_shape), value), shape)
    torch.testing.assert_close(result, torch.full((1, 1, *shape), value), rtol=0, atol=5e-3)
    if not isinstance(baseline, LRTV):
        torch.testing.assert_close(result, torch.full((1, 1, *shape), value), rtol=0, atol=1e-5)


def test_background_of_zeros_stays_finite(baseline: torch.nn.Module) -> None:
    lr = torch.zeros(1, 1, 8, 8, 8)
    lr[..., 3:5, 3:5, 3:5] = random(2, 2, 2)
    result = baseline(lr, (16, 16, 16))
    assert torch.isfinite(result).all()
    assert result[..., 0, 0, 0].abs() < 0.02 < result.max()


def test_bad_input(baseline: torch.nn.Module) -> None:
    with pytest.raises(ValueError, match=re.escape("expected a shape of at least (4, 5), got (8, 4)")):
        baseline(random(1, 1, 4, 5), (8, 4))
    with pytest.raises(ValueError, match=re.escape("expected a shape of at least (4, 5), got (8, 8, 8)")):
        baseline(random(1, 1, 4, 5), (8, 8, 8))
    with pytest.raises(ValueError, match=re.escape("with 2 or 3 spatial axes, got (1, 4, 5)")):
        baseline(random(1, 4, 5), (8,))
    with pytest.raises(TypeError, match=r"expected an image of floating point, got torch\.int64"):
        baseline(torch.zeros(1, 1, 4, 5, dtype=torch.int64), (8, 10))


def test_unknown_kind() -> None:
    with pytest.raises(ValueError, match=r"kind must be one of .*, got 'sinc'"):
        Interpolation("sinc")
