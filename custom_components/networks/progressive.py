"""Upsampling by 4 or 8 as a row of networks that each double the size."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .residual_upsampling import expect_shape
from .rrdb import RRDBNet

_STEPS = {2: 1, 4: 2, 8: 3}

torch.fx.wrap("expect_shape")  # it holds for the names of one module; see there


class ProgressiveRRDBNet(nn.Module):
    r"""Generators of ESRGAN in a row, each of which doubles the size of the image before it.

    .. math:: X_0 = Z, \quad X_k = G_k(X_{k-1}), \; k = 1 \dots \log_2 s, \qquad \hat X = X_{\log_2 s}

    The thesis proposes it as future work, "three consecutive x2 operations" in place of one of x8, and says no more. Here the last
    image alone is trained on, as it has no word of losses on the others; a x2 network that is trained already may start each step
    (`custom_components.pretrained.load_steps`).

    Every step looks at an image, not at the features of the step before: a step can be run, looked at and replaced by itself.

    Args:
        spatial_dims: 2 or 3.
        scale_factor: s, 2, 4 or 8.
        shared: all steps have the same weights; by default each has its own, as blur and noise differ from step to step.
        step: arguments of `RRDBNet` for each step, but for the factor, which is 2.

    Shape:
        `(B, in_channels, *spatial)` in [0, 1] to `(B, 1, *(scale_factor * spatial))`; above factor 2 `in_channels` is 1.

    Raises:
        ValueError: on arguments out of range; on call, when the wished shape is not the one that it makes.

    Example:
        >>> network = ProgressiveRRDBNet(2, scale_factor=8, num_blocks=1, num_filters=8, growth=4)
        >>> network(torch.rand(1, 1, 6, 7)).shape, [x.shape[2] for x in network.images(torch.rand(1, 1, 6, 7))]
        (torch.Size([1, 1, 48, 56]), [12, 24, 48])

    References:
        A bachelor's thesis at Universitat Pompeu Fabra on super-resolution of fetal MRI by ESRGAN, section 4. It follows D.
        Mahapatra, B. Bozorgtabar, Progressive generative adversarial networks for medical image super resolution, 2019,
        arXiv:1902.02144.
    """

    def __init__(self, spatial_dims: int, scale_factor: int = 8, shared: bool = False, **step: Any) -> None:
        super().__init__()
        if scale_factor not in _STEPS:
            raise ValueError(f"scale_factor must be one of {tuple(_STEPS)}, got {scale_factor}")
        count = _STEPS[scale_factor]
        if count > 1 and step.get("in_channels", 1) != 1:
            raise ValueError(f"in_channels must be 1 above factor 2, as steps give one, got {step['in_channels']}")
        self.scale_factor = scale_factor
        first = RRDBNet(spatial_dims, scale_factor=2, **step)
        others = [first if shared else RRDBNet(spatial_dims, scale_factor=2, **step) for _ in range(count - 1)]
        self.steps = nn.ModuleList([first, *others])

    def forward(self, x: torch.Tensor, shape: list[int] | None = None) -> torch.Tensor:
        """Map `(B, in_channels, *spatial)` to `(B, 1, *(scale_factor * spatial))`; a `shape` given must be this spatial one."""
        expect_shape(x, self.scale_factor, shape)
        for step in self.steps:
            x = step(x)
        return x

    def images(self, x: torch.Tensor) -> list[torch.Tensor]:
        """The result of each step: `(B, 1, *(2^k * spatial))` for k from 1 on."""
        images = []
        for step in self.steps:
            x = step(x)
            images.append(x)
        return images
