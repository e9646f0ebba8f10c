"""Named protocols: how LR images were made from HR ones in the papers, and the operators that they give."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .blur import FWHM_PER_SIGMA, box_matrix, gaussian_matrix
from .grid import centred_positions, corner_positions
from .interpolation import interpolation_matrix
from .operators import SeparableOperator


@dataclass(frozen=True)
class Protocol:
    """One way to acquire an axis: blur, then sample.

    Attributes:
        blur: `gaussian`, `box` or `none`.
        sigma: standard deviation of the Gaussian in HR voxels; used where `thickness` is None.
        thickness: slice thickness in LR voxels: the FWHM of the Gaussian or the width of the box. A value below 1 leaves a gap.
        sampling: interpolation kind by which LR voxels are read from the blurred axis; a box is integrated where they are.
        antialias: widen the sampling kernel by the scale factor (Matlab's `imresize`).
        boundary: continuation of the axis beyond its ends, for sampling.
        alignment: `centre` keeps the extent; `corner` puts the outer voxel centres on each other.
    """

    blur: str = "gaussian"
    sigma: float = 1.0
    thickness: float | None = None
    sampling: str = "bspline"
    antialias: bool = False
    boundary: str = "nearest"
    alignment: str = "centre"

    def __post_init__(self) -> None:
        if self.blur not in ("gaussian", "box", "none"):
            raise ValueError(f"blur must be gaussian, box or none, got {self.blur!r}")
        if self.alignment not in ("centre", "corner"):
            raise ValueError(f"alignment must be centre or corner, got {self.alignment!r}")
        if self.blur == "box" and self.thickness is None:
            raise ValueError("a box blur needs a thickness, got None")

    def positions(self, n_in: int, n_out: int) -> torch.Tensor:
        """Points `(n_out,)` at which an axis of `n_in` voxels is sampled, in voxel indices."""
        return (centred_positions if self.alignment == "centre" else corner_positions)(n_in, n_out)

    def width(self, factor: float) -> float | None:
        """Width of the blur in LR voxels of `factor` HR voxels, None where there is no blur: that of a Gaussian of equal variance.

        It is the full width at half maximum for a Gaussian, and 0.68 of the thickness for a box, which blurs that much less.
        """
        if self.blur == "none":
            return None
        if self.thickness is None:
            return self.sigma * FWHM_PER_SIGMA / factor
        return self.thickness * (FWHM_PER_SIGMA / math.sqrt(12) if self.blur == "box" else 1.0)

    def matrix(self, n: int, positions: torch.Tensor, factor: float, thickness: float | None = None) -> torch.Tensor:
        """Blur and sampling of one axis, `(len(positions), n)` float64.

        Args:
            n: HR voxels of the axis.
            positions: LR voxel centres in HR voxel indices.
            factor: LR voxel size in HR voxels.
            thickness: FWHM or width in HR voxels, in place of the protocol's own.
        """
        if thickness is None and self.thickness is not None:
            thickness = self.thickness * factor
        if self.blur == "box" and thickness is not None:
            return box_matrix(n, thickness, self.boundary, positions)
        stretch = factor if self.antialias and factor > 1 else 1.0
        sample = interpolation_matrix(n, positions, self.sampling, self.boundary, stretch)
        if self.blur == "none":
            return sample
        return sample @ gaussian_matrix(n, self.sigma if thickness is None else thickness / FWHM_PER_SIGMA)


PROTOCOLS: dict[str, Protocol] = {
    # Pham 2019 on the voxel-centred grid: the default, and what the tables of this project use.
    "gaussian_spline": Protocol(),
    # Pham 2017, 2019: scipy.ndimage.gaussian_filter(sigma=1), then scipy.ndimage.zoom(order=3) with its corner alignment.
    "gaussian_spline_corner": Protocol(boundary="mirror", alignment="corner"),
    # Matlab's imresize: Keys cubic with anti-aliasing, no other blur.
    "bicubic": Protocol(blur="none", sampling="cubic", antialias=True, boundary="reflect"),
    # Thurnhofer-Hemsi 2019: a Gaussian of sigma 1, then Matlab's imresize.
    "gaussian_bicubic": Protocol(sampling="cubic", antialias=True, boundary="reflect"),
    # 2D multi-slice acquisition: a Gaussian slice profile whose FWHM is the slice thickness (Greenspan 2008).
    "slice_profile": Protocol(thickness=1.0),
    # An ideal rectangular slice profile without gap: LR voxels are averages.
    "box": Protocol(blur="box", thickness=1.0, boundary="reflect"),
}


def acquisition_operator(
    shape: Sequence[int],
    lr_shape: Sequence[int],
    protocol: str | Protocol = "gaussian_spline",
    spacing: Sequence[float] | None = None,
    thickness: Sequence[float | None] | None = None,
) -> SeparableOperator:
    """`D B` of `y = D B x + n`: blur each axis and sample it on the LR grid.

    An axis of unchanged size is acquired as it is, unless a thickness is given for it.

    Args:
        shape: HR voxels per spatial axis.
        lr_shape: LR voxels per spatial axis.
        protocol: a name from `PROTOCOLS` or a `Protocol`.
        spacing: HR voxel size in mm per axis; needed with `thickness`.
        thickness: slice thickness in mm per axis (None: the protocol's own): FWHM of the Gaussian or width of the box. The LR
            spacing less the thickness is the gap between slices.

    Raises:
        ValueError: on an unknown protocol, sizes that do not fit or that grow, or a thickness without spacing or blur.
    """
    if isinstance(protocol, str):
        if protocol not in PROTOCOLS:
            raise ValueError(f"protocol must be one of {tuple(PROTOCOLS)}, got {protocol!r}")
        protocol = PROTOCOLS[protocol]
    if len(shape) != len(lr_shape) or any(m > n or m < 1 for n, m in zip(shape, lr_shape, strict=False)):
        raise ValueError(f"expected a LR shape of at least 1 and at most {tuple(shape)}, got {tuple(lr_shape)}")
    if thickness is not None and spacing is None:
        raise ValueError("a thickness in mm needs the HR spacing in mm, got None")
    if thickness is not None and spacing is not None and not len(thickness) == len(spacing) == len(shape):
        raise ValueError(f"expected one thickness and one spacing per axis, got {len(thickness)} and {len(spacing)}")
    if thickness is not None and protocol.blur == "none":
        raise ValueError("a thickness needs a Gaussian or a box blur, got none")
    matrices: list[torch.Tensor | None] = []
    for axis, (n, m) in enumerate(zip(shape, lr_shape, strict=True)):
        in_mm = None if thickness is None else thickness[axis]
        in_voxels = None if in_mm is None or spacing is None else in_mm / spacing[axis]
        keep = n == m and in_voxels is None
        matrices.append(None if keep else protocol.matrix(n, protocol.positions(n, m), n / m, in_voxels))
    return SeparableOperator(matrices)


def interpolation_operator(
    shape: Sequence[int],
    new_shape: Sequence[int],
    kind: str = "bspline",
    boundary: str = "nearest",
    alignment: str = "centre",
) -> SeparableOperator:
    """Interpolation from a grid of `shape` to one of `new_shape` over the same extent (`S` in the papers' `Z = S Y`).

    Args:
        shape: voxels per spatial axis.
        new_shape: wished voxels per spatial axis.
        kind: `nearest`, `linear`, `cubic` or `bspline`.
        boundary: `nearest`, `reflect` or `mirror`.
        alignment: `centre` keeps the extent; `corner` as `scipy.ndimage.zoom` by default.

    Raises:
        ValueError: on shapes of unlike dimension, or an unknown kind, boundary or alignment.
    """
    if len(shape) != len(new_shape):
        raise ValueError(f"expected a shape of {len(shape)} axes, got {tuple(new_shape)}")
    if alignment not in ("centre", "corner"):
        raise ValueError(f"alignment must be centre or corner, got {alignment!r}")
    positions = centred_positions if alignment == "centre" else corner_positions
    return SeparableOperator(
        [
            None if n == m else interpolation_matrix(n, positions(n, m), kind, boundary)
            for n, m in zip(shape, new_shape, strict=True)
        ]
    )
