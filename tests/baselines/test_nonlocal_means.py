from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage.restoration import denoise_nl_means

from custom_components.acquisition import acquisition_operator
from custom_components.baselines import Interpolation, NonLocalMeansUpsampling
from custom_components.baselines.nonlocal_means import nonlocal_means


def blocks(*shape: int, levels: tuple[float, ...] = (0.1, 0.5, 0.9)) -> torch.Tensor:
    """Nested boxes with edges between LR voxels of any factor here, `(1, 1, *shape)`."""
    image = torch.full(shape, levels[0])
    for step, level in enumerate(levels[1:], 1):
        image[tuple(slice(6 * step, n - 6 * step) for n in shape)] = level
    return image[None, None]


def psnr(image: torch.Tensor, truth: torch.Tensor) -> float:
    return float(-10 * torch.log10((image - truth).square().mean()))


@pytest.mark.parametrize("shape", [(29, 11), (22, 9, 8)])
def test_slabs_make_no_difference(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    whole = denoise_nl_means(x.numpy(), patch_size=3, patch_distance=3, h=0.3, fast_mode=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    np.testing.assert_allclose(nonlocal_means(x, 0.3, 3).numpy(), whole, rtol=0, atol=1e-6)
    assert np.abs(whole - x.numpy()).mean() > 0.05


@pytest.mark.parametrize("shape", [(16, 14), (12, 11, 10)])
def test_the_librarys_filter_with_the_papers_window(shape: tuple[int, ...]) -> None:
    """Patches of 3 and a window of 7 voxels: what lies further away than 4 voxels has no part."""
    x = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    y = nonlocal_means(x, 0.3, 3)
    assert y.std() < 0.7 * x.std()
    changed = x.clone()
    changed[0] = 5
    same = nonlocal_means(changed, 0.3, 3)[5:]
    torch.testing.assert_close(same, y[5:], rtol=0, atol=1e-6)
    assert (nonlocal_means(changed, 3.0, 3)[3] - nonlocal_means(x, 3.0, 3)[3]).abs().max() > 0.1


@pytest.mark.parametrize(
    ("lr_shape", "shape"), [((10, 8), (20, 16)), ((8, 6, 7), (16, 6, 21)), ((6, 8, 4), (12, 12, 8))]
)
@pytest.mark.parametrize("protocol", ["gaussian_spline", "box"])
def test_result_acquired_again_is_the_scan(protocol: str, lr_shape: tuple[int, ...], shape: tuple[int, ...]) -> None:
    lr = torch.rand(1, 1, *lr_shape, generator=torch.Generator().manual_seed(0))
    again = acquisition_operator(shape, lr_shape, protocol)
    result = NonLocalMeansUpsampling(protocol, strengths=(0.1, 0.05), damping=0)(lr, shape)
    torch.testing.assert_close(again(result), lr, rtol=0, atol=2e-5)
    damped = NonLocalMeansUpsampling(protocol, strengths=(0.1, 0.05), damping=0.3)(lr, shape)
    assert (again(damped) - lr).abs().max() > 1e-4


def test_correction_with_the_box_is_the_papers() -> None:
    """It adds the error of each block's mean to all voxels of that block."""
    lr = torch.rand(1, 1, 6, 5, generator=torch.Generator().manual_seed(0))
    start = Interpolation()(lr, (12, 15))
    corrected = start + (lr - start.reshape(1, 1, 6, 2, 5, 3).mean((3, 5))).repeat_interleave(2, 2).repeat_interleave(
        3, 3
    )
    result = NonLocalMeansUpsampling("box", strengths=(1e-4,), max_iterations=1, damping=0)(lr, (12, 15))
    torch.testing.assert_close(result, corrected, rtol=0, atol=1e-5)


def test_weak_filters_keep_a_consistent_start() -> None:
    """An image linear along each axis is what the spline gives inside; with the box no step has a reason to change it there."""
    x = torch.linspace(0, 1, 24)[:, None] + 0.5 * torch.linspace(0, 1, 32)
    lr = acquisition_operator((24, 32), (12, 16), "box")(x[None, None])
    result = NonLocalMeansUpsampling("box", strengths=(2 / 255,), damping=0)(lr, (24, 32))[0, 0]
    torch.testing.assert_close(result[8:-8, 8:-8], x[8:-8, 8:-8], rtol=0, atol=1e-3)


@pytest.mark.parametrize("shape", [(40, 32), (26, 28, 30)])
def test_piecewise_constant_image_is_kept_by_the_filter(shape: tuple[int, ...]) -> None:
    x = blocks(*shape)[0, 0]
    torch.testing.assert_close(nonlocal_means(x, 8 / 255), x, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "factor"), [((40, 32), (2, 2)), ((28, 32, 28), (2, 2, 2)), ((28, 26, 30), (1, 1, 3))]
)
@pytest.mark.parametrize("protocol", ["box", "gaussian_spline"])
def test_edges_come_out_sharper_than_by_splines(protocol: str, shape: tuple[int, ...], factor: tuple[int, ...]) -> None:
    hr = blocks(*shape)
    lr_shape = [n // f for n, f in zip(shape, factor, strict=True)]
    lr = acquisition_operator(shape, lr_shape, protocol)(hr)
    result = NonLocalMeansUpsampling(protocol)(lr, shape)
    assert psnr(result, hr) > psnr(Interpolation()(lr, shape), hr) + 3


def test_steps_end_at_the_tolerance_or_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[float] = []

    def counted(x: torch.Tensor, h: float, distance: int) -> torch.Tensor:
        calls.append(h)
        return nonlocal_means(x, h, distance)

    monkeypatch.setattr("custom_components.baselines.nonlocal_means.nonlocal_means", counted)
    lr = torch.rand(1, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    NonLocalMeansUpsampling(strengths=(0.2, 0.1), max_iterations=3, tolerance=0)(lr, (12, 12))
    assert calls == [0.2] * 3 + [0.1] * 3
    calls.clear()
    NonLocalMeansUpsampling(strengths=(0.2, 0.1), max_iterations=3, tolerance=10)(lr, (12, 12))
    assert calls == [0.2, 0.1]


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match=r"protocol must be one of .*, got 'mri'"):
        NonLocalMeansUpsampling("mri")
    with pytest.raises(ValueError, match=r"strengths must be one or more numbers > 0, got \(\)"):
        NonLocalMeansUpsampling(strengths=())
    with pytest.raises(ValueError, match=r"strengths must be one or more numbers > 0, got \(0.1, 0\)"):
        NonLocalMeansUpsampling(strengths=(0.1, 0))
    with pytest.raises(ValueError, match="max_iterations and distance must be >= 1, got 0 and 3"):
        NonLocalMeansUpsampling(max_iterations=0)
    with pytest.raises(ValueError, match="max_iterations and distance must be >= 1, got 1 and 0"):
        NonLocalMeansUpsampling(distance=0)
    with pytest.raises(ValueError, match="tolerance must be >= 0, got -1"):
        NonLocalMeansUpsampling(tolerance=-1)
    with pytest.raises(ValueError, match="damping must be from 0 to 1, got 2"):
        NonLocalMeansUpsampling(damping=2)
