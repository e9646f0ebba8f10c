import torch
from monai.data import MetaTensor

from custom_components.tensors import plain


def test_plain_drops_the_meta_data_and_shares_the_voxels():
    voxels = torch.rand(1, 2, 3)
    for tensor in (voxels, MetaTensor(voxels, affine=torch.diag(torch.tensor([2.0, 2, 2, 1])))):
        result = plain(tensor)
        assert type(result) is torch.Tensor
        assert result.data_ptr() == voxels.data_ptr()
