from __future__ import annotations

import torch
from monai.engines import SupervisedTrainer
from torch import nn

from custom_components.handlers import PhaseBalance
from custom_components.networks import RRDBNet
from custom_components.networks.phase_balance import balance_phases_


def trained(handlers):
    torch.manual_seed(0)
    network = RRDBNet(2, num_blocks=1, num_filters=4, growth=2, scale_factor=2, first_kernel_size=3)
    handlers = [handler(network) for handler in handlers]
    data = [{"image": torch.rand(2, 1, 6, 6), "label": torch.rand(2, 1, 12, 12)} for _ in range(3)]
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    options = {"max_epochs": 1, "train_data_loader": data, "network": network, "optimizer": optimizer}
    SupervisedTrainer(
        device=torch.device("cpu"), loss_function=nn.L1Loss(), train_handlers=handlers, decollate=False, **options
    ).run()
    return network


def imbalance(network):
    weight = network.upsampler[0][0].conv_block.weight
    return weight.sum((2, 3)).reshape(-1, 4, 4).std(1).max().item()


def test_the_network_is_balanced_after_each_step():
    free, constrained = trained([]), trained([PhaseBalance])
    assert imbalance(free) > 1e-2 and imbalance(constrained) < 1e-6
    start = RRDBNet(2, num_blocks=1, num_filters=4, growth=2, scale_factor=2, first_kernel_size=3)
    assert not torch.equal(start.tail[2].weight, constrained.tail[2].weight)
    balance_phases_(free)
    assert not torch.equal(free.tail[2].weight, constrained.tail[2].weight)  # the other layers learn beside it, too
