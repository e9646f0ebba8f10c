"""Adversarial losses of a generator and its discriminator, from the discriminator's logits of real and of generated images."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import distributed, nn

KINDS = ("relativistic_average", "relativistic", "standard", "least_squares", "wasserstein")


class _SumOverProcesses(torch.autograd.Function):
    """The sum over all processes, whose adjoint is the same sum."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor) -> torch.Tensor:
        total = value.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        return _SumOverProcesses.apply(grad)  # type: ignore[no-untyped-call]


def _means(*values: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Mean of each tensor over the batch of all processes."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return tuple(value.mean() for value in values)
    sums = torch.stack([value.sum() for value in values])
    counts = sums.new_tensor([value.numel() for value in values])  # the processes may hold batches of unlike size
    sums, counts = _SumOverProcesses.apply(torch.stack([sums, counts]))  # type: ignore[no-untyped-call]
    return tuple((sums / counts).unbind())


def _terms(up: torch.Tensor, down: torch.Tensor, kind: str) -> tuple[torch.Tensor, ...]:
    """Losses per logit that lift `up` and lower `down`."""
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {KINDS}, got {kind!r}")
    if not (up.is_floating_point() and down.is_floating_point() and up.numel() and down.numel()):
        kinds = " and ".join(f"{tuple(logits.shape)} of {logits.dtype}" for logits in (up, down))
        raise ValueError(f"expected logits that are not empty, in floating point, got {kinds}")
    dtype = torch.promote_types(torch.promote_types(up.dtype, down.dtype), torch.float32)
    up, down = up.to(dtype), down.to(dtype)
    if kind == "relativistic":
        if up.shape != down.shape:
            raise ValueError(
                f"expected as many real as fake logits, got the shapes {tuple(up.shape)} and {tuple(down.shape)}"
            )
        return (F.softplus(down - up),)
    if kind == "relativistic_average":
        mean_up, mean_down = _means(up, down)
        up, down = up - mean_down, down - mean_up
    if kind == "least_squares":
        return 0.5 * (up - 1).square(), 0.5 * down.square()
    if kind == "wasserstein":
        return -up, down
    return F.softplus(-up), F.softplus(down)  # -log sigmoid(up), -log(1 - sigmoid(down))


def discriminator_loss(real: torch.Tensor, fake: torch.Tensor, kind: str = "relativistic_average") -> torch.Tensor:
    """Functional form of `DiscriminatorLoss`; arguments and errors as there.

    Example:
        >>> discriminator_loss(torch.tensor([[2.0]]), torch.tensor([[-1.0]]), "wasserstein")
        tensor(-3.)
    """
    return torch.stack(_means(*_terms(real, fake, kind))).sum()


def generator_loss(
    real: torch.Tensor, fake: torch.Tensor, kind: str = "relativistic_average", symmetric: bool = True
) -> torch.Tensor:
    """Functional form of `GeneratorLoss`; arguments and errors as there.

    Example:
        >>> generator_loss(torch.tensor([[2.0]]), torch.tensor([[-1.0]]), "wasserstein")
        tensor(1.)
    """
    terms = _terms(fake, real, kind)
    if not (symmetric and kind == "relativistic_average"):
        terms = terms[:1]  # where it is not relativistic, the term of the real images is a constant
    return torch.stack(_means(*terms)).sum()


class DiscriminatorLoss(nn.Module):
    r"""What the discriminator minimises: real images get the higher logit.

    With C the logit, r = C(real), f = C(fake), \sigma the sigmoid and E the mean over the batch,

    .. math::
        L_D &= -E \log D(r, f) - E \log (1 - D(f, r)), \qquad D(a, b) = \sigma(a - E\,b)
            \quad\text{(relativistic_average, equation 5)} \\
            &= -E \log \sigma(r - f) \quad\text{(relativistic)} \\
            &= -E \log \sigma(r) - E \log (1 - \sigma(f)) \quad\text{(standard, equation 4)} \\
            &= \tfrac12 E (r - 1)^2 + \tfrac12 E f^2 \quad\text{(least_squares)} \\
            &= E f - E r \quad\text{(wasserstein)}

    The logarithms are softplus of the logits: finite, with finite gradients, for logits of any size. The Wasserstein loss is a
    distance only for a discriminator of bounded slope (spectral norm).

    Under `torch.distributed` E is over the batches of all processes, also the E within D, each of which must call the loss. Each
    process gets the loss of the whole batch, and gradients of which the mean over the processes, as DistributedDataParallel
    takes it, is the gradient of one process with the whole batch.

    Args:
        kind: one of the five above. `relativistic` compares the n-th real logit with the n-th fake one, so both have one shape.

    Shape:
        `real`, `fake`: logits `(B, ...)`, one per image or one per patch; the result is a scalar, in float32 for inputs of half
        precision.

    Raises:
        ValueError: on another kind, empty logits, integers, and for `relativistic` unlike shapes.

    Example:
        >>> DiscriminatorLoss()(torch.zeros(4, 1), torch.zeros(4, 1))  # 2 log 2: it cannot tell them apart
        tensor(1.3863)

    Reference:
        A. Jolicoeur-Martineau, The relativistic discriminator: a key element missing from standard GAN, 2018, arXiv:1807.00734.
        X. Mao et al., Least squares generative adversarial networks, 2017, arXiv:1611.04076. M. Arjovsky, S. Chintala,
        L. Bottou, Wasserstein GAN, 2017, arXiv:1701.07875. The numbers of the equations are those of the bachelor's thesis
        (Universitat Pompeu Fabra) on ESRGAN for fetal MRI.
    """

    def __init__(self, kind: str = "relativistic_average") -> None:
        super().__init__()
        if kind not in KINDS:
            raise ValueError(f"kind must be one of {KINDS}, got {kind!r}")
        self.kind = kind

    def forward(self, real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
        """Loss of the logits `real` and `fake`."""
        return discriminator_loss(real, fake, self.kind)

    def extra_repr(self) -> str:
        """What `print` shows of the loss."""
        return f"kind={self.kind}"


class GeneratorLoss(DiscriminatorLoss):
    r"""What the generator minimises: generated images get the higher logit.

    .. math::
        L_G &= -E \log D(f, r) - E \log (1 - D(r, f)) \quad\text{(relativistic_average, symmetric)} \\
            &= -E \log D(f, r) \quad\text{(relativistic_average, not symmetric: equation 7)} \\
            &= -E \log \sigma(f - r) \quad\text{(relativistic)} \\
            &= -E \log \sigma(f) \quad\text{(standard, non-saturating)} \\
            &= \tfrac12 E (f - 1)^2 \quad\text{(least_squares)} \\
            &= -E f \quad\text{(wasserstein)}

    in the notation of `DiscriminatorLoss`; shapes, distributed runs and errors are as there. The relativistic ones are the
    discriminator's loss with real and fake exchanged.

    The thesis writes equation 7, a sum over the batch of the first term alone; ESRGAN, which it follows, has the second term too,
    so that the generator learns from the real images as well. The default is ESRGAN's, and the mean, so that one weight holds for
    any batch size. ESRGAN's published program halves the sum, which its paper does not: a weight of 0.005 there is 0.0025 here.

    Args:
        kind: as `DiscriminatorLoss`.
        symmetric: for `relativistic_average`, both terms; the others have the one that depends on the generator in any case.

    Example:
        >>> GeneratorLoss(symmetric=False)(torch.zeros(4, 1), torch.zeros(4, 1))
        tensor(0.6931)

    Reference:
        X. Wang et al., ESRGAN: enhanced super-resolution generative adversarial networks, 2018, arXiv:1809.00219, section 3.2.
        Those of `DiscriminatorLoss`.
    """

    def __init__(self, kind: str = "relativistic_average", symmetric: bool = True) -> None:
        super().__init__(kind)
        self.symmetric = symmetric

    def forward(self, real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
        """Loss of the logits `real` and `fake`."""
        return generator_loss(real, fake, self.kind, self.symmetric)

    def extra_repr(self) -> str:
        """What `print` shows of the loss."""
        return f"kind={self.kind}, symmetric={self.symmetric}"
