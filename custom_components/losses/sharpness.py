"""The sharpness prior: the variance of the Laplacian, or of given filters."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional

BORDERS = ("valid", "zeros", "replicate")
REDUCTIONS = ("sum", "mean")


def check_sharpness(border: str, cap: float | None = None, reduction: str = "mean") -> None:
    """Refuse an unknown border or reduction and a cap that is not positive, by a `ValueError`."""
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


def responses(image: torch.Tensor, filters: torch.Tensor, border: str) -> torch.Tensor:
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
    check_sharpness(border)
    return responses(image, filters, border).var(-1).mean(-1)


def minus_sharpness(
    pred: torch.Tensor, target: torch.Tensor | None, cap: float | None, filters: torch.Tensor, border: str
) -> torch.Tensor:
    """Minus the sharpness of `pred`, at most `cap` times that of `target`, mean over batch and channels."""
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
    check_sharpness(border, cap)
    return minus_sharpness(pred, target, cap, laplacian_filter(pred.ndim - 2, normalised)[None], border)


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
    check_sharpness(border, reduction=reduction)
    response = [responses(patches, filters, border).square() for patches in (smooth, sharp)]
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
        check_sharpness(border, cap)
        self.border, self.normalised, self.cap = border, normalised, cap

    def forward(self, pred: torch.Tensor, target: torch.Tensor | None = None) -> torch.Tensor:
        """Minus the sharpness of `pred`, `(B, C, *spatial)`."""
        return sharpness_loss(pred, target, self.border, self.normalised, self.cap)

    def extra_repr(self) -> str:
        """What `print` shows of the loss."""
        return f"border={self.border}, normalised={self.normalised}, cap={self.cap}"
