"""A batch whose truth is what a larger network makes of it: to train a small one by."""

from __future__ import annotations

from typing import Any

import torch
from monai.inferers import Inferer, SimpleInferer
from torch import nn

from ..inferers.autocast import AutocastInferer
from .changed_batch import ChangedBatch
from .rand_acquire_batch import Prepared, RandAcquireBatch


class DistilledBatch(ChangedBatch):
    r"""Acquire a batch and put the result of a teacher in the place of the truth, or mix the two.

    .. math:: x' = a\, (\hat x_0 - U n) + (1 - a)\, x

    with the truth `x`, the noise `U n` as splines interpolate it, the teacher's result :math:`\hat x_0` at denoising strength 0, in
    which the noise still is, and the share `a`. So the sum of the two target channels, by which
    `custom_components.losses.DetailLoss` measures, is the teacher's result for a share of 1, and their meaning stays. A squared
    error has the same minimum by either, the conditional mean that the teacher is near to; but the truth differs from it by what no
    network can know, which is noise in the gradients of a short training.

    The teacher runs in evaluation mode, without gradients. With `ErrorLikelihoodLoss` the student learns how far it is from `x'`:
    its expected error is that from the truth for a share of 0 alone.

    Args:
        acquire: makes the batch.
        teacher: network with the arguments of `custom_components.networks.AnyScaleSR.forward`, on the device of the batch. It is
            put into evaluation mode, and its weights are fixed.
        share: of the teacher in the new truth, 0 to 1.
        amp_dtype: "bfloat16" or "float16" to run the teacher's convolutions in it; None keeps the network's precision.

    Raises:
        ValueError: on a share outside [0, 1], or another `amp_dtype`.

    Reference:
        G. Hinton, O. Vinyals, J. Dean, Distilling the knowledge in a neural network, 2015, arXiv:1503.02531.
    """

    def __init__(
        self, acquire: RandAcquireBatch, teacher: nn.Module, share: float = 1.0, amp_dtype: str | None = None
    ) -> None:
        if not 0 <= share <= 1:
            raise ValueError(f"share must be in [0, 1], got {share!r}")
        if amp_dtype not in (None, "bfloat16", "float16"):
            raise ValueError(f'amp_dtype must be "bfloat16", "float16" or None, got {amp_dtype!r}')
        super().__init__(acquire)
        self.share = float(share)
        self.teacher = teacher.eval().requires_grad_(False)
        self.inferer: Inferer = SimpleInferer() if amp_dtype is None else AutocastInferer(getattr(torch, amp_dtype))

    def changed(self, lr: torch.Tensor, target: torch.Tensor, args: tuple[()], kwargs: dict[str, Any]) -> Prepared:
        """The same with the new truth as the first channel of the targets `(B, 2, *hr)`."""
        if not self.share:
            return lr, target, args, kwargs
        with torch.no_grad():
            made = self.inferer(lr, self.teacher, *args, **kwargs)
            truth, noise = target.split(1, 1)
            target = torch.cat([torch.lerp(truth, made[:, :1].to(truth) - noise, self.share), noise], 1)
        return lr, target, args, kwargs
