from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose

from custom_components.transforms import RandHRPatchd
from custom_components.transforms.patch import RandHRPatch


def indexed(*shape):
    """A scan whose voxels tell their place: the index per axis in base 100."""
    axes = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in shape), indexing="ij")
    return sum(100.0**i * a for i, a in enumerate(reversed(axes)))[None]


def cutter(*args, seed=0, **kwargs):
    return RandHRPatch(*args, **kwargs).set_random_state(seed)


@pytest.mark.parametrize(("shape", "size"), [((9, 8, 7), 4), ((9, 8, 7), (2, 8, 3)), ((12, 10), 5)])
def test_a_patch_is_a_block_of_the_scan(shape, size):
    scan, cut = indexed(*shape), cutter(size)
    sizes = (size,) * len(shape) if isinstance(size, int) else size
    for _ in range(20):
        patch = cut(scan)
        start = [int(patch.flatten()[0] // 100**i % 100) for i in reversed(range(len(shape)))]
        block = scan[(slice(None), *(slice(s, s + n) for s, n in zip(start, sizes, strict=True)))]
        assert torch.equal(patch, block)


def test_each_place_comes_and_none_beyond():
    scan, cut = indexed(5, 4, 3), cutter((3, 3, 3))
    assert {cut(scan)[0, 0, 0, 0].item() for _ in range(200)} == {
        100.0**2 * i + 100 * j for i in range(3) for j in (0, 1)
    }


def test_a_small_scan_is_continued_by_its_edge():
    scan = indexed(5, 2, 3)
    patch = cutter(5)(scan)
    assert patch.shape == (1, 5, 5, 5)
    second, third = [0, 0, 1, 1, 1], [0, 0, 1, 2, 2]
    assert torch.equal(patch, scan[:, :, second][:, :, :, third])


def test_the_result_is_a_plain_tensor_of_its_own():
    scan = MetaTensor(torch.rand(1, 6, 6, 6))
    before = scan.clone()
    patch = cutter(6)(scan)
    assert type(patch) is torch.Tensor
    patch += 1
    assert torch.equal(scan, before)


def test_coarser_voxels_are_of_the_drawn_size():
    """On a ramp a voxel of factor times the size has factor times the slope, and the patch keeps its shape."""
    ramp = torch.arange(60, dtype=torch.float32)[None, :, None, None].expand(1, 60, 30, 30)
    cut = cutter((16, 8, 8), coarsen=1.5, prob=1.0)
    factors = []
    for _ in range(20):
        patch = cut(ramp)
        assert patch.shape == (1, 16, 8, 8)
        slope = patch[0, 5:11].diff(dim=0)
        torch.testing.assert_close(slope, torch.full_like(slope, cut.factor), rtol=1e-3, atol=0)
        first = cut.start[0] + 7.5 * cut.factor - 0.5  # centre of voxel 7 in voxels of the scan
        assert patch[0, 7, 0, 0].item() == pytest.approx(first, abs=1e-3)
        factors.append(cut.factor)
    assert 1 <= min(factors) < 1.1 and 1.4 < max(factors) <= 1.5


def test_a_constant_stays_constant_when_coarsened():
    patch = cutter(9, coarsen=2.0, prob=1.0)(torch.full((1, 12, 30, 30), 0.7))
    torch.testing.assert_close(patch, torch.full((1, 9, 9, 9), 0.7))


def test_probability_of_coarser_patches():
    cut = cutter(4, coarsen=2.0, prob=0.3)
    scan = torch.zeros(1, 10, 10, 10)
    coarser = sum(cut(scan) is not None and cut.factor > 1 for _ in range(400))
    assert 90 < coarser < 150


def test_random_state_of_the_dictionary_version():
    scan = torch.rand(1, 20, 20, 20)
    chain = Compose([RandHRPatchd("image", 6, coarsen=1.5)]).set_random_state(3)
    first = [chain({"image": scan, "stem": "a"}) for _ in range(3)]
    chain.set_random_state(3)
    again = [chain({"image": scan, "stem": "a"}) for _ in range(3)]
    assert all(torch.equal(a["image"], b["image"]) and b["stem"] == "a" for a, b in zip(first, again, strict=True))
    array = cutter(6, coarsen=1.5, seed=4)
    other = RandHRPatchd("image", 6, coarsen=1.5).set_random_state(4)
    assert torch.equal(array(scan), other({"image": scan})["image"])


def test_bad_coarsen():
    with pytest.raises(ValueError, match=r"coarsen must be >= 1, got 0\.5"):
        RandHRPatch(8, coarsen=0.5)
