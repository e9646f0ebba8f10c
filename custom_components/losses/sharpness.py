"""The sharpness prior: the variance of the Laplacian, or of filters that are learnt in its place."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional

BORDERS = ("valid", "zeros", "replicate")
REDUCTIONS = ("sum", "mean")


def _check(border: str, cap: float | None = None, reduction: str = "mean") -> None:
    if border not in BORDERS:
        raise ValueError(f"border must be one of {BORDERS}, got {border!r}")
    if cap is not None and not 0 < cap < math.inf:
        raise ValueError(f"cap must be > 0, got {cap}")
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {REDUCTIONS}, got {reduction!r}")


def laplacian_filter(spatial_dims: int, normalised: bool = False, kernel_size: int = 3) -> torch.Tensor:
    """2d at the centre and -1 at the 2d neighbours of a filter `(kernel_size,) * d`, all over 2d if normalised.

    Raises:
        ValueError: on other than 1 to 3 dimensions, an even size or one below 3.
    """
    if spatial_dims not in (1, 2, 3):
        raise ValueError(f"spatial_dims must be 1, 2 or 3, got {spatial_dims}")
    if kernel_size < 3 or kernel_size % 2 == 0:
        raise ValueError(f"kernel_size must be odd and >= 3, got {kernel_size}")
    kernel = torch.zeros((kernel_size,) * spatial_dims)
    centre = (kernel_size // 2,) * spatial_dims
    kernel[centre] = 2 * spatial_dims
    for axis, middle in enumerate(centre):
        for neighbour in (middle - 1, middle + 1):
            kernel[centre[:axis] + (neighbour,) + centre[axis + 1 :]] = -1  # noqa: RUF005 (mypy reads 3.10's grammar)
    return kernel / (2 * spatial_dims) if normalised else kernel


def _responses(image: torch.Tensor, filters: torch.Tensor, border: str) -> torch.Tensor:
    """Correlate each channel of `(B, C, *spatial)` with filters `(L, *kernel)`: `(B, C, L, voxels)`, at least in float32."""
    size, dims = filters.shape[-1], filters.ndim - 1
    if image.ndim != dims + 2:
        raise ValueError(
            f"expected images with {dims} spatial axes (B, C, *spatial), got the shape {tuple(image.shape)}"
        )
    least = size + 1 if border == "valid" else 2  # a variance needs two values
    if min(image.shape[2:]) < least:
        raise ValueError(f"expected at least {least} voxels along each axis, got {tuple(image.shape[2:])}")
    dtype = torch.promote_types(image.dtype, torch.float32)
    x = image.to(dtype).flatten(0, 1)[:, None]
    if border != "valid":
        x = functional.pad(x, [size // 2] * 2 * dims, mode="constant" if border == "zeros" else "replicate")
    convolve = (functional.conv1d, functional.conv2d, functional.conv3d)[dims - 1]
    with torch.autocast(image.device.type, enabled=False):
        responses = convolve(x, filters.to(x)[:, None])
    return responses.reshape(*image.shape[:2], len(filters), -1)


def response_variance(image: torch.Tensor, filters: torch.Tensor, border: str = "valid") -> torch.Tensor:
    """Sharpness V of each image: unbiased variance of its response to each of `filters` `(L, *kernel)`, mean over L, `(B, C)`."""
    _check(border)
    return _responses(image, filters, border).var(-1).mean(-1)


def _minus_sharpness(
    pred: torch.Tensor, target: torch.Tensor | None, cap: float | None, filters: torch.Tensor, border: str
) -> torch.Tensor:
    value = response_variance(pred, filters, border)
    if cap is not None:
        if target is None:
            raise ValueError("cap needs the target, got none")
        if target.shape != pred.shape:
            raise ValueError(f"expected a target of shape {tuple(pred.shape)}, got {tuple(target.shape)}")
        # a constant: what is sharp enough has the gradient 0, for the filters too
        value = torch.minimum(value, cap * response_variance(target, filters, border).detach())
    return -value.mean()


def sharpness_loss(
    pred: torch.Tensor,
    target: torch.Tensor | None = None,
    border: str = "valid",
    normalised: bool = False,
    cap: float | None = None,
) -> torch.Tensor:
    """Functional form of `SharpnessLoss`; arguments and errors as there.

    Example:
        >>> sharpness_loss(torch.eye(4)[None, None])
        tensor(-12.)
    """
    _check(border, cap)
    return _minus_sharpness(pred, target, cap, laplacian_filter(pred.ndim - 2, normalised)[None], border)


def sharpness_filter_term(
    filters: torch.Tensor, sharp: torch.Tensor, smooth: torch.Tensor, border: str = "valid", reduction: str = "sum"
) -> torch.Tensor:
    r"""What keeps learnt filters to their purpose: a small response to smooth patches and a large one to sharp patches.

    .. math:: S = \sum_i \sum_j |W_i * Sm_j|_F^2 - \sum_i \sum_j |W_i * Sh_j|_F^2

    It is quadratic in the filters and has no lower bound, unless their norm is fixed as `LearnableSharpness` does.

    Args:
        filters: W, `(L, *kernel)`.
        sharp: patches Sh with strong edges, `(B, C, *spatial)`.
        smooth: patches Sm without, likewise.
        border: see `SharpnessLoss`.
        reduction: `sum` over filters, patches and voxels (equation 9, for the paper's gamma of 1e-7), or their `mean`, which does
            not depend on how many patches there are and how large.

    Raises:
        ValueError: on another border or reduction, patches of other dimensions or too small.

    Reference:
        V. Cherukuri et al., Deep MR brain image super-resolution using spatio-structural priors, 2020,
        doi:10.1109/TIP.2019.2942510. Equation 9.
    """
    _check(border, reduction=reduction)
    response = [_responses(patches, filters, border).square() for patches in (smooth, sharp)]
    low, high = (r.sum() if reduction == "sum" else r.mean() for r in response)
    return low - high


class SharpnessLoss(nn.Module):
    r"""Minus the variance of the Laplacian, a prior on the network's output: the less, the sharper.

    .. math:: L = -V(Y), \qquad V = \frac{1}{n - 1} \sum_i \left(p_i - \bar p\right)^2, \qquad P = \nabla^2 Y

    for each image and channel, then the mean. The Laplacian of a volume is that in 3D. A constant image has the gradient 0.

    The paper's text filters by [[0, -1, 0], [-1, 4, -1], [0, -1, 0]], its appendix by a quarter of that (equation 20), so that V,
    and what beta is to be, differ by 16. The default is the text's, which is also where its learnt filters start from.

    V grows as the square of the image, without bound. Beside half of the *summed* squared error of a patch of n voxels the total
    has a minimum if beta < (n - 1) / 128, as the Laplacian's gain is at most 8 (2D); the paper's 5e-3 is far below. Beside
    `torch.nn.MSELoss`, which is that over n / 2, the weight is 2 beta / n: 6.25e-6 for 40 x 40, and the bound is about 1 / 64.
    Beside an absolute or a Charbonnier error no weight is small enough: use `cap` there.

    Args:
        border: `valid`: only voxels that have all their neighbours; `zeros`: zeros around the image, as the paper's n = N^2 values
            of P imply, which takes the rim of a bright patch for an edge; `replicate`: the outermost voxels repeated.
        normalised: divide the filter by 2d, 4 in 2D (equation 20).
        cap: count V up to `cap` times that of the target, for each image, then no further: the loss is >= -cap V(target). None as
            in the paper; 1 asks for an output as sharp as the truth.

    Shape:
        `pred`, and `target` where there is a cap: `(B, C, *spatial)`, 1D to 3D, any range; the result is a scalar <= 0, in float32
        for inputs of half precision.

    Raises:
        ValueError: on another border, `cap` <= 0, images that are too small, a cap without target, unlike shapes.

    Example:
        >>> SharpnessLoss(normalised=True)(torch.eye(4)[None, None])
        tensor(-0.7500)

    Reference:
        V. Cherukuri, T. Guo, S. J. Schiff, V. Monga, Deep MR brain image super-resolution using spatio-structural priors, 2020,
        doi:10.1109/TIP.2019.2942510. Equations 5, 19 to 24.
    """

    def __init__(self, border: str = "valid", normalised: bool = False, cap: float | None = None) -> None:
        super().__init__()
        _check(border, cap)
        self.border, self.normalised, self.cap = border, normalised, cap

    def forward(self, pred: torch.Tensor, target: torch.Tensor | None = None) -> torch.Tensor:
        """Minus the sharpness of `pred`, `(B, C, *spatial)`."""
        return sharpness_loss(pred, target, self.border, self.normalised, self.cap)

    def extra_repr(self) -> str:
        """What `print` shows of the loss."""
        return f"border={self.border}, normalised={self.normalised}, cap={self.cap}"


class LearnableSharpness(nn.Module):
    r"""The sharpness prior with filters that are learnt with the network, from the Laplacian on.

    .. math:: L = -V_{mod}(Y) = -\frac{1}{N_L} \sum_{l=1}^{N_L} \mathrm{var}(W_l * Y)

    Hand `parameters()` to the optimizer. Beside it belongs `SharpnessFilterLoss`, which says what the filters are for.

    Larger filters give a larger variance, so nothing in the paper's loss keeps them from growing; its learning rate of 1e-4 and
    its some 5000 steps do. With `fixed_norm`, which is ours, each filter is used at the norm of the Laplacian and only its shape is
    learnt: V and S are then bounded for a given image. A `cap` bounds what the network gains.

    Equation 15 (and 30) gives the filters' gradient by the matrix DV_mod of equation 12; the chain rule, and this code, have
    d^l / N_L of that equation in its place.

    Args:
        spatial_dims: 1 to 3.
        num_filters: N_L, 8 in the paper.
        kernel_size: odd, >= 3, the paper's.
        noise_variance: of the normal noise that is added to the Laplacian at the start, 1e-4 in the paper; without it all filters
            would stay alike.
        border, cap: as for `SharpnessLoss`.
        fixed_norm: use each filter at the norm of the Laplacian; False as in the paper.

    Shape:
        As `SharpnessLoss`.

    Raises:
        ValueError: on arguments out of range, and as `SharpnessLoss`.

    Example:
        >>> LearnableSharpness(2, num_filters=4)(torch.zeros(1, 1, 9, 9))
        tensor(-0., grad_fn=<NegBackward0>)

    Reference:
        V. Cherukuri et al., Deep MR brain image super-resolution using spatio-structural priors, 2020,
        doi:10.1109/TIP.2019.2942510. Equations 8 to 15 and 25 to 30.
    """

    def __init__(
        self,
        spatial_dims: int = 2,
        num_filters: int = 8,
        kernel_size: int = 3,
        noise_variance: float = 1e-4,
        border: str = "valid",
        cap: float | None = None,
        fixed_norm: bool = True,
    ) -> None:
        super().__init__()
        _check(border, cap)
        if num_filters < 1:
            raise ValueError(f"num_filters must be >= 1, got {num_filters}")
        if not 0 <= noise_variance < math.inf:
            raise ValueError(f"noise_variance must be >= 0, got {noise_variance}")
        start = laplacian_filter(spatial_dims, kernel_size=kernel_size).expand(num_filters, *[-1] * spatial_dims)
        self.border, self.cap, self.fixed_norm = border, cap, fixed_norm
        self.norm = float(start[0].norm())
        self.weight = nn.Parameter(start + math.sqrt(noise_variance) * torch.randn(start.shape))

    @property
    def filters(self) -> torch.Tensor:
        """The filters in use, `(num_filters, *kernel)`."""
        if not self.fixed_norm:
            return self.weight
        return self.norm * functional.normalize(self.weight.flatten(1)).view_as(self.weight)

    def forward(self, pred: torch.Tensor, target: torch.Tensor | None = None) -> torch.Tensor:
        """Minus the sharpness of `pred`, `(B, C, *spatial)`."""
        return _minus_sharpness(pred, target, self.cap, self.filters, self.border)

    def extra_repr(self) -> str:
        """What `print` shows of the loss."""
        return f"filters={tuple(self.weight.shape)}, border={self.border}, cap={self.cap}, fixed_norm={self.fixed_norm}"


class SharpnessFilterLoss(nn.Module):
    """`sharpness_filter_term` of a `LearnableSharpness` on the sharpest and the smoothest patches of each batch of targets.

    The paper takes the patches with the strongest and the weakest response to the Laplacian from each training scan, once, and
    leaves out some by eye. Patches of a batch are of the same kind, need no file, and differ from step to step.

    Args:
        sharpness: the module whose filters are learnt.
        count: of sharp and of smooth patches in a batch, >= 1; half of the batch where that is less.
        reduction: `sum` as in the paper, or `mean`.

    Raises:
        ValueError: on arguments out of range, or a batch with one patch only.

    Example:
        >>> sharpness = LearnableSharpness()
        >>> SharpnessFilterLoss(sharpness, count=2)(torch.rand(8, 1, 9, 9), torch.rand(8, 1, 9, 9)).shape
        torch.Size([])
    """

    def __init__(self, sharpness: LearnableSharpness, count: int = 8, reduction: str = "sum") -> None:
        super().__init__()
        _check(sharpness.border, reduction=reduction)
        if count < 1:
            raise ValueError(f"count must be >= 1, got {count}")
        self.sharpness, self.count, self.reduction = sharpness, count, reduction

    def forward(self, pred: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """The filter term on patches of `target`, `(B, C, *spatial)`; `pred` has no part in it."""
        patches = target.detach().flatten(0, 1)[:, None]
        if len(patches) < 2:
            raise ValueError(f"expected at least 2 patches to tell sharp from smooth, got {len(patches)}")
        laplacian = laplacian_filter(target.ndim - 2)[None]
        order = _responses(patches, laplacian, self.sharpness.border).square().sum((1, 2, 3)).argsort()
        count = min(self.count, len(patches) // 2)
        sharp, smooth = patches[order[-count:]], patches[order[:count]]
        return sharpness_filter_term(self.sharpness.filters, sharp, smooth, self.sharpness.border, self.reduction)

    def extra_repr(self) -> str:
        """What `print` shows of the loss."""
        return f"count={self.count}, reduction={self.reduction}"
