"""The image nearest to a result that gives the scan when it is acquired again."""

from __future__ import annotations

import torch

from .modes import AcquisitionModes
from .operators import SeparableOperator
from .protocols import interpolation_operator

LEAST_RATIO = 1e-3  # modes of a smaller gain are not in a float32 scan


def make_consistent(
    x: torch.Tensor, y: torch.Tensor, operator: SeparableOperator, noise_std: float = 0.0, error_std: float = 0.03
) -> torch.Tensor:
    r"""Correct a result by what its acquisition tells, in closed form.

    .. math:: x' = x + V w\, d, \quad d = U^T (y - A x), \quad A = U S V^T

    In the singular modes of `A`, one small decomposition per axis, this is a product on the LR grid: exact, where others iterate.

    For a scan without noise :math:`w = S / (S^2 + \rho^2)` with a :math:`\rho` near 0, the orthogonal projection on all images
    that `A` maps to the scan. The truth is one of them: no result comes farther from it.

    With noise of the standard deviation :math:`\sigma`, full agreement would be agreement with the noise. Two bounds hold, and the
    lower one is taken:

    .. math:: w = \frac{1}{S} \min\left(\frac{S^2}{S^2 + \sigma^2 / \epsilon^2},\;
        \left[1 - \frac{\overline{\sigma^2 (1 - h)}}{\overline{d^2}}\right]_+\right)

    The first is right for a result whose error is :math:`\epsilon` everywhere and has nothing to do with the noise. But a result
    holds the noise of its scan, by a part `h` in each mode, so that :math:`d = (1 - h)\, n - S e` with the rest `e` of its error.
    By Stein's lemma :math:`E[n d] = \sigma^2 (1 - h)` whatever the error is, even of a nonlinear method, and
    :math:`E(n - (1 - w S)\, d)^2`, the error of `A x'`, is least at the second bound: what of the scan's disagreement its noise
    does not explain. Means are over neighbouring modes. `h` is that of spline interpolation, which the networks of this project
    add detail to. Methods that amplify noise have a larger one, and are corrected less than they could be; those that take noise
    away, or the mean that it adds to the background of a magnitude image, a smaller one, and get a part of that back.

    Args:
        x: result, `(B, C, *spatial)`.
        y: scan, `(B, C, *spatial_lr)`, in the unit of `x`.
        operator: the acquisition `A`, as `acquisition_operator` gives it.
        noise_std: sigma, in the unit of `x`.
        error_std: epsilon, of the error of `x`; their ratio is 1e-3 at least. It counts where there is noise only.

    Returns:
        A new image of the shape of `x`.

    Raises:
        ValueError: on a negative noise, an error that is not positive, or shapes that the operator does not take.

    Reference:
        C. Stein, Estimation of the mean of a multivariate normal distribution, 1981, doi:10.1214/aos/1176345632.
    """
    if not 0 <= noise_std < float("inf") or not 0 < error_std < float("inf"):
        raise ValueError(f"noise_std must be >= 0 and error_std > 0, got {noise_std} and {error_std}")
    modes = AcquisitionModes(operator, y.shape[2:])
    ridge = max(noise_std / error_std, LEAST_RATIO) ** 2
    if noise_std == 0:
        return modes.correct(x, y, ridge)
    kept = modes.kept(interpolation_operator(y.shape[2:], x.shape[2:]))
    return modes.correct(x, y, ridge, noise_std**2 * (1 - kept))
