"""ICNR against its definition: the shuffled image has one value in each HR block. `initialise_` is tested with the networks."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from custom_components.networks.initialisation import icnr_


@pytest.mark.parametrize("factor", [2, 3])
def test_shuffled_image_is_nearest_neighbours_of_a_convolution(factor):
    layer = nn.Conv2d(4, 5 * factor**2, 3, padding=1, bias=False)
    first = layer.weight[:: factor**2].clone()
    assert not torch.equal(layer.weight[0], layer.weight[1])
    icnr_(layer, factor**2)
    x = torch.randn(2, 4, 6, 7)
    expected = functional.interpolate(functional.conv2d(x, first, padding=1), scale_factor=factor, mode="nearest")
    torch.testing.assert_close(functional.pixel_shuffle(layer(x), factor), expected)


def test_bias_is_left_alone():
    layer = nn.Conv3d(1, 8, 1)
    bias = layer.bias.clone()
    icnr_(layer, 8)
    assert torch.equal(layer.bias, bias) and bias.any()
