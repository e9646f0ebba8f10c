"""Does a result, acquired again, give the input back? And what to change so that it does."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Transform

from ..acquisition import PROTOCOLS, Protocol, acquisition_operator, make_consistent
from ..tensors import plain


def consistency_error(
    img: torch.Tensor, lowres: torch.Tensor, protocol: str | Protocol = "gaussian_spline"
) -> torch.Tensor:
    """Root mean square difference between a result acquired again and the scan: `sqrt(mean((D B x - y)^2))`.

    Args:
        img: the result `x`, `(C, *spatial)`.
        lowres: the scan `y`, `(C, *spatial_lr)`, over the same field of view.
        protocol: the acquisition `D B`, a name in `custom_components.acquisition.PROTOCOLS` or a `Protocol`.

    Returns:
        A scalar tensor in the unit of the images, differentiable in `img` except where the error is 0.

    Raises:
        ValueError: on an unknown protocol, or a scan with more voxels than the result along an axis.
    """
    x, y = plain(img), plain(lowres)
    again = acquisition_operator(x.shape[1:], y.shape[1:], protocol)(x[None])[0]
    return (again - y.to(again)).square().mean().sqrt()


def _check_protocol(protocol: str | Protocol) -> None:
    if isinstance(protocol, str) and protocol not in PROTOCOLS:
        raise ValueError(f"protocol must be one of {tuple(PROTOCOLS)}, got {protocol!r}")


class ConsistencyError(Transform):
    """The error of `consistency_error` as a number.

    Args:
        protocol: the acquisition, a name in `custom_components.acquisition.PROTOCOLS` or a `Protocol`.

    Raises:
        ValueError: on an unknown protocol.
    """

    def __init__(self, protocol: str | Protocol = "gaussian_spline") -> None:
        _check_protocol(protocol)
        self.protocol = protocol

    def __call__(self, img: torch.Tensor, lowres: torch.Tensor) -> float:
        return float(consistency_error(img, lowres, self.protocol))


class ConsistencyErrord(MapTransform):
    """Dictionary version of `ConsistencyError`; before `RestoreIntensityd` the error is in units of the [0, 1] scale.

    Args:
        keys: the result; with more than one, each but the first has its key after the name of the field.
        lowres_key: the LR scan, in the same unit.
        protocol: the acquisition; the true one of a scan is rarely known, so that the error has a floor above 0.
        error_key: where the number goes.
        allow_missing_keys: whether an item may lack a key.
    """

    def __init__(
        self,
        keys: KeysCollection = "pred",
        lowres_key: str = "lowres",
        protocol: str | Protocol = "gaussian_spline",
        error_key: str = "consistency_error",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.lowres_key, self.error_key = lowres_key, error_key
        self.error = ConsistencyError(protocol)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            name = self.error_key if key == self.keys[0] else f"{self.error_key}_{key}"
            d[name] = self.error(d[key], d[self.lowres_key])
        return d


class MakeConsistent(Transform):
    """Make a result agree with its scan where the acquisition is known: see `custom_components.acquisition.make_consistent`.

    Args:
        protocol: the acquisition, a name in `custom_components.acquisition.PROTOCOLS` or a `Protocol`; None: it is not known, and
            the result stays as it is. A wrong one makes results worse.
        noise_std: standard deviation of the scan's noise, in the unit of the images; None: not known, taken as 0. With noise only
            what it does not explain is corrected.
        error_std: of the error of a result, at most; 0.03 of the range is what the networks of this project have at a factor of 2.

    Raises:
        ValueError: on an unknown protocol, a negative noise or an error that is not positive.
    """

    def __init__(
        self, protocol: str | Protocol | None = None, noise_std: float | None = 0.0, error_std: float = 0.03
    ) -> None:
        if protocol is not None:
            _check_protocol(protocol)
        if noise_std is None:
            noise_std = 0.0
        if not noise_std >= 0 or not error_std > 0:
            raise ValueError(f"noise_std must be >= 0 and error_std > 0, got {noise_std} and {error_std}")
        self.protocol, self.noise_std, self.error_std = protocol, noise_std, error_std

    def __call__(self, img: torch.Tensor, lowres: torch.Tensor) -> torch.Tensor:
        """Result `(1, *spatial)` and scan `(1, *spatial_lr)` over one field of view to a result with the meta data of the first."""
        if self.protocol is None:
            return img
        x, y = plain(img), plain(lowres)
        operator = acquisition_operator(x.shape[1:], y.shape[1:], self.protocol)
        better = make_consistent(x[None], y[None].to(x), operator, self.noise_std, self.error_std)[0]
        return MetaTensor(better, meta=img.meta) if isinstance(img, MetaTensor) else better


class MakeConsistentd(MapTransform):
    """Dictionary version of `MakeConsistent`, before `RestoreIntensityd`.

    Args:
        keys: the result.
        lowres_key: the LR scan, in the same unit.
        protocol: see `MakeConsistent`.
        noise_std: see `MakeConsistent`.
        error_std: see `MakeConsistent`.
        allow_missing_keys: whether an item may lack a key.
    """

    def __init__(
        self,
        keys: KeysCollection = "pred",
        lowres_key: str = "lowres",
        protocol: str | Protocol | None = None,
        noise_std: float | None = 0.0,
        error_std: float = 0.03,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.lowres_key = lowres_key
        self.make_consistent = MakeConsistent(protocol, noise_std, error_std)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self.make_consistent(d[key], d[self.lowres_key])
        return d
