"""Acquire a batch of HR patches at random on the device: what a network for any scan and any grid is trained on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.transforms import Randomizable
from torch import nn

from ..acquisition import Protocol, SeparableOperator, add_rician_noise, interpolation_operator
from ..networks.acquisition_estimator import WIDTHS
from ..networks.any_scale import ESTIMATED_OF_PATCH, acquisition_condition
from ..tensors import plain

Range = tuple[float, float]
Prepared = tuple[torch.Tensor, torch.Tensor, tuple[()], dict[str, Any]]  # what a trainer takes of `prepare_batch`


class RandAcquireBatch(Randomizable):
    """Make the batch of a step from HR patches: one target grid for all, an acquisition for each.

    All samples of a batch have the same scale factors, as tensors must; slice profile and noise are drawn for each sample. The LR
    patch has `size` voxels per axis or as many as the HR patch, a cube, allows; that is cut to its extent, outer voxel borders on
    each other, so that a patch is like a small volume, and turned or mirrored at random.

    A part of what is drawn is told to the network (see `custom_components.networks.acquisition_condition`): voxel size always, the
    width of the slice profile with the probability `known_prob` and the noise with `noise_known_prob`, each by itself. What is not
    told of a width, an `estimator` estimates from the LR patch with the probability `estimated_prob`, and the network learns how
    far to trust it. The profile that is neither told nor estimated is the one that it assumes where nothing is known.

    It goes on from batch to batch with the random state of `set_random_state`. Without one, each batch takes a seed from torch's,
    which `custom_components.handlers.TrainingState` sets in each epoch: a run that was killed goes on as it would have.

    Args:
        scale_factors: kinds of target, one drawn per batch: a factor, a range from which one factor is drawn for all axes, or
            three of either, whose axes are permuted at random.
        scale_weights: probability of each kind, in any unit; None: alike.
        profiles: slice profiles, one drawn per sample: dictionaries of `Protocol`'s arguments, where `sigma` and `thickness` may be
            ranges.
        profile_weights: probability of each profile, in any unit; None: alike.
        noise_std: range of the standard deviation of Rician noise, in units of the [0, 1] scale.
        noise_prob: probability of noise.
        known_prob: probability that the width of the profile is told, one number or one per profile.
        noise_known_prob: probability that the noise is told.
        estimator: gives widths as `custom_components.networks.AcquisitionEstimator` does; it is put into evaluation mode, without
            gradients. None: nothing is estimated.
        estimated_prob: probability that a width which is not told is estimated, one number or one per profile.
        size: largest LR patch, voxels per axis.
        margin: voxels on each side of the HR patch for the blur, cut off.

    Raises:
        ValueError: on an empty list, weights that do not fit, a probability out of range, a factor below 1, or a profile that is no
            `Protocol`.
    """

    def __init__(
        self,
        scale_factors: Sequence[Any] = (2.0,),
        scale_weights: Sequence[float] | None = None,
        profiles: Sequence[Mapping[str, Any]] = ({"sigma": 1.0},),
        profile_weights: Sequence[float] | None = None,
        noise_std: Range = (0.0, 0.03),
        noise_prob: float = 0.0,
        known_prob: float | Sequence[float] = 0.7,
        noise_known_prob: float = 0.7,
        estimator: nn.Module | None = None,
        estimated_prob: float | Sequence[float] = 1.0,
        size: int = 24,
        margin: int = 8,
    ) -> None:
        for name, values, weights in (
            ("scale_factors", scale_factors, scale_weights),
            ("profiles", profiles, profile_weights),
        ):
            if not values or (weights is not None and len(weights) != len(values)):
                given = "no weights" if weights is None else f"{len(weights)} weights"
                raise ValueError(f"expected {name} and one weight for each, got {len(values)} and {given}")
        told = _per_profile("known_prob", known_prob, len(profiles))
        estimated = _per_profile("estimated_prob", estimated_prob, len(profiles))
        _per_profile("noise_known_prob", noise_known_prob, 1)
        for kind in scale_factors:
            for low, high in map(_ends, kind if _is_per_axis(kind) else [kind]):
                if not 1 <= low <= high < math.inf:
                    raise ValueError(f"scale_factors must be >= 1, ranges from low to high, got {kind}")
        for profile in profiles:
            Protocol(**profile)
        self.scale_factors, self.scale_weights = list(scale_factors), scale_weights
        self.profiles, self.profile_weights = [dict(p) for p in profiles], profile_weights
        self.noise_std, self.noise_prob = noise_std, noise_prob
        self.known_prob, self.noise_known_prob, self.estimated_prob = told, noise_known_prob, estimated
        self.estimator = None if estimator is None else estimator.eval().requires_grad_(False)
        self.size, self.margin = size, margin
        self._follows_torch = True

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> RandAcquireBatch:
        """Go on from a seed or state of its own; without either from torch's again."""
        self._follows_torch = seed is None and state is None
        super().set_random_state(seed, state)
        return self

    def _pick(self, values: Sequence[Any], weights: Sequence[float] | None) -> Any:
        total = None if weights is None else [w / sum(weights) for w in weights]
        return values[int(self.R.choice(len(values), p=total))]

    def _value(self, given: float | Range) -> float:
        return float(self.R.uniform(*given)) if isinstance(given, Sequence) else float(given)

    def _factors(self) -> list[float]:
        kind = self._pick(self.scale_factors, self.scale_weights)
        if _is_per_axis(kind):
            return [self._value(kind[i]) for i in self.R.permutation(3)]
        return [self._value(kind)] * 3

    def _protocol(self) -> tuple[Protocol, float, float]:
        """A protocol, and the probabilities that its width is told, and estimated where it is not."""
        kinds = list(zip(self.profiles, self.known_prob, self.estimated_prob, strict=True))
        drawn, known_prob, estimated_prob = self._pick(kinds, self.profile_weights)
        drawn = dict(drawn)
        for name in ("sigma", "thickness"):
            if drawn.get(name) is not None:
                drawn[name] = self._value(drawn[name])
        return Protocol(**drawn), known_prob, estimated_prob

    def _turned(self, hr: torch.Tensor, spacing: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """A cube `(1, 1, *spatial)` and its voxel size, turned or mirrored to one of 48 orientations."""
        order = [int(axis) for axis in self.R.permutation(3)]
        mirrored = [axis + 2 for axis in range(3) if self.R.random_sample() < 0.5]
        return hr.permute(0, 1, *(axis + 2 for axis in order)).flip(mirrored), spacing[order]

    def _acquired(
        self, hr: torch.Tensor, lr_shape: Sequence[int], shape: Sequence[int], spacing: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, bool]:
        """One patch `(1, 1, *spatial)` with margin to LR without noise, with noise, its condition, and whether to estimate."""
        (protocol, known_prob, estimated_prob), m = self._protocol(), self.margin
        factors = [b / a for a, b in zip(lr_shape, shape, strict=True)]
        matrices: list[torch.Tensor | None] = []
        for axis, (n, f) in enumerate(zip(lr_shape, factors, strict=True)):
            if f == 1:  # what is not acquired needs no margin
                hr = hr.narrow(axis + 2, m, n)
                matrices.append(None)
            else:
                centres = m - 0.5 + f * (torch.arange(n, dtype=torch.float64) + 0.5)
                matrices.append(protocol.matrix(hr.shape[axis + 2], centres, f))
        clean = SeparableOperator(matrices)(hr)
        std = self._value(self.noise_std) if self.R.random_sample() < self.noise_prob else 0.0
        generator = torch.Generator(hr.device).manual_seed(int(self.R.randint(2**31 - 1)))
        noisy = add_rician_noise(clean, std, generator)
        width_known, noise_known = (self.R.random_sample() < p for p in (known_prob, self.noise_known_prob))
        condition = acquisition_condition(
            factors,
            [float(s) * f for s, f in zip(spacing, factors, strict=True)],
            [protocol.width(f) if width_known else None for f in factors],
            std if noise_known else None,
        )
        return clean, noisy, condition, self.estimator is not None and self.R.random_sample() < estimated_prob

    def _estimate(self, noisy: torch.Tensor, condition: torch.Tensor, wanted: Sequence[bool]) -> torch.Tensor:
        """Conditions `(B, 14)`, with estimates where a width is not told and one is wanted."""
        if self.estimator is None or not any(wanted):
            return condition
        self.estimator.to(noisy.device)  # no module of the engine that would move it
        with torch.no_grad(), torch.autocast(noisy.device.type, enabled=False):
            widths = self.estimator(noisy.float(), condition[:, 0:12:4].exp2())[:, :3].clamp(*WIDTHS)
        rows = torch.tensor(wanted, device=condition.device)[:, None]
        missing = rows & (condition[:, 3:12:4] == 0) & (condition[:, 0:12:4] > 0)
        condition[:, 2:12:4] = condition[:, 2:12:4].where(~missing, widths)
        condition[:, 3:12:4] = condition[:, 3:12:4].where(~missing, ESTIMATED_OF_PATCH)
        return condition

    def __call__(
        self,
        batchdata: Mapping[str, Any],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **_: Any,
    ) -> Prepared:
        """HR patches `image` `(B, 1, n, n, n)` and `spacing` `(B, 3)` in mm to what `SupervisedTrainer` takes of a `prepare_batch`.

        Returns:
            LR `(B, 1, *lr)`; targets `(B, 2, *hr)`, HR and the noise as splines interpolate it; and the network's further
            arguments `shape` and `condition`.

        Raises:
            ValueError: when a patch is no cube, or is not larger than its margins by the factor.
        """
        hr = plain(batchdata["image"]).to(device, non_blocking=non_blocking)
        if hr.ndim != 5 or len(set(hr.shape[2:])) != 1:
            raise ValueError(f"expected cubes (B, 1, n, n, n), got {tuple(hr.shape)}")
        if self._follows_torch:
            self.R = np.random.RandomState(int(torch.randint(2**31 - 1, ())))
        factors = self._factors()
        inner = hr.shape[-1] - 2 * self.margin
        if inner < max(factors):
            raise ValueError(f"expected {max(factors):g} voxels within the margins of {self.margin}, got {inner}")
        lr_shape = [min(self.size, int(inner / f + 1e-6)) for f in factors]
        shape = [round(n * f) for n, f in zip(lr_shape, factors, strict=True)]
        turned = [self._turned(x, spacing) for x, spacing in zip(hr.split(1), batchdata["spacing"], strict=True)]
        box = (slice(None), slice(None), *(slice(0, n + 2 * self.margin) for n in shape))
        hr = torch.cat([x[box] for x, _ in turned])
        made = [
            self._acquired(x, lr_shape, shape, spacing) for x, (_, spacing) in zip(hr.split(1), turned, strict=True)
        ]
        clean_patches, noisy_patches, conditions, estimated = zip(*made, strict=True)
        clean, noisy = torch.cat(clean_patches), torch.cat(noisy_patches)
        noise = noisy - clean
        grid = interpolation_operator(lr_shape, shape)
        noise = grid(noise) if bool(noise.any()) else noise.new_zeros(len(noise), 1, *shape)
        inside = (slice(None), slice(None), *(slice(self.margin, self.margin + n) for n in shape))
        target = torch.cat([hr[inside], noise], 1)
        condition = self._estimate(noisy, torch.stack(conditions).to(hr.device), estimated)
        lr = noisy.contiguous(memory_format=torch.channels_last_3d)
        return lr, target, (), {"shape": tuple(shape), "condition": condition}


def _per_profile(name: str, given: float | Sequence[float], count: int) -> list[float]:
    """Probabilities, one per profile."""
    values = list(given) if isinstance(given, Sequence) else [given] * count
    if len(values) != count or not all(0 <= p <= 1 for p in values):
        raise ValueError(f"{name} must be in [0, 1], one or one per profile, got {given}")
    return values


def _is_per_axis(kind: Any) -> bool:
    return isinstance(kind, Sequence) and len(kind) == 3


def _ends(given: Any) -> Range:
    """Lowest and highest value of a number or a range."""
    low, high = given if isinstance(given, Sequence) else (given, given)
    return low, high
