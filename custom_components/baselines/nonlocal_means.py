"""Non-local MRI upsampling: non-local means on the HR grid, held to the LR scan after every pass."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from ..acquisition import PROTOCOLS, AcquisitionModes, Protocol, acquisition_operator, interpolation_operator
from .interpolation import checked

SMALLEST_DAMPING = 1e-6  # of the largest gain: modes that float32 cannot see stay as they are


def nonlocal_means(x: torch.Tensor, h: float, distance: int = 3) -> torch.Tensor:
    """Scikit-image's non-local means of an image `(*spatial)`: patches of 3 voxels per axis, weighted towards their middle.

    It runs on the CPU in as many threads as torch has, each with a slab that overlaps the next by what the filter sees.

    Args:
        x: image in 2D or 3D.
        h: strength of the filter in the unit of `x`, > 0.
        distance: half the search window in voxels.
    """
    from skimage.restoration import denoise_nl_means

    image, halo, threads = x.cpu().numpy(), distance + 2, torch.get_num_threads()
    step = -(-len(image) // threads)

    def slab(start: int) -> npt.NDArray[np.float32]:
        low = max(start - halo, 0)
        part = image[low : start + step + halo]
        # its fast mode blurs edges in 3D that this one keeps
        part = denoise_nl_means(part, patch_size=3, patch_distance=distance, h=h, fast_mode=False)
        inner: npt.NDArray[np.float32] = part[start - low : start - low + step]
        return inner

    with ThreadPoolExecutor(threads) as pool:
        return torch.from_numpy(np.concatenate(list(pool.map(slab, range(0, len(image), step))))).to(x)


class NonLocalMeansUpsampling(nn.Module):
    r"""Non-local means on the HR grid, alternating with a correction that makes the result, acquired again, the LR scan.

    .. math:: x \leftarrow \mathrm{NLM}_h(x), \qquad x \leftarrow x + A^+ (y - A x)

    from the spline interpolation on, first with a strong filter, then with ever weaker ones, each until the mean absolute change
    of a step is below `tolerance` times the standard deviation of `y`, or for `max_iterations` steps.

    The paper's: the alternation; patches of 3 and a search window of 7 voxels per axis; h = 32, 16, 8, 4, 2 for images from 0 to
    255; the tolerance 0.002. Its correction adds the error of each LR voxel to all HR voxels in it. That is the pseudo-inverse
    :math:`A^+` of the protocol `box` at whole factors, so `protocol="box", damping=0` is the paper's; here :math:`A^+` stands for
    any protocol, the smallest change that makes x consistent. Departures: steps per h are bounded, to one by
    default, which is minutes for a head; voxels of unlike mean are not left out of the search beforehand, and
    `y` is not denoised, which is up to who calls.

    To hold to the scan is to hold to its noise, and to undo the blur amplifies that, with `gaussian_spline` at x2 by up to 40. With
    the gain s of each mode of A, at most 1, and the damping r, the correction uses :math:`s / (s^2 + r^2)` in place of 1 / s: the
    more noise there is, the larger r should be.

    The filter is scikit-image's, on the CPU: minutes for a head.

    Args:
        protocol: the acquisition A, a name in `custom_components.acquisition.PROTOCOLS` or a `Protocol`; `box` is the paper's.
        strengths: h of the filters in turn, in the unit of the image, for which the paper's are divided by 255.
        max_iterations: steps per filter at most.
        tolerance: change at which a filter is done, in standard deviations of the LR image.
        distance: voxels from the middle of the search window to its border.
        damping: r, as a part of the largest gain, in [0, 1]; 0 makes the result consistent to rounding, as in the paper.
        progress: show a bar.

    Shape:
        `(B, C, *lr_shape)` in 2D or 3D, in about [0, 1], and the HR `shape` to `(B, C, *shape)`, each image by itself. No gradient.

    Raises:
        ValueError: on arguments out of range; on call, on a shape that has other axes or is smaller than the image.
        TypeError: on call, when the image is not of floating point.

    Example:
        >>> NonLocalMeansUpsampling(strengths=(0.1,))(torch.rand(1, 1, 8, 8), (16, 16)).shape
        torch.Size([1, 1, 16, 16])

    Reference:
        J. V. Manjon, P. Coupe, A. Buades, V. Fonov, D. L. Collins, M. Robles, Non-local MRI upsampling, Medical Image Analysis
        14(6), 2010, doi:10.1016/j.media.2010.05.010.
    """

    def __init__(
        self,
        protocol: str | Protocol = "gaussian_spline",
        strengths: Sequence[float] = (32 / 255, 16 / 255, 8 / 255, 4 / 255, 2 / 255),
        max_iterations: int = 1,
        tolerance: float = 0.002,
        distance: int = 3,
        damping: float = 0.1,
        progress: bool = False,
    ) -> None:
        super().__init__()
        if isinstance(protocol, str) and protocol not in PROTOCOLS:
            raise ValueError(f"protocol must be one of {tuple(PROTOCOLS)}, got {protocol!r}")
        if not strengths or not all(h > 0 for h in strengths):
            raise ValueError(f"strengths must be one or more numbers > 0, got {tuple(strengths)}")
        if min(max_iterations, distance) < 1:
            raise ValueError(f"max_iterations and distance must be >= 1, got {max_iterations} and {distance}")
        if not tolerance >= 0:
            raise ValueError(f"tolerance must be >= 0, got {tolerance}")
        if not 0 <= damping <= 1:
            raise ValueError(f"damping must be from 0 to 1, got {damping}")
        self.protocol, self.strengths, self.max_iterations = protocol, tuple(strengths), max_iterations
        self.tolerance, self.distance, self.damping, self.progress = tolerance, distance, damping, progress

    def forward(self, lr: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
        """Map `(B, C, *lr_shape)` to `(B, C, *shape)`."""
        from tqdm import tqdm

        y = checked(lr, shape).detach()
        modes = AcquisitionModes(acquisition_operator(shape, y.shape[2:], self.protocol), y.shape[2:])
        ridge = (max(self.damping, SMALLEST_DAMPING) * float(modes.gain.max())) ** 2
        x = modes.correct(interpolation_operator(y.shape[2:], shape)(y), y, ridge)
        spread = y.flatten(1).std(1).mean()
        with tqdm(total=len(self.strengths) * self.max_iterations, disable=not self.progress) as bar:
            for h in self.strengths:
                for _ in range(self.max_iterations):
                    filtered = [[nonlocal_means(image, h, self.distance) for image in item] for item in x]
                    last, x = x, modes.correct(torch.stack([torch.stack(item) for item in filtered]), y, ridge)
                    bar.update()
                    if (x - last).abs().mean() < self.tolerance * spread:
                        break
        return x
