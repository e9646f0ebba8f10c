from __future__ import annotations

import pytest
import torch
from torch import nn

from custom_components.inferers import AutocastInferer
from custom_components.networks import ReCNN


@pytest.fixture
def network():
    torch.manual_seed(0)
    return ReCNN(3, num_layers=4, num_filters=8)


def test_convolutions_in_bfloat16_and_a_float32_result(network):
    x, seen = torch.rand(2, 1, 9, 8, 7), []
    for layer in network.modules():
        if isinstance(layer, nn.Conv3d):
            layer.register_forward_hook(lambda _, __, output: seen.append(output.dtype))
    y = AutocastInferer()(x, network)
    assert seen == [torch.bfloat16] * 4
    assert y.dtype == torch.float32
    exact = network(x)
    assert 0 < (y - exact).abs().max() < 0.02 * exact.abs().max()


def test_gradients_are_float32_and_near_those_of_full_precision(network):
    x, target = torch.rand(2, 1, 9, 8, 7), torch.rand(2, 1, 9, 8, 7)
    gradients = []
    for inferer in (AutocastInferer(), lambda x, network: network(x)):
        network.zero_grad()
        nn.functional.mse_loss(inferer(x, network), target).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in network.parameters()]))
    assert gradients[0].dtype == torch.float32
    assert nn.functional.cosine_similarity(*gradients, dim=0) > 0.99


def test_autocast_ends_and_further_arguments_are_handed_on():
    AutocastInferer()(torch.rand(1, 2), nn.Linear(2, 2))
    assert not torch.is_autocast_enabled("cpu")
    y = AutocastInferer(torch.float16)(torch.ones(1), lambda x, a, b: (x + a + b).half(), 2, b=3)
    assert y.dtype == torch.float32 and y.item() == 6
