"""A network on the LR grid whose result can be read on any finer grid, and that is told what is known of the acquisition."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import nn
from torch.nn import functional

from ..acquisition import (
    Protocol,
    SeparableOperator,
    cell_average_matrix,
    interpolation_operator,
    sub_voxel_matrix,
)

NOISE_UNIT = 0.03  # of the [0, 1] scale: a noise level of 3 % is 1 to the network
TOLD, ESTIMATED, ESTIMATED_OF_PATCH = 1.0, 0.75, 0.5  # how sure a width is, as networks are told
CONDITIONS = 14
LEAST_STD = 3e-4  # of expected errors, on the [0, 1] scale


def acquisition_condition(
    scale_factor: Sequence[float],
    spacing: Sequence[float],
    thickness: Sequence[float | None] | None = None,
    noise_std: float | None = None,
    certainty: Sequence[float] = (TOLD, TOLD, TOLD),
) -> torch.Tensor:
    """What is known of an acquisition, as the network takes it: `(14,)` float32.

    Args:
        scale_factor: HR voxels per LR voxel on each of the 3 axes, >= 1.
        spacing: LR voxel size in mm.
        thickness: full width at half maximum of the slice profile in LR voxels, None where it is not known. For another than a
            Gaussian, that of a Gaussian of equal variance (`custom_components.acquisition.Protocol.width`).
        noise_std: standard deviation of the scan's noise, in units of the [0, 1] scale; None: not known.
        certainty: of the thickness on each axis: 1 where it was told, 0.75 where it was estimated from the scan, 0.5 from a patch.

    Raises:
        ValueError: on a wrong number of values, a factor below 1, or a size that is not positive.
    """
    widths = [None] * 3 if thickness is None else list(thickness)
    if not len(scale_factor) == len(spacing) == len(widths) == len(certainty) == 3:
        counts = (
            f"{len(scale_factor)} factors, {len(spacing)} sizes, {len(widths)} widths, {len(certainty)} certainties"
        )
        raise ValueError(f"expected 3 values per axis, got {counts}")
    if not all(f >= 1 for f in scale_factor) or not all(0 < s < math.inf for s in spacing):
        raise ValueError(f"expected factors >= 1 and sizes > 0, got {list(scale_factor)} and {list(spacing)}")
    values: list[float] = []
    for factor, size, width, sure in zip(scale_factor, spacing, widths, certainty, strict=True):
        known = width is not None and factor > 1
        values += [math.log2(factor), math.log2(size), float(width or 0) if known else 0.0, sure if known else 0.0]
    values += [0.0 if noise_std is None else noise_std / NOISE_UNIT, float(noise_std is not None)]
    return torch.tensor(values, dtype=torch.float32)


def reading_matrices(
    lr_shape: Sequence[int], shape: Sequence[int], divisions: Sequence[int], degree: int
) -> list[torch.Tensor | None]:
    """Per axis, what reads interleaved values off on the HR grid; None where they are the HR voxels already."""
    return [
        None if m == n * k else cell_average_matrix(n, m, degree)
        for n, m, k in zip(lr_shape, shape, divisions, strict=True)
    ]


def interleaved(values: torch.Tensor, divisions: Sequence[int]) -> torch.Tensor:
    """The values of each LR voxel, `(B, product of the divisions, *lr)`, side by side: `(B, 1, *(lr * divisions))`, float32."""
    sizes = values.shape[2:]
    x = values.float().reshape(len(values), *divisions, *sizes).permute(0, 4, 1, 5, 2, 6, 3)
    return x.reshape(len(values), 1, *(n * k for n, k in zip(sizes, divisions, strict=True)))


def _weights(layer: nn.Conv3d) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight and bias of a convolution that has both."""
    return layer.weight, cast(torch.Tensor, layer.bias)


def _frozen(weight: torch.Tensor, bias: torch.Tensor) -> nn.Conv3d:
    """A convolution with copies of the weights: to freeze them must not freeze the network that they come from."""
    layer: nn.Conv3d = nn.utils.skip_init(nn.Conv3d, weight.shape[1], weight.shape[0], 3, padding=1)
    layer.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
    layer.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
    return layer


