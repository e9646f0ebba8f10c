"""Noise of magnitude MR images."""

from __future__ import annotations

import torch


def _normal_like(x: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
    return torch.randn(x.shape, dtype=x.dtype, device=x.device, generator=generator)


def _check(std: float) -> None:
    if not std >= 0:
        raise ValueError(f"std must be >= 0, got {std}")


def add_gaussian_noise(x: torch.Tensor, std: float, generator: torch.Generator | None = None) -> torch.Tensor:
    """`y = x + n`, n normal with standard deviation `std` in the units of `x`; any shape."""
    _check(std)
    return x + std * _normal_like(x, generator)


def add_rician_noise(x: torch.Tensor, std: float, generator: torch.Generator | None = None) -> torch.Tensor:
    """`y = sqrt((x + n_1)^2 + n_2^2)`: the magnitude of a complex signal with normal noise of `std` in both parts.

    A magnitude cannot be negative; where the input is, by the overshoot of an interpolation, its sign is kept.

    Reference:
        H. Gudbjartsson, S. Patz, The Rician distribution of noisy MRI data, 1995, doi:10.1002/mrm.1910340618.
    """
    _check(std)
    if std == 0:
        return x
    real = x + std * _normal_like(x, generator)
    imaginary = std * _normal_like(x, generator)
    return torch.where(x < 0, real, torch.hypot(real, imaginary))
