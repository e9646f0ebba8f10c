from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from custom_components.inferers import AutocastInferer
from custom_components.inferers.autocast import faster_dtype
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


@pytest.mark.parametrize(
    ("bf16", "amx", "expected"), [(False, False, None), (True, False, "bfloat16"), (False, True, "bfloat16")]
)
def test_faster_dtype_of_a_cpu(monkeypatch, bf16, amx, expected):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert faster_dtype("cpu") == faster_dtype(torch.device("cpu")) == expected


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), None), ((8, 0), "bfloat16"), ((9, 0), "bfloat16")])
def test_faster_dtype_of_cuda(monkeypatch, capability, expected):
    asked = []
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: asked.append(device) or capability)
    assert faster_dtype("cuda:1") == expected
    assert asked == [torch.device("cuda:1")]
    assert faster_dtype("meta") is None


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="needs Linux")
def test_faster_dtype_is_what_the_kernel_says_of_this_cpu():
    flags = Path("/proc/cpuinfo").read_text().split()
    assert (faster_dtype("cpu") is not None) == bool({"avx512_bf16", "amx_tile"} & set(flags))
