"""What is known of how a scan was acquired, put into its meta data for networks that are told."""

from __future__ import annotations

import logging
import math
from collections.abc import Hashable, Mapping, Sequence
from numbers import Real
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Transform
from torch import nn

from ..acquisition import PROTOCOLS, Protocol, slice_axis
from ..errors import ScanError
from ..networks.acquisition_estimator import NOISE, WIDTHS
from ..networks.any_scale import ESTIMATED, NOISE_UNIT, TOLD
from ..tensors import plain

logger = logging.getLogger(__name__)

MAX_WIDTH = 3.0  # LR voxels: no overlap of slices takes a profile beyond that
# Of estimates: the widest, in LR voxels and in LR voxels per factor, and the part of that which noise of 3 % takes off. Few
# scanners blur by more, while smooth anatomy looks as if; too wide a profile costs the most where there is little to gain.
WIDEST, WIDEST_PER_FACTOR, LESS_IN_NOISE = 1.2, 0.6, 0.45
# Of what is told: a profile of less than so many HR voxels leaves little to sharpen, of which noise of 3 % hides this part.
LITTLE_TO_GAIN, HIDDEN_BY_NOISE = 2.0, 0.4


def _header_width(lowres: MetaTensor, across: int, spacing: Sequence[float]) -> tuple[float | None, list[str]]:
    """Width by the slice thickness that the file tells, in LR voxels, and why it is not taken."""
    thickness = lowres.meta.get("slice_thickness")
    others = [size for axis, size in enumerate(spacing) if axis != across]
    # Scanners and converters store slices along the last axis. Where another one was found, voxels that are not clearly the
    # largest there (the 1.2 of `slice_axis`) do not tell that these are the slices which the header means.
    if thickness is None or not (across == 2 or spacing[across] >= 1.1999 * max(others)):
        return None, []
    width = float(thickness) / spacing[across]
    if 0 < width <= MAX_WIDTH:
        return width, []
    most = f"{MAX_WIDTH * spacing[across]:.3g}"
    return None, [f"slice thickness of {thickness:g} mm in the header is not in (0, {most}] mm: taken as not known"]


def estimated_acquisition(
    lowres: torch.Tensor, shape: Sequence[int], estimator: nn.Module, noise_std: float | None = None
) -> tuple[list[float], float]:
    r"""Widths of the slice profile in LR voxels per axis and standard deviation of the noise, by an estimator.

    .. math:: 0.25 \le w_a \le \min(1.2,\, 0.6\, m_a / n_a) \left(1 - 0.45\, \frac{\sigma}{0.03}\right)

    Where anatomy is smooth by itself an estimate is too wide, and a result sharpened by too wide a profile can be worse than a
    spline: the limit is lower where there is less to gain, at small factors m / n and in noise :math:`\sigma`.

    Args:
        lowres: the LR scan, `(1, X, Y, Z)` in [0, 1], `n` voxels per axis.
        shape: voxels `m` per axis of the HR grid over the same field of view.
        estimator: gives widths and noise as `custom_components.networks.AcquisitionEstimator` does.
        noise_std: standard deviation of the noise on the [0, 1] scale; None: not known, estimated too.

    Returns:
        Widths within these limits, and the noise: that given, or the estimate from 0 to 0.04, what is beyond set to these.
    """
    device = next((weight.device for weight in estimator.parameters()), torch.device("cpu"))
    with torch.inference_mode(), torch.autocast(device.type, enabled=False):
        x = plain(lowres)[None].to(device, torch.float32)
        factors = [m / n for n, m in zip(x.shape[2:], shape, strict=True)]
        *widths, noise = estimator(x, torch.tensor([factors], device=device))[0].tolist()
    if noise_std is None:
        noise_std = _within(noise * NOISE_UNIT, NOISE)
    left = 1 - LESS_IN_NOISE * _within(noise_std, NOISE) / NOISE_UNIT
    widest = [min(WIDEST, WIDEST_PER_FACTOR * factor) * left for factor in factors]
    return [_within(w, (WIDTHS[0], most)) for w, most in zip(widths, widest, strict=True)], noise_std


