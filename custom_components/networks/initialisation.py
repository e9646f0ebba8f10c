"""How the weights of the networks start."""

from __future__ import annotations

import torch
from torch import nn


def initialise_(module: nn.Module, initialisation: str | float = "msra") -> None:
    """Set the weights of a convolution in place as Caffe's fillers do; its bias becomes 0.

    Args:
        module: a convolution; other modules are left alone.
        initialisation: `msra` (normal, std sqrt(2 / fan_in)), `xavier` (uniform in +-sqrt(3 / fan_in)) or the standard deviation
            of a normal distribution, 0.001 and 0.01 in the paper.

    Raises:
        ValueError: on any other value.

    Reference:
        C.-H. Pham et al., section 3.4.
    """
    named = initialisation in ("msra", "xavier")
    number = type(initialisation) in (int, float)  # no bool
    if not named and not (number and float(initialisation) > 0):
        raise ValueError(
            f"initialisation must be 'msra', 'xavier' or a positive standard deviation, got {initialisation!r}"
        )
    if not isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        return
    fan_in = module.weight[0].numel()
    if initialisation == "msra":
        nn.init.normal_(module.weight, std=(2 / fan_in) ** 0.5)
    elif initialisation == "xavier":
        bound = (3 / fan_in) ** 0.5
        nn.init.uniform_(module.weight, -bound, bound)
    else:
        nn.init.normal_(module.weight, std=float(initialisation))
    if module.bias is not None:
        nn.init.zeros_(module.bias)


def icnr_(convolution: nn.Module, positions: int) -> None:
    """Make the filters of a sub-pixel convolution equal within each HR block in place: training starts without a checkerboard.

    Args:
        convolution: the one before the shuffle, whose consecutive filters make one HR block; its bias is left alone.
        positions: voxels of a HR block, factor^d; of as many filters the first is repeated.

    Reference:
        A. Aitken et al., Checkerboard artifact free sub-pixel convolution, 2017, arXiv:1707.02937.
    """
    weight = convolution.get_parameter("weight")
    with torch.no_grad():
        weight.copy_(weight[::positions].repeat_interleave(positions, 0))
