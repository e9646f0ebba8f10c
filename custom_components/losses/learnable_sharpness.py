"""The sharpness prior with filters that are learnt in place of the Laplacian."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import nn
from torch.nn import functional

from .sharpness import check_sharpness, laplacian_filter, minus_sharpness, responses, sharpness_filter_term


class Patches(Protocol):
    """Patches `(N, C, *spatial)` to learn the filters from, as `custom_components.sharp_patches.select_patches` gives them."""

    @property
    def sharp(self) -> torch.Tensor:
        """With the strongest response to the Laplacian."""

    @property
    def smooth(self) -> torch.Tensor:
        """With the weakest."""


class LearnableSharpness(nn.Module):
    r"""The sharpness prior with filters that are learnt with the network, from the Laplacian on.

    .. math:: L = -V_{mod}(Y) = -\frac{1}{N_L} \sum_{l=1}^{N_L} \mathrm{var}(W_l * Y)

    Hand `parameters()` to the optimizer. Beside it belongs `SharpnessFilterLoss`, which says what the filters are for.

    Larger filters give a larger variance, so nothing in the paper's loss keeps them from growing; its learning rate of 1e-4 and
    its some 5000 steps do. With `fixed_norm`, which is ours, each filter is used at the norm of the Laplacian and only its shape is
    learnt: V and S are then bounded for a given image. A `cap` bounds what the network gains.

    The filters may stay on the CPU: they are taken to the device of the images in each call, and their gradient comes back.

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
        check_sharpness(border, cap)
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
        return minus_sharpness(pred, target, self.cap, self.filters, self.border)

    def extra_repr(self) -> str:
        """What `print` shows of the loss."""
        return f"filters={tuple(self.weight.shape)}, border={self.border}, cap={self.cap}, fixed_norm={self.fixed_norm}"


class SharpnessFilterLoss(nn.Module):
    """`sharpness_filter_term` of a `LearnableSharpness` on given patches, or on the sharpest and the smoothest of each batch.

    The paper takes the patches with the strongest and the weakest response to the Laplacian from each training scan, once: give
    them as `patches`. Without, they come from the targets of each batch: of the same kind, and others from step to step.

    Given patches are buffers that follow the device of the images by themselves and are no part of the state dict.

    Args:
        sharpness: the module whose filters are learnt.
        patches: an object with `sharp` and `smooth`, `(N, C, *spatial)`, say of `custom_components.sharp_patches.select_patches`.
        count: of sharp and of smooth patches in a batch, >= 1; half of the batch where that is less. Not for given patches.
        reduction: `sum` as in the paper, or `mean`.

    Raises:
        ValueError: on arguments out of range, no patches or patches of other axes than the filters', a batch with one patch only.

    Example:
        >>> sharpness = LearnableSharpness()
        >>> SharpnessFilterLoss(sharpness, count=2)(torch.rand(8, 1, 9, 9), torch.rand(8, 1, 9, 9)).shape
        torch.Size([])

    Reference:
        V. Cherukuri et al., Deep MR brain image super-resolution using spatio-structural priors, 2020,
        doi:10.1109/TIP.2019.2942510. Section III, equation 9.
    """

    sharp: torch.Tensor | None
    smooth: torch.Tensor | None

    def __init__(
        self, sharpness: LearnableSharpness, patches: Patches | None = None, count: int = 8, reduction: str = "sum"
    ) -> None:
        super().__init__()
        check_sharpness(sharpness.border, reduction=reduction)
        if count < 1:
            raise ValueError(f"count must be >= 1, got {count}")
        for kind in ("sharp", "smooth"):
            given = None if patches is None else getattr(patches, kind)
            if given is not None and (given.ndim != sharpness.weight.ndim + 1 or not len(given)):
                axes = sharpness.weight.ndim - 1
                raise ValueError(
                    f"expected {kind} patches (N, C, *spatial) with {axes} spatial axes, got {tuple(given.shape)}"
                )
            self.register_buffer(kind, None if given is None else given.detach(), persistent=False)
        self.sharpness, self.count, self.reduction = sharpness, count, reduction

    def forward(self, pred: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """The filter term on the given patches, else on those of `target`, `(B, C, *spatial)`; `pred` has no part in it."""
        if self.sharp is None or self.smooth is None:
            sharp, smooth = self._extremes(target)
        else:
            # kept there: nobody moves a loss to a device, and a copy in each step would be slow
            self.sharp, self.smooth = sharp, smooth = self.sharp.to(pred.device), self.smooth.to(pred.device)
        return sharpness_filter_term(self.sharpness.filters, sharp, smooth, self.sharpness.border, self.reduction)

    def _extremes(self, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The sharpest and the smoothest patches of a batch, one channel each."""
        patches = target.detach().flatten(0, 1)[:, None]
        if len(patches) < 2:
            raise ValueError(f"expected at least 2 patches to tell sharp from smooth, got {len(patches)}")
        laplacian = laplacian_filter(target.ndim - 2)[None]
        order = responses(patches, laplacian, self.sharpness.border).square().sum((1, 2, 3)).argsort()
        count = min(self.count, len(patches) // 2)
        return patches[order[-count:]], patches[order[:count]]

    def extra_repr(self) -> str:
        """What `print` shows of the loss."""
        source = f"count={self.count}" if self.sharp is None else f"patches={tuple(self.sharp.shape)}"
        return f"{source}, reduction={self.reduction}"
