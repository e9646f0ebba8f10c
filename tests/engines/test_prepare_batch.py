import pytest
import torch

from custom_components.engines import prepare_batch


@pytest.fixture
def batch():
    return {"image": torch.rand(2, 1, 3, 4), "target": torch.rand(2, 1, 3, 4)}


def test_image_and_target(batch):
    image, target = prepare_batch(batch, "cpu")
    assert torch.equal(image, batch["image"])
    assert torch.equal(target, batch["target"])


def test_references_are_further_channels_in_their_order(batch):
    batch["reference"] = torch.rand(2, 3, 3, 4)
    image, target = prepare_batch(batch, "cpu")
    assert image.shape == (2, 4, 3, 4)
    assert torch.equal(image[:, :1], batch["image"])
    assert torch.equal(image[:, 1:], batch["reference"])
    assert torch.equal(target, batch["target"])
    assert batch["image"].shape == (2, 1, 3, 4)


@pytest.mark.parametrize("reference", [False, True])
def test_device_and_dtype_reach_every_part(batch, reference):
    if reference:
        batch["reference"] = torch.rand(2, 1, 3, 4)
    image, target = prepare_batch(batch, torch.device("meta"), non_blocking=True, dtype=torch.float64)
    for part in (image, target):
        assert part.device.type == "meta"
        assert part.dtype == torch.float64


@pytest.mark.parametrize("missing", ["image", "target"])
def test_a_missing_part(batch, missing):
    del batch[missing]
    with pytest.raises(KeyError, match=missing):
        prepare_batch(batch, "cpu")
