"""Mean structural similarity of whole volumes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from monai.metrics.regression import RegressionMetric
from monai.utils import MetricReduction


class VolumeSSIM(RegressionMetric):
    """Mean structural similarity, exactly as `skimage.metrics.structural_similarity(hr, image, data_range=data_range)`.

    `SSIM = (2 m_x m_y + c_1)(2 s_xy + c_2) / ((m_x^2 + m_y^2 + c_1)(s_x^2 + s_y^2 + c_2))` over windows of 7 voxels per
    axis, all of one weight, `c_1 = (0.01 L)^2`, `c_2 = (0.03 L)^2`, with sample covariances; averaged where the
    window lies in the image.

    Not `monai.metrics.SSIMMetric`: its Gaussian window of 11 voxels gives other numbers than tables made with skimage,
    to which ours must compare. A 256^3 volume takes about 3 s and 0.9 GB on the CPU.

    Args:
        data_range: range `L` of the true image; 1 for images scaled to [0, 1].
        reduction: of the values per scan and channel, see `monai.metrics.regression.RegressionMetric`.
        get_not_nans: whether `aggregate` gives the number of valid values too.

    Raises:
        ValueError: when the range is not positive; on call, when shapes differ or an axis is shorter than 7 voxels.

    Reference:
        Z. Wang, A. C. Bovik, H. R. Sheikh, E. P. Simoncelli, Image quality assessment: from error visibility to
        structural similarity, 2004, doi:10.1109/TIP.2003.819861.
    """

    WINDOW = 7

    def __init__(
        self,
        data_range: float = 1.0,
        reduction: MetricReduction | str = MetricReduction.MEAN,
        get_not_nans: bool = False,
    ) -> None:
        super().__init__(reduction=reduction, get_not_nans=get_not_nans)
        if not data_range > 0:
            raise ValueError(f"data_range must be positive, got {data_range}")
        self.data_range = data_range

    def _compute_metric(self, y_pred: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Similarity of each `(B, C, *spatial)` image with its truth, `(B, C)`."""
        from skimage.metrics import structural_similarity

        if min(y.shape[2:]) < self.WINDOW:
            raise ValueError(f"SSIM needs at least {self.WINDOW} voxels along each axis, got {tuple(y.shape[2:])}")
        image, truth = (t.detach().float().cpu().numpy() for t in (y_pred, y))
        similarity: Callable[..., float] = structural_similarity
        values = [
            [similarity(t, i, data_range=self.data_range) for t, i in zip(ts, images, strict=True)]
            for ts, images in zip(truth, image, strict=True)
        ]
        return torch.tensor(values, dtype=torch.float32)
