"""Weighted sum of named losses, each of which can be followed by itself."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import nn


class CompositeLoss(nn.Module):
    r"""Sum of losses, each times its weight.

    .. math:: L(y, z) = \sum_{\text{terms } k} w_k L_k(y, z) + \sum_{\text{priors } k} w_k L_k(y)

    After each call `values` holds the value of each term before its weight, without gradient and on its device, for handlers that
    log them one by one. A term of weight 0 is not computed and has no value. `weights` may be changed while training.

    Args:
        terms: losses by name, modules that give a scalar; their parameters, if any, are parameters of the sum.
        weights: a number >= 0 for each name, 1 for all by default. The terms have the signs: `SharpnessLoss` is minus a sharpness.
        priors: names of the terms that take the prediction alone.

    Shape:
        `pred`, `target`: what the terms take; the result is a scalar.

    Raises:
        TypeError: on a term that is no module.
        ValueError: on no terms, names without term or without weight, a weight that is negative or not finite; on call, when a
            term gives no scalar.

    Example:
        >>> loss = CompositeLoss({"l1": nn.L1Loss(), "l2": nn.MSELoss()}, {"l1": 1, "l2": 0.5})
        >>> loss(torch.full((1, 1, 2), 2.0), torch.zeros(1, 1, 2)), loss.values
        (tensor(4.), {'l1': tensor(2.), 'l2': tensor(4.)})
    """

    def __init__(
        self,
        terms: Mapping[str, nn.Module],
        weights: Mapping[str, float] | None = None,
        priors: Iterable[str] = (),
    ) -> None:
        super().__init__()
        names = sorted(terms)
        if not names:
            raise ValueError("expected at least one term, got none")
        for name, term in terms.items():
            if not isinstance(term, nn.Module):
                raise TypeError(f"expected a torch.nn.Module as term {name!r}, got {type(term).__name__}")
        weights = dict.fromkeys(terms, 1.0) if weights is None else weights
        if sorted(weights) != names:
            raise ValueError(f"expected a weight for each of {names}, got them for {sorted(weights)}")
        for name, weight in weights.items():
            if not 0 <= weight < math.inf:
                raise ValueError(f"the weight of {name!r} must be >= 0, got {weight}")
        if isinstance(priors, str):
            raise TypeError(f"priors must be a list of names, got the string {priors!r}")
        self.priors = frozenset(priors)
        if not self.priors <= set(names):
            raise ValueError(f"priors must be among {names}, got {sorted(self.priors)}")
        self.terms = nn.ModuleDict(terms)
        self.weights = {name: float(weights[name]) for name in terms}
        self.values: dict[str, torch.Tensor] = {}

    def forward(self, pred: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Weighted sum of the terms for `pred` and `target`, `(B, C, *spatial)`."""
        self.values = {}
        total = pred.new_zeros((), dtype=torch.promote_types(pred.dtype, torch.float32))
        for name, term in self.terms.items():
            if self.weights[name] == 0:
                continue
            value = term(pred) if name in self.priors else term(pred, target)
            if value.ndim:
                raise ValueError(f"expected a scalar of term {name!r}, got the shape {tuple(value.shape)}")
            self.values[name] = value.detach()
            total = total + self.weights[name] * value
        return total

    def extra_repr(self) -> str:
        """What `print` shows of the loss."""
        return f"weights={self.weights}, priors={sorted(self.priors)}"