class _MixedConv3d(nn.Conv3d):
    """Convolution of size 3 by a sum of kernels, of which all but the first are weighted by what the condition says."""

    def __init__(self, in_channels: int, out_channels: int, num_features: int, num_kernels: int) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1)
        self.variants = nn.ParameterList(nn.Parameter(torch.zeros_like(self.weight)) for _ in range(num_kernels - 1))
        self.shares = nn.Linear(num_features, num_kernels - 1, bias=False) if num_kernels > 1 else None

    def kernels(self, told: torch.Tensor) -> list[torch.Tensor]:
        """The kernel for each condition `(B, num_features)`, or one for all where there are no variants."""
        if self.shares is None:
            return [self.weight]
        return [
            self.weight + sum(share * variant for share, variant in zip(shares, self.variants, strict=True))
            for shares in self.shares(told).float()
        ]

    def forward(self, x: torch.Tensor, told: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        """Map `(B, C, X, Y, Z)` and features of its conditions `(B, num_features)` to `(B, C', X, Y, Z)`."""
        return _convolved(x, self.kernels(told), self.bias)


def _convolved(x: torch.Tensor, kernels: Sequence[torch.Tensor], bias: torch.Tensor | None) -> torch.Tensor:
    """Each sample `(1, C, X, Y, Z)` of the batch by its kernel, or all by one."""
    samples = x.split(1) if len(kernels) > 1 else [x]
    pairs = zip(samples, kernels, strict=True)
    return torch.cat([functional.conv3d(sample, kernel, bias, padding=1) for sample, kernel in pairs])


class _ConditionedLayer(nn.Module):
    """A rectifier and a convolution, scaled and shifted by the condition, that are added to their input; shapes stay."""

    def __init__(self, num_filters: int, num_features: int, num_kernels: int) -> None:
        super().__init__()
        self.convolution = _MixedConv3d(num_filters, num_filters, num_features, num_kernels)
        self.modulation = nn.Linear(num_features, 2 * num_filters)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)
        with torch.no_grad():
            self.convolution.weight.mul_(0.3)

    def forward(self, x: torch.Tensor, told: torch.Tensor) -> torch.Tensor:
        gain, shift = self.modulation(told)[:, :, None, None, None].chunk(2, 1)
        y: torch.Tensor = x + self.convolution(functional.relu(x), told) * (1 + gain) + shift
        return y

    def folded(self, told: torch.Tensor) -> nn.Sequential:
        """What is added for one condition `(1, num_features)`, as a rectifier and a plain convolution."""
        gain, shift = self.modulation(told)[0].chunk(2)
        (weight,), bias = self.convolution.kernels(told), _weights(self.convolution)[1]
        scaled = _frozen(weight * (1 + gain)[:, None, None, None, None], bias * (1 + gain) + shift)
        return nn.Sequential(nn.ReLU(), scaled)


def _expected_std(features: torch.Tensor, layer: nn.Module) -> torch.Tensor:
    """Standard deviation of the error, `(B, 1, *lr)`, by a convolution of the features' magnitudes `(B, C, *lr)`."""
    std: torch.Tensor = NOISE_UNIT * functional.softplus(layer(features.abs())) + LEAST_STD
    return std


