"""Balanced sub-pixel convolutions against their definition, and on constants."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from custom_components.metrics import checkerboard
from custom_components.networks import EDSR, RRDBNet
from custom_components.networks.phase_balance import balance_phases_


def trained(dims=2, scale=2):
    """As if trained: no filter is like another."""
    network = RRDBNet(dims, num_blocks=1, num_filters=6, growth=3, scale_factor=scale, first_kernel_size=3)
    for parameter in network.upsampler.parameters():
        nn.init.normal_(parameter, std=0.2)
    return network


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("scale", [2, 4])
def test_each_phase_gives_the_same_of_a_constant(dims, scale):
    network, inner = trained(dims, scale), (..., *[slice(scale * 4, -scale * 4)] * dims)
    constant = torch.randn(1, 6, *[1] * dims).expand(1, 6, *[11] * dims)
    assert network.upsampler(constant)[inner].flatten(2).std(2).max() > 0.01
    balance_phases_(network)
    features = network.upsampler(constant)[inner].flatten(2)
    assert features.std(2).max() < 1e-6 < features.abs().max()
    result = network(torch.full((1, 1, *[28 if dims == 3 else 60] * dims), 0.4))
    middle = result[(..., *[slice(n // 2 - 2, n // 2 + 2) for n in result.shape[2:]])]
    assert middle.max() - middle.min() < 1e-4 * middle.abs().max()


def test_is_the_formula_filter_by_filter():
    network = trained()
    layer = network.upsampler[0][0].conv_block
    weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    balance_phases_(network)
    for k in range(24):
        block = [4 * (k // 4) + j for j in range(4)]
        assert layer.bias[k].item() == pytest.approx(sum(bias[j].item() for j in block) / 4, abs=1e-6)
        for c in range(6):
            wished = sum(weight[j, c].sum() for j in block) / 4
            expected = weight[k, c] + (wished - weight[k, c].sum()) / 9
            torch.testing.assert_close(layer.weight[k, c].detach(), expected, rtol=0, atol=1e-6)


def test_nothing_else_changes_and_a_second_time_nothing():
    network = trained(3)
    network.to(memory_format=torch.channels_last_3d)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    balance_phases_(network)
    once = {name: value.clone() for name, value in network.state_dict().items()}
    changed = {name for name in once if not torch.equal(once[name], before[name])}
    assert changed == {"upsampler.0.0.conv_block.weight", "upsampler.0.0.conv_block.bias"}
    balance_phases_(network)
    for name, value in network.state_dict().items():
        torch.testing.assert_close(value, once[name], rtol=0, atol=1e-6)


def test_weights_that_start_alike_are_balanced():
    network = EDSR(2, num_blocks=1, num_filters=4, scale_factor=4)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    balance_phases_(network)
    for name, value in network.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=1e-6)


def test_the_checkerboard_goes():
    torch.manual_seed(0)
    network, x = EDSR(2, num_blocks=1, num_filters=16, scale_factor=2), torch.rand(4, 1, 32, 32)
    nn.init.kaiming_normal_(network.upsampler[0].conv_block.weight)
    with torch.inference_mode():
        before = checkerboard(network(x), 2).mean()
        balance_phases_(network)
        assert before > 15 and checkerboard(network(x), 2).mean() < 3