def width_in_noise(width: float, factor: float, noise_std: float) -> float:
    r"""The width of a known slice profile as networks are told it: in noise narrower, where there is little to sharpen.

    .. math:: w \left(1 - 0.4\, \frac{\sigma}{0.03}\, \max(0, \min(1, 2 - w f))\right)

    Networks learn the mean over heads, of which some are smoother than most. There the detail that a narrow profile may have taken
    away is less than the noise that is sharpened with it. The constants were chosen on training scans, plain and smoothed: means
    over scans hardly change or rise, at noise of 1.5 % some fall a little, and the smoothest heads fare better throughout.

    Args:
        width: w, full width at half maximum in LR voxels.
        factor: f, HR voxels per LR voxel.
        noise_std: standard deviation :math:`\sigma` of the noise on the [0, 1] scale; above 0.04 it counts as that.
    """
    little = _within(LITTLE_TO_GAIN - width * factor, (0.0, 1.0))
    return width * (1 - HIDDEN_BY_NOISE * _within(noise_std, NOISE) / NOISE_UNIT * little)


def _within(value: float, limits: tuple[float, float]) -> float:
    low, high = limits
    return min(max(value, low), high)


def describe_acquisition(
    lowres: MetaTensor,
    shape: Sequence[int],
    protocol: str | Protocol | None = None,
    slice_thickness: float | None = None,
    noise_std: float | None = None,
    estimator: nn.Module | None = None,
) -> tuple[MetaTensor, list[str]]:
    r"""Put slice profile and noise of a scan into its meta data, as `custom_components.inferers.AnyScaleInferer` reads them.

    .. math:: w_a = \text{protocol.width}(m_a / n_a) \text{ where } m_a > n_a, \quad \text{else} \quad w_s = t / \Delta_s

    The first holds where the protocol is known; else the second across the slices (`slice_axis` of the meta data, see
    `ToTargetGrid`, or else of the grid), with the voxel size :math:`\Delta_s` in mm there and the slice thickness t that is given,
    or that of the meta data (`slice_thickness`, see `load_scan`). A thickness from the file counts only where the slices lie along
    the last array axis, as scanners store them, or their voxels are at least 1.2 times as large as on the other two. What none of
    these tells, on axes with :math:`m_a > n_a`, and the noise if it is not given, an `estimator` tells from the scan
    (`estimated_acquisition`). Of widths networks are told that these are less certain; the noise is as good as known. Where it is
    given or estimated, a known width is told by `width_in_noise`.

    Args:
        lowres: the LR scan, `(C, X, Y, Z)`, `n` voxels per axis. Single slices and pictures are left untouched.
        shape: voxels `m` per axis of the HR grid over the same field of view.
        protocol: the acquisition, a name in `custom_components.acquisition.PROTOCOLS` or a `Protocol`; None: not known.
        slice_thickness: FWHM of the slice profile in mm; None: what the file tells.
        noise_std: standard deviation of the noise, in the unit of the [0, 1] scale; None: not known.
        estimator: an `AcquisitionEstimator` with its weights; None: what is not known stays so.

    Returns:
        The scan, its voxels not copied, and the warnings, one line each. In its `meta` are `slice_width`, a list of the FWHM in LR
        voxels per array axis, None where it is not known, `slice_width_certainty`, 1, or 0.75 where it was estimated, and
        `noise_std`.

    Raises:
        ScanError: when a given width is above 3 LR voxels of this scan.
    """
    size = tuple(lowres.shape[1:])
    if len(size) != 3 or len(shape) != 3 or min(size) == 1:
        return lowres, []
    warnings: list[str] = []
    width: list[float | None] = [None] * 3
    certainty = [TOLD] * 3
    if protocol is not None:
        known = PROTOCOLS[protocol] if isinstance(protocol, str) else protocol
        width = [known.width(m / n) if m > n else None for n, m in zip(size, shape, strict=True)]
    else:
        across = lowres.meta.get("slice_axis")
        across = slice_axis(size, lowres.affine) if across is None else across
        spacing = [float(s) for s in lowres.pixdim]
        if slice_thickness is None:
            width[across], warnings = _header_width(lowres, across, spacing)
        else:
            width[across] = slice_thickness / spacing[across]
    for axis, w in enumerate(width):
        if w is not None and w > MAX_WIDTH:
            raise ScanError(
                f"expected a slice thickness of at most {MAX_WIDTH:g} voxels, got {w:.3g} voxels of "
                f"{float(lowres.pixdim[axis]):.3g} mm on axis {axis}"
            )
    open_axes = [axis for axis in range(3) if protocol is None and width[axis] is None and shape[axis] > size[axis]]
    if estimator is not None and (open_axes or noise_std is None):
        widths, noise = estimated_acquisition(lowres, shape, estimator, noise_std)
        told = []
        for axis in open_axes:
            width[axis], certainty[axis] = widths[axis], ESTIMATED
            told.append(f"slice profile of {widths[axis]:.2f} voxels on axis {axis}")
        if noise_std is None:
            noise_std = noise
            told.append(f"noise of {100 * noise:.1f} % of its range")
        logger.info("%s: estimated from the scan: %s", lowres.meta.get("filename_or_obj", "scan"), ", ".join(told))
    for axis, (w, n, m) in enumerate(zip(width, size, shape, strict=True)):
        if w is not None and certainty[axis] == TOLD and noise_std is not None:
            width[axis] = width_in_noise(w, m / n, noise_std)
    found = {"slice_width": width, "slice_width_certainty": certainty, "noise_std": noise_std}
    return MetaTensor(plain(lowres), meta={**lowres.meta, **found}), warnings


