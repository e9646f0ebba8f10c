"""The progressive generator against its steps one by one, and in the tools that a bundle's network goes through."""

from __future__ import annotations

import io
import warnings

import onnxruntime
import pytest
import torch
from torch import nn

from custom_components.errors import ScanError
from custom_components.inferers import ExactInferer, receptive_field
from custom_components.networks import ProgressiveRRDBNet, RRDBNet
from custom_components.pretrained import load_steps

SMALL = {"num_blocks": 1, "num_filters": 4, "growth": 3, "first_kernel_size": 3}


class TestStructure:
    @pytest.mark.parametrize(("dims", "shape"), [(2, (5, 8)), (2, (1, 7)), (3, (4, 3, 2))])
    @pytest.mark.parametrize("scale", [2, 4, 8])
    def test_shapes(self, dims, shape, scale):
        network = ProgressiveRRDBNet(dims, scale, **SMALL)
        with torch.inference_mode():
            assert network(torch.rand(2, 1, *shape)).shape == (2, 1, *(scale * n for n in shape))

    @pytest.mark.parametrize(("shared", "copies"), [(False, 3), (True, 1)])
    def test_weights_of_a_step_each_or_of_all(self, size, shared, copies):
        network = ProgressiveRRDBNet(2, 8, shared, **SMALL)
        assert size(network) == copies * size(RRDBNet(2, scale_factor=2, **SMALL))
        assert len(network.steps) == 3
        assert {step.scale_factor for step in network.steps} == {2}

    def test_arguments_reach_each_step(self):
        network = ProgressiveRRDBNet(2, 4, **SMALL, residual=True, upsampling="nearest")
        for step in network.steps:
            assert step.residual and any(isinstance(m, nn.Upsample) for m in step.modules())

    @pytest.mark.parametrize(
        ("kwargs", "match"),
        [
            ({"scale_factor": 1}, r"scale_factor must be one of \(2, 4, 8\), got 1"),
            ({"scale_factor": 6}, r"scale_factor must be one of \(2, 4, 8\), got 6"),
            ({"in_channels": 2}, "in_channels must be 1 above factor 2, as steps give one, got 2"),
            ({"num_blocks": 0}, "must be >= 1, got 1, 0, 64 and 32"),
        ],
    )
    def test_errors(self, kwargs, match):
        with pytest.raises(ValueError, match=match):
            ProgressiveRRDBNet(2, **kwargs)

    def test_several_channels_at_factor_2(self):
        assert ProgressiveRRDBNet(2, 2, in_channels=2, **SMALL)(torch.rand(1, 2, 4, 4)).shape == (1, 1, 8, 8)


class TestForward:
    @pytest.mark.parametrize("shared", [False, True])
    def test_is_the_steps_one_after_the_other(self, shared):
        network, x = ProgressiveRRDBNet(2, 8, shared, **SMALL), torch.rand(2, 1, 5, 4)
        first, second, third = network.steps
        expected = [first(x), second(first(x)), third(second(first(x)))]
        assert all(torch.equal(a, b) for a, b in zip(network.images(x), expected, strict=True))
        assert torch.equal(network(x), expected[-1])

    def test_first_of_three_is_the_x2_network(self):
        """And the first two are the x4 network."""
        eight, four = ProgressiveRRDBNet(2, 8, **SMALL), ProgressiveRRDBNet(2, 4, **SMALL)
        four.steps.load_state_dict(eight.steps[:2].state_dict())
        x = torch.rand(1, 1, 4, 5)
        assert torch.equal(eight.images(x)[1], four(x))

    def test_wished_shape(self):
        network, x = ProgressiveRRDBNet(2, 8, **SMALL), torch.rand(1, 1, 4, 5)
        assert torch.equal(network(x, (32, 40)), network(x))
        with pytest.raises(ValueError, match=r"must be \[32, 40\], 8 times that of the input \[4, 5\], got \[32, 41\]"):
            network(x, (32, 41))

    @pytest.mark.parametrize("shared", [False, True])
    def test_every_parameter_gets_a_gradient(self, shared):
        network = ProgressiveRRDBNet(2, 8, shared, **SMALL)
        network(torch.rand(2, 1, 5, 5)).square().mean().backward()
        assert all(p.grad.abs().sum() > 0 for p in network.parameters())


