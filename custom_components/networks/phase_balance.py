"""Sub-pixel convolutions without checkerboard: all voxels of an HR block get the same of a constant."""

from __future__ import annotations

import torch
from monai.networks.blocks import SubpixelUpsample
from torch import nn


@torch.no_grad()
def balance_phases_(network: nn.Module) -> None:
    r"""Make the filters of each HR block agree in bias and in the sum over their taps, in place.

    .. math:: W_{k,c} \leftarrow W_{k,c} - \frac1t \left( \Sigma W_{k,c} - \frac1p \sum_j \Sigma W_{j,c} \right), \qquad
        b_k \leftarrow \frac1p \sum_j b_j

    for the p = 2^d phases k of a block, with :math:`\Sigma` the sum over the t taps and c the input channel. It is the nearest set
    of weights for which a constant stays constant behind the shuffle. Weights that start equal within each block (ICNR) satisfy it;
    training takes them away from it, the more the longer, and the more so against a discriminator. It changes no detail: a phase
    keeps its slopes and curvatures.

    Args:
        network: of which every `SubpixelUpsample` is changed; others are left alone.

    Reference:
        Y. Sugawara, S. Shiota, H. Kiya, Super-resolution using convolutional neural networks without any checkerboard artifacts,
        2018, arXiv:1806.02658.
    """
    for module in network.modules():
        if isinstance(module, SubpixelUpsample):
            weight, bias = module.conv_block.weight, module.conv_block.bias
            taps = tuple(range(3, weight.ndim + 1))
            phases = weight.reshape(-1, module.scale_factor ** (weight.ndim - 2), *weight.shape[1:])
            excess = phases.mean(taps, keepdim=True)
            weight.copy_((phases - excess + excess.mean(1, keepdim=True)).reshape(weight.shape))
            blocks = bias.reshape(phases.shape[:2])
            bias.copy_(blocks.mean(1, keepdim=True).expand_as(blocks).reshape(bias.shape))
