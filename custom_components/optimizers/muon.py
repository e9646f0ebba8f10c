"""Muon: momentum of the kernels of hidden convolutions made orthogonal before the step, Adam for all other parameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import torch

# of the odd polynomial that draws singular values towards 1 (K. Jordan, 2024)
_LINEAR, _CUBIC, _QUINTIC = 3.4445, -4.7750, 2.0315


def orthogonalized(matrix: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """The matrix with singular values of about 1 in place of its own (0.7 to 1.2 after 5 steps), by Newton-Schulz iterations.

    Args:
        matrix: `(..., N, M)`, floating point; axes before the last two are many matrices.
        steps: iterations, of which each multiplies small singular values by 3.4.

    Returns:
        `(..., N, M)`, float32; zeros where the matrix is zero.

    Reference:
        K. Jordan et al., Muon: an optimizer for hidden layers in neural networks, 2024, https://kellerjordan.github.io/posts/muon.

    Example:
        >>> orthogonalized(torch.tensor([[1e-3, 0.0], [0.0, 1e-3]])).diagonal()
        tensor([1.1081, 1.1081])
    """
    x: torch.Tensor = matrix.float()
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp_min(torch.finfo(torch.float32).tiny ** 0.5)
    for _ in range(steps):
        gram = x @ x.mT
        x = _LINEAR * x + (_CUBIC * gram + _QUINTIC * gram @ gram) @ x
    return x.mT if tall else x


def _by_shape(parameters: Iterable[torch.Tensor]) -> list[list[torch.Tensor]]:
    """The parameters, those of one shape and device together."""
    groups: dict[tuple[Any, ...], list[torch.Tensor]] = {}
    for parameter in parameters:
        groups.setdefault((parameter.shape, parameter.device), []).append(parameter)
    return list(groups.values())


class Muon(torch.optim.Optimizer):
    r"""Muon for the kernels of hidden convolutions, Adam for all else.

    A kernel `(out, in, *size)` is a matrix of `out` rows here, of which the Nesterov momentum G gives way to its orthogonal factor:

    .. math:: W \leftarrow W - \text{lr} \sqrt{\max(1, \text{rows} / \text{columns})}\; U V^T, \quad G = U S V^T

    All directions of a kernel then learn alike fast, where Adam's steps follow the few strongest. torch's own takes matrices alone.
    First and last layers are for Adam, whose learning rate is a share of `lr`, so that a scheduler moves both.

    Args:
        named_parameters: of the network, names with parameters.
        hidden: part of the name of layers within; their parameters of 3 and more axes are such kernels.
        lr: learning rate of these kernels.
        adam_share: learning rate of all others, in units of `lr`.
        momentum: of these kernels, in [0, 1).
        betas: decay of Adam's mean and mean square, in [0, 1).
        eps: of Adam.

    Raises:
        ValueError: on arguments out of range, or when no kernel is named so.

    Reference:
        K. Jordan et al., Muon: an optimizer for hidden layers in neural networks, 2024, https://kellerjordan.github.io/posts/muon;
        D. P. Kingma, J. Ba, Adam: a method for stochastic optimization, 2015, arXiv:1412.6980.
    """

    def __init__(
        self,
        named_parameters: Iterable[tuple[str, torch.Tensor]],
        hidden: str = "layers",
        lr: float = 0.016,
        adam_share: float = 1 / 16,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
    ) -> None:
        if not all(0 <= value < math.inf for value in (lr, adam_share, eps)):
            raise ValueError(f"lr, adam_share and eps must be >= 0, got {lr}, {adam_share} and {eps}")
        if not all(0 <= value < 1 for value in (momentum, *betas)):
            raise ValueError(f"momentum and betas must be in [0, 1), got {momentum} and {tuple(betas)}")
        named = list(named_parameters)
        kernels = [parameter for name, parameter in named if parameter.ndim >= 3 and hidden in name]
        if not kernels:
            raise ValueError(f"expected kernels with {hidden!r} in their names, got {[name for name, _ in named]}")
        chosen = set(map(id, kernels))
        others = [parameter for _, parameter in named if id(parameter) not in chosen]
        groups = [{"params": kernels, "orthogonal": True}, {"params": others, "orthogonal": False}]
        defaults = {"lr": lr, "adam_share": adam_share, "momentum": momentum, "betas": tuple(betas), "eps": eps}
        super().__init__(groups, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; the value of `closure`, where one is given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            moving = [parameter for parameter in group["params"] if parameter.grad is not None]
            if group["orthogonal"]:
                for alike in _by_shape(moving):
                    self._kernels(alike, group)
            else:
                for parameter in moving:
                    self._other(parameter, group)
        return loss

    def _kernels(self, kernels: Sequence[torch.Tensor], group: dict[str, Any]) -> None:
        """Step kernels of one shape, at once: single matrices are too small to be multiplied fast."""
        updates = []
        for kernel in kernels:
            gradient, state = cast(torch.Tensor, kernel.grad), self.state[kernel]
            if not state:
                state["momentum"] = torch.zeros_like(kernel)
            state["momentum"].lerp_(gradient, 1 - group["momentum"])
            updates.append(gradient.lerp(state["momentum"], group["momentum"]).flatten(1))
        rows, columns = updates[0].shape
        rate = group["lr"] * max(1.0, rows / columns) ** 0.5
        for kernel, step in zip(kernels, orthogonalized(torch.stack(updates)), strict=True):
            kernel.add_(step.reshape(kernel.shape), alpha=-rate)

    def _other(self, parameter: torch.Tensor, group: dict[str, Any]) -> None:
        gradient, state = cast(torch.Tensor, parameter.grad), self.state[parameter]
        if not state:
            state |= {"step": 0, "mean": torch.zeros_like(parameter), "square": torch.zeros_like(parameter)}
        state["step"] += 1
        first, second = group["betas"]
        state["mean"].lerp_(gradient, 1 - first)
        state["square"].lerp_(gradient.square(), 1 - second)
        root = (state["square"] / (1 - second ** state["step"])).sqrt_().add_(group["eps"])
        rate = group["lr"] * group["adam_share"] / (1 - first ** state["step"])
        parameter.addcdiv_(state["mean"], root, value=-rate)