class TestStart:
    @pytest.mark.parametrize("shared", [False, True])
    def test_each_step_starts_from_one_x2_network(self, tmp_path, shared):
        trained = RRDBNet(2, scale_factor=2, residual=True, **SMALL)
        torch.save(trained.state_dict(), tmp_path / "x2.pt")
        network, x = ProgressiveRRDBNet(2, 8, shared, residual=True, **SMALL), torch.rand(1, 1, 4, 5)
        assert not torch.equal(network(x), trained(trained(trained(x))))
        load_steps(network, tmp_path / "x2.pt")
        assert torch.equal(network(x), trained(trained(trained(x))))

    def test_of_another_network(self, tmp_path):
        torch.save(RRDBNet(2, scale_factor=4, **SMALL).state_dict(), tmp_path / "x4.pt")
        with pytest.raises(ScanError, match=r"x4.pt: expected the weights of RRDBNet, got tensors 2 foreign"):
            load_steps(ProgressiveRRDBNet(2, **SMALL), tmp_path / "x4.pt")


class TestTiling:
    @pytest.mark.parametrize("dims", [2, 3])
    def test_halo(self, dims):
        """A step of one block and kernels of 3 reaches 18 voxels before it doubles and 2 of half the size behind: 19.

        The steps behind the first add half of it, and a quarter: ceil(19 + 9.5) and ceil(19 + 9.5 + 4.75).
        """
        few = {**SMALL, "num_filters": 2}
        halos = [receptive_field(ProgressiveRRDBNet(dims, scale, **few), dims, 1) for scale in (2, 4, 8)]
        assert halos == [(19,) * dims, (29,) * dims, (34,) * dims]

    @pytest.mark.parametrize("shared", [False, True])
    @pytest.mark.parametrize(("dims", "shape", "scale"), [(2, (140, 20), 8), (3, (120, 4, 3), 4)])
    def test_exact_inferer_equals_one_pass(self, dims, shape, scale, shared):
        network = ProgressiveRRDBNet(dims, scale, shared, **{**SMALL, "num_filters": 2}, residual=True).eval()
        image = torch.rand(1, 1, *shape)
        inferer = ExactInferer(memory_gib=ExactInferer().plan(image.shape, network).memory / 1.2 / 2**30)
        assert len(inferer.plan(image.shape, network).windows) > 1
        with torch.inference_mode():
            whole = network(image)
        error = (inferer(image, network) - whole).abs().max()
        assert error <= 1e-5 * (whole.max() - whole.min())


class TestTools:
    @pytest.mark.parametrize(("dims", "shared"), [(2, False), (3, True)])
    def test_torchscript(self, dims, shared):
        network = ProgressiveRRDBNet(dims, 4, shared, **SMALL, residual=True).eval()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # torch's, about TorchScript itself
            scripted = torch.jit.script(network)
        for shape in ((6, 7, 5), (4, 3, 2)):
            x = torch.rand(2, 1, *shape[:dims])
            torch.testing.assert_close(scripted(x, [n * 4 for n in shape[:dims]]), network(x))
        with pytest.raises(torch.jit.Error, match="4 times that of the input"):
            scripted(x, [1] * dims)

    @pytest.mark.slow
    def test_onnx(self):
        network = ProgressiveRRDBNet(2, 8, **SMALL, residual=True).eval()
        x, file = torch.rand(1, 1, 6, 7), io.BytesIO()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(network, (x,), dynamo=True).save(file)
        session = onnxruntime.InferenceSession(file.getvalue())
        (result,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        torch.testing.assert_close(torch.from_numpy(result), network(x), rtol=1e-4, atol=1e-5)