def _is_number(value: object) -> bool:
    """A finite number; a command line gives text too."""
    return isinstance(value, Real) and math.isfinite(value)


class DescribeAcquisition(Transform):
    """Describe a scan as `describe_acquisition` does, with its warnings in the log.

    Args:
        protocol: see `describe_acquisition`.
        slice_thickness: see `describe_acquisition`.
        noise_std: see `describe_acquisition`.
        estimator: see `describe_acquisition`.

    Raises:
        ValueError: on an unknown protocol, a thickness that is not a positive number, a negative noise, or both a protocol and a
            thickness, as a protocol has its own.
        TypeError: on an estimator that is no module.
    """

    def __init__(
        self,
        protocol: str | Protocol | None = None,
        slice_thickness: float | None = None,
        noise_std: float | None = None,
        estimator: nn.Module | None = None,
    ) -> None:
        if isinstance(protocol, str) and protocol not in PROTOCOLS:
            raise ValueError(f"protocol must be one of {tuple(PROTOCOLS)}, got {protocol!r}")
        if slice_thickness is not None and not (_is_number(slice_thickness) and slice_thickness > 0):
            raise ValueError(f"slice_thickness must be a number > 0 in mm or None, got {slice_thickness!r}")
        if noise_std is not None and not (_is_number(noise_std) and noise_std >= 0):
            raise ValueError(f"noise_std must be a number >= 0 or None, got {noise_std!r}")
        if protocol is not None and slice_thickness is not None:
            raise ValueError(f"expected protocol or slice_thickness, got both: {protocol!r} and {slice_thickness:g} mm")
        if estimator is not None and not isinstance(estimator, nn.Module):
            raise TypeError(f"estimator must be a torch.nn.Module or None, got {type(estimator).__name__}")
        self.protocol, self.slice_thickness, self.noise_std = protocol, slice_thickness, noise_std
        self.estimator = estimator

    def describe(self, lowres: MetaTensor, shape: Sequence[int]) -> tuple[MetaTensor, list[str]]:
        """The scan `(C, X, Y, Z)` described, and the warnings."""
        known = self.protocol, self.slice_thickness, self.noise_std
        return describe_acquisition(lowres, shape, *known, self.estimator)

    def __call__(self, lowres: MetaTensor, shape: Sequence[int]) -> MetaTensor:
        """Describe a scan `(C, X, Y, Z)` that goes to a HR grid of `shape`."""
        described, warnings = self.describe(lowres, shape)
        for warning in warnings:
            logger.warning("%s: %s", lowres.meta.get("filename_or_obj", "scan"), warning)
        return described


class DescribeAcquisitiond(MapTransform):
    """Dictionary version of `DescribeAcquisition`, after `ToTargetGridd`; the warnings are added to the item's list.

    Args:
        keys: LR scans.
        image_key: the scan on the HR grid, for its shape.
        protocol: see `describe_acquisition`.
        slice_thickness: see `describe_acquisition`.
        noise_std: see `describe_acquisition`.
        estimator: see `describe_acquisition`.
        allow_missing_keys: whether an item may lack a key.

    Raises:
        ValueError, TypeError: as `DescribeAcquisition`.
    """

    def __init__(
        self,
        keys: KeysCollection = "lowres",
        image_key: str = "image",
        protocol: str | Protocol | None = None,
        slice_thickness: float | None = None,
        noise_std: float | None = None,
        estimator: nn.Module | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.image_key = image_key
        self.acquisition = DescribeAcquisition(protocol, slice_thickness, noise_std, estimator)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        d["warnings"] = list(d.get("warnings", []))
        for key in self.key_iterator(d):
            d[key], warnings = self.acquisition.describe(d[key], d[self.image_key].shape[1:])
            d["warnings"] += warnings
        return d
