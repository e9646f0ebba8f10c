"""Slices of a scan, its interpolation and its result as pictures: one plane at a time, one grey window, sides in mm."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
import torch

from ..acquisition import SeparableOperator, interpolation_operator
from ..figures import plane_slice
from ..figures.planes import PLANES
from .maps import coloured, draw_colour_bar

LONG_SIDE = 640  # pixels of a picture's side, about; more where a scan has more voxels
LEFT = ("spline", "input")
ERROR = "uncertainty"
SIDES = {
    "sagittal": "front on the left, top of the head up",
    "coronal": "patient's right on the left, top of the head up",
    "axial": "patient's right on the left, front up",
    "picture": "as the file shows it",
}


@dataclass(frozen=True)
class Comparison:
    """A scan and its result on disk, of which slices are read as they are asked for.

    Attributes:
        folder: holds `input.npy`, `sr.npy` and, where there is one, `uncertainty.npy`, float32 `(X, Y, Z)`, and the pictures.
        affine: `(4, 4)` of the scan, voxels to RAS+ mm.
        planes: that have more than one voxel both ways: of `sagittal`, `coronal`, `axial`; of a picture `picture` alone.
        window: values shown black and white in all pictures.
        middle: of the head along each array axis, as a part of the extent.
        largest_error: the expected error that is shown brightest, in the scan's unit; None where there is no map of it.
    """

    folder: Path
    affine: npt.NDArray[np.float64]
    planes: tuple[str, ...]
    window: tuple[float, float]
    middle: tuple[float, float, float]
    largest_error: float | None = None

    def volume(self, name: str) -> torch.Tensor:
        """`(1, X, Y, Z)` of `input`, `sr` or `uncertainty`, read from the disk as it is used."""
        return torch.from_numpy(np.load(self.folder / f"{name}.npy", mmap_mode="c"))[None]

    def _normal(self, plane: str) -> tuple[int, bool]:
        """Array axis across a plane, and whether its index grows to the patient's right, front or top."""
        world = PLANES["axial" if plane == "picture" else plane][2]
        orientation = nib.orientations.io_orientation(self.affine)
        axis = int(np.flatnonzero(orientation[:, 0] == world)[0])
        return axis, bool(orientation[axis, 1] > 0)

    def count(self, plane: str) -> int:
        """Number of slices of the result in a plane."""
        return int(self.volume("sr").shape[1 + self._normal(plane)[0]])

    def start(self, plane: str) -> int:
        """Number of the slice through the middle of the head, from 1."""
        axis, grows = self._normal(plane)
        index = min(int(self.middle[axis] * self.count(plane)), self.count(plane) - 1)
        return index + 1 if grows else self.count(plane) - index

    def pixels(self, plane: str, number: int, name: str) -> tuple[npt.NDArray[np.float32], tuple[float, float]]:
        """A slice `(rows, columns)` in radiological view in the scan's unit, and its width and height in mm.

        Args:
            plane: of `planes`.
            number: of the slice of the result, from 1, to the patient's right, front or top.
            name: `sr`, `input`, the slice of the scan at that place, `spline`, the scan interpolated there as for the network, or
                `uncertainty`, the expected error.

        Raises:
            ValueError: on another name or plane, or a number beyond the slices.
        """
        names = (*LEFT, "sr", *([] if self.largest_error is None else [ERROR]))
        if name not in names or plane not in self.planes:
            raise ValueError(f"expected one of {names} in {self.planes}, got {name!r} in {plane!r}")
        count, (axis, grows) = self.count(plane), self._normal(plane)
        if not 1 <= number <= count:
            raise ValueError(f"expected a slice from 1 to {count}, got {number}")
        index = number - 1 if grows else count - number
        scan = self.volume("input")
        volume = self._spline(scan, axis, index) if name == "spline" else scan if name == "input" else self.volume(name)
        place = [0.5, 0.5, 0.5]
        place[axis] = (index + 0.5) / count
        shown = plane_slice(volume, self.affine, plane, (place[0], place[1], place[2]))
        return shown.pixels, plane_slice(scan, self.affine, plane, (0.0, 0.0, 0.0)).size

    def _spline(self, scan: torch.Tensor, axis: int, index: int) -> torch.Tensor:
        """The one slice of the interpolated scan, without the others."""
        whole = interpolation_operator(scan.shape[1:], self.volume("sr").shape[1:])
        across = whole.matrices[axis]
        only: list[torch.Tensor | None] = [None, None, None]
        only[axis] = torch.eye(scan.shape[1 + axis])[index : index + 1] if across is None else across[index : index + 1]
        within = [None if a == axis else m for a, m in enumerate(whole.matrices)]
        return SeparableOperator(within)(SeparableOperator(only)(scan[None]))[0]

    def picture(self, plane: str, number: int, name: str) -> Path:
        """A slice as a PNG on a black square, of one size, scale in mm and grey window for all; an expected error in colours."""
        from PIL import Image

        path = self.folder / f"{plane}_{number}_{name}.png"
        if not path.exists():
            pixels, size = self.pixels(plane, number, name)
            shown = Image.fromarray(self._shades(pixels, name))
            side, per_mm = self._scale()
            width, height = (max(round(mm * per_mm), 1) for mm in size)
            square = Image.new(shown.mode, (side, side))
            shown = shown.resize((width, height), Image.Resampling.NEAREST)
            square.paste(shown, ((side - width) // 2, (side - height) // 2))
            partial = path.with_suffix(f".{threading.get_ident()}")
            square.save(partial, "png")
            os.replace(partial, path)  # another request may be reading it
        return path

    def _shades(self, pixels: npt.NDArray[np.float32], name: str) -> npt.NDArray[np.uint8]:
        """Grey `(rows, columns)`, or the colours `(rows, columns, 3)` of an expected error."""
        if name == ERROR and self.largest_error is not None:
            return coloured(pixels, self.largest_error)
        low, high = self.window
        grey: npt.NDArray[np.uint8] = np.rint(255 * np.clip((pixels - low) / (high - low), 0, 1)).astype(np.uint8)
        return grey

    def colour_bar(self) -> Path | None:
        """The bar of the expected error's colours as a PNG; None where there is no map of it."""
        path = self.folder / "colour_bar.png"
        if self.largest_error is None:
            return None
        if not path.exists():
            draw_colour_bar(self.largest_error, path)
        return path

    def _scale(self) -> tuple[int, float]:
        """Side of the square in pixels, and pixels per mm: a whole number of them per voxel of the result where it is finest."""
        extent = np.linalg.norm(self.affine[:3, :3], axis=0) * self.volume("input").shape[1:]
        shape = np.array(self.volume("sr").shape[1:])
        longest = float(extent[shape > 1].max())
        finest = float((extent / shape)[shape > 1].min())
        per_mm = max(round(LONG_SIDE * finest / longest), 1) / finest
        return round(longest * per_mm), per_mm