class PlainResidual(nn.Module):
    """An `AnyScaleSR` for one condition and one target: convolutions and pointwise functions, `(B, 1, *lr)` to `(B, C', *lr)`."""

    def __init__(
        self, head: nn.Module, layers: Sequence[nn.Module], tail: nn.Module, error: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.head, self.layers, self.tail, self.error = head, nn.ModuleList(layers), tail, error

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map `(B, 1, *lr)` to `(B, C', *lr)`."""
        first = self.head(x)
        y = first
        for layer in self.layers:
            y = y + layer(y)
        y = y + first
        z: torch.Tensor = self.tail(y)
        return z if self.error is None else torch.cat([z, _expected_std(y, self.error)], 1)


class AnyScaleSR(nn.Module):
    r"""Super-resolution by any factor per axis, computed on the LR grid.

    .. math:: \hat x = U (y - s\, \hat n) + D\, c, \quad (c, \hat n, \hat\sigma) = \text{network}(y, \text{condition})

    `U` is cubic B-spline interpolation. The network gives, for each LR voxel, :math:`(\text{degree} + 1)^3` coefficients `c` of a
    polynomial within that voxel, and `D` reads its averages over the HR voxels (`custom_components.acquisition.
    cell_average_matrix`): a decoder that knows the sub-voxel offset and the size of each voxel, without parameters of its own, so
    that any factor takes the same weights and grids agree with each other. On axes with a whole factor `D` is a product with the
    weights of the last convolution and a rearrangement, which costs nothing.

    The conditional mean of the sharp image is the sum of those of its parts, hence one network of squared errors gives both: `c`
    for a result that keeps the noise as a spline would (denoising strength s = 0), and the noise :math:`\hat n` itself, of which
    any part may be taken away. :math:`\hat\sigma` is the expected standard deviation of the error in the LR voxel (see
    `custom_components.losses.ErrorLikelihoodLoss`): it grows with the magnitudes of the features, as errors are as large at edges
    to dark as at those to bright. No gradient of it goes into the features.

    Each layer adds a convolution of its rectified input (K. He et al., Identity mappings in deep residual networks, 2016,
    arXiv:1603.05027): one rectifier per convolution, where blocks of two with one between learn less at the same cost.

    What is known of the acquisition mixes the kernels (B. Yang et al., CondConv, 2019, arXiv:1904.04971) and scales and shifts what
    each layer adds (FiLM: E. Perez et al., 2018, arXiv:1709.07871). For one scan it is constant, and goes into the weights, so that
    neither costs anything: see `folded`. Features of a condition are the difference from those of a reference, a factor of 2 to
    voxels of 1 mm by a Gaussian of one of these, without noise: there the first kernels are alone.

    Args:
        num_filters: filters of each convolution.
        num_layers: residual layers, each a rectifier and a convolution of size 3.
        degree: of the polynomials; 3 can represent all values up to a factor of 4.
        num_features: width of the two layers that read the condition.
        num_kernels: kernels of each layer's mixture; 1: the same kernel for all conditions.

    Shape:
        `(B, 1, X, Y, Z)` in [0, 1], a shape of three HR sizes and a condition `(B, 14)` to `(B, 3, *shape)`: the result at strength
        0, the noise (to be subtracted from it times the strength) and the expected standard deviation of the result's error.

    Raises:
        ValueError: on arguments out of range; on call, on fewer HR than LR voxels.

    Example:
        >>> condition = acquisition_condition((1.5, 1, 3), (1.2, 0.9, 3), noise_std=0.0)[None]
        >>> AnyScaleSR(8, 1)(torch.rand(1, 1, 8, 10, 4), (12, 10, 12), condition).shape
        torch.Size([1, 3, 12, 10, 12])
    """

    def __init__(
        self,
        num_filters: int = 48,
        num_layers: int = 8,
        degree: int = 3,
        num_features: int = 64,
        num_kernels: int = 1,
    ) -> None:
        super().__init__()
        counts = (num_filters, num_layers, num_features, num_kernels)
        if min(counts) < 1 or degree < 0:
            raise ValueError(
                "num_filters, num_layers, num_features and num_kernels must be >= 1 and degree >= 0, "
                f"got {', '.join(map(str, counts))} and {degree}"
            )
        self.degree = degree
        self.condition = nn.Sequential(
            nn.Linear(CONDITIONS, num_features), nn.ReLU(), nn.Linear(num_features, num_features), nn.ReLU()
        )
        self.head = nn.Conv3d(1, num_filters, 3, padding=1)
        self.layers = nn.ModuleList(
            _ConditionedLayer(num_filters, num_features, num_kernels) for _ in range(num_layers)
        )
        self.detail = _MixedConv3d(num_filters, (degree + 1) ** 3, num_features, num_kernels)
        self.noise = nn.Conv3d(num_filters, 1, 3, padding=1)
        self.error = nn.Conv3d(num_filters, 1, 3, padding=1)
        width = Protocol().width(2)
        self.register_buffer(
            "reference", acquisition_condition([2] * 3, [2] * 3, [width] * 3, 0.0)[None], persistent=False
        )
        for layer in (self.detail, self.noise, self.error):
            for parameter in _weights(layer):
                nn.init.zeros_(parameter)
        nn.init.constant_(_weights(self.error)[1], math.log(math.e - 1))  # softplus of it is 1

    def told(self, condition: torch.Tensor) -> torch.Tensor:
        """Features of conditions `(B, 14)`, by which they mix and modulate: `(B, num_features)`, 0 for the reference."""
        features: torch.Tensor = self.condition(condition) - self.condition(self.reference)
        return features

    def divisions(self, lr_shape: Sequence[int], shape: Sequence[int]) -> tuple[int, ...]:
        """Values per LR voxel and axis that the last convolution gives: the factor where it is whole, else the coefficients.

        Raises:
            ValueError: on fewer HR than LR voxels, or a wrong number of axes.
        """
        if len(shape) != len(lr_shape) or any(m < n for n, m in zip(lr_shape, shape, strict=True)):
            raise ValueError(f"expected a shape of at least {tuple(lr_shape)} voxels, got {tuple(shape)}")
        return tuple(
            m // n if m % n == 0 and m // n <= self.degree + 1 else self.degree + 1
            for n, m in zip(lr_shape, shape, strict=True)
        )

    def _detail_weights(
        self, told: torch.Tensor, lr_shape: Sequence[int], shape: Sequence[int]
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Kernels and bias of the last convolution, with the decoder's part for axes of a whole factor within."""
        decoder = torch.ones(1, 1, dtype=torch.float64)
        for n, m, k in zip(lr_shape, shape, self.divisions(lr_shape, shape), strict=True):
            whole = m == k * n
            decoder = torch.kron(decoder, sub_voxel_matrix(k, self.degree) if whole else torch.eye(k).double())
        _, bias = _weights(self.detail)
        decoder = decoder.to(bias)
        return [torch.tensordot(decoder, kernel, dims=1) for kernel in self.detail.kernels(told)], decoder @ bias

    def decode(self, values: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
        """Values of the last convolution, `(B, product of the divisions, *lr)`, to the HR detail `(B, 1, *shape)`, float32."""
        lr_shape = values.shape[2:]
        divisions = self.divisions(lr_shape, shape)
        matrices = reading_matrices(lr_shape, shape, divisions, self.degree)
        return SeparableOperator(matrices)(interleaved(values, divisions))

    def features(self, x: torch.Tensor, told: torch.Tensor) -> torch.Tensor:
        """Features on the LR grid, `(B, num_filters, *lr)`, of which each output is a convolution; `told`: of the condition."""
        first: torch.Tensor = self.head(x)
        y = first
        for layer in self.layers:
            y = layer(y, told)
        return y + first

    def expected_std(self, features: torch.Tensor) -> torch.Tensor:
        """Expected standard deviation of the error on the LR grid, `(B, 1, *lr)`, by features `(B, num_filters, *lr)`."""
        return _expected_std(features, self.error)

    def forward(self, x: torch.Tensor, shape: Sequence[int], condition: torch.Tensor) -> torch.Tensor:
        """Map `(B, 1, *lr)` and a condition `(B, 14)` to `(B, 3, *shape)`, float32."""
        lr_shape, told = tuple(x.shape[2:]), self.told(condition)
        kernels, bias = self._detail_weights(told, lr_shape, shape)
        y = self.features(x, told)
        detail = self.decode(_convolved(y, kernels, bias), shape)
        grid = interpolation_operator(lr_shape, shape)
        image, noise = grid(x.float()), grid(self.noise(y).float())
        error = interpolation_operator(lr_shape, shape, "linear")(self.expected_std(y.detach()).float())
        return torch.cat([image + detail, noise, error], 1)

    def folded(
        self, condition: torch.Tensor, lr_shape: Sequence[int], shape: Sequence[int], maps: bool = True
    ) -> PlainResidual:
        """The convolutions for one acquisition and target, without a condition.

        Args:
            condition: `(14,)`.
            lr_shape: LR voxels per axis.
            shape: HR voxels per axis.
            maps: whether noise and error, one channel each, follow the values that `decode` takes.
        """
        with torch.no_grad():
            told = self.told(condition[None].to(self.head.weight))
            (weight,), bias = self._detail_weights(told, lr_shape, shape)
            pairs = [(weight, bias)]
            if maps:
                pairs.append(_weights(self.noise))
            tail = _frozen(*(torch.cat(parts) for parts in zip(*pairs, strict=True)))
            branches = [layer.folded(told) for layer in cast("Sequence[_ConditionedLayer]", self.layers)]
            error = _frozen(*_weights(self.error)) if maps else None
        return PlainResidual(_frozen(*_weights(self.head)), branches, tail, error).eval()
