"""What EDSR and RRDBNet share, with parts that are simple enough to know the result; the networks have tests of their own."""

import pytest
import torch
from monai.networks.blocks import SubpixelUpsample
from torch import nn
from torch.nn import functional

from custom_components.networks.residual_upsampling import ResidualUpsampling, expect_shape


class Times(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return self.factor * x


def nearest(dims, scale, residual):
    """Head 2, body 3, nearest neighbours, tail 5: 5 * (1 + 3) * 2 = 40 times the image."""
    upsampler = nn.Upsample(scale_factor=scale, mode="nearest")
    return ResidualUpsampling(dims, Times(2), Times(3), upsampler, Times(5), scale, residual, "msra")


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("scale", [1, 2, 3])
def test_without_residual_is_the_parts_one_after_the_other(dims, scale):
    x = torch.rand(2, 1, *(4, 5, 3)[:dims])
    expected = 40 * x
    for axis in range(2, dims + 2):
        expected = expected.repeat_interleave(scale, axis)
    torch.testing.assert_close(nearest(dims, scale, residual=False)(x), expected)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("scale", [1, 2, 3])
def test_residual_adds_the_image(dims, scale):
    """A ramp, of which linear interpolation at voxel centres, (i + 1 / 2) / scale - 1 / 2, is known inside the border."""
    ramp = torch.arange(6.0).reshape(-1, *[1] * (dims - 1)).expand(6, *[4] * (dims - 1))[None, None]
    added = nearest(dims, scale, residual=True)(ramp) - nearest(dims, scale, residual=False)(ramp)
    assert added.shape[2:] == tuple(scale * n for n in ramp.shape[2:])
    centres = ((torch.arange(6.0 * scale) + 0.5) / scale - 0.5).clamp(0, 5)
    torch.testing.assert_close(added, centres.reshape(-1, *[1] * (dims - 1)).expand(added.shape), rtol=0, atol=1e-4)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("factor", [2, 3])
def test_weights_start_by_the_initialisation_and_sub_pixels_alike(dims, factor):
    convolution = {2: nn.Conv2d, 3: nn.Conv3d}[dims]
    upsampler = SubpixelUpsample(dims, 4, scale_factor=factor, apply_pad_pool=False)
    head, body, tail = convolution(1, 4, 1), convolution(4, 4, 3, padding=1), convolution(4, 1, 1)
    network = ResidualUpsampling(dims, head, body, nn.Sequential(upsampler), tail, factor, False, 1e-4)
    assert list(network.state_dict()) == [
        f"{part}.{name}" for part in ("head", "body", "upsampler.0.conv_block", "tail") for name in ("weight", "bias")
    ]
    assert all(0 < p.abs().max() < 1e-3 for p in network.parameters() if p.ndim > 1)
    y = upsampler(torch.randn(1, 4, *(5, 4, 3)[:dims]))
    thinned = y[(..., *[slice(None, None, factor)] * dims)]
    torch.testing.assert_close(y, functional.interpolate(thinned, scale_factor=factor, mode="nearest"))


@pytest.mark.parametrize(("shape", "factor"), [([8, 10], 2), ((4, 5), 1), (torch.Size([12, 15]), 3), (None, 7)])
def test_expected_shape(shape, factor):
    expect_shape(torch.rand(1, 1, 4, 5), factor, shape)


@pytest.mark.parametrize("shape", [[8, 11], [10, 8], [8], [8, 10, 1], [4, 5]])
def test_other_shapes(shape):
    with pytest.raises(
        ValueError, match=r"shape must be \[8, 10\], 2 times that of the input \[4, 5\], got \["
    ) as error:
        expect_shape(torch.rand(1, 1, 4, 5), 2, shape)
    assert str(error.value).endswith(f"got {shape}")
