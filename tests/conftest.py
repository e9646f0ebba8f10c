"""Small scans that tests write to disk; one thread, so that a result is the same bits in this process and in others."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start
torch.set_num_threads(1)


def oblique_affine(
    spacing=(0.9, 1.1, 3.3), angles=(0.2, -0.3, 0.15), flips=(1, -1, 1), axes=(0, 1, 2), origin=(12.5, -40, 7)
):
    """Affine `(4, 4)` of rotated, flipped and permuted axes with the given voxel sizes in mm."""
    a, b, c = angles
    x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    z = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = (z @ y @ x)[:, list(axes)] @ np.diag(np.multiply(spacing, flips))
    affine[:3, 3] = origin
    return affine


@pytest.fixture
def oblique() -> Callable[..., np.ndarray]:
    return oblique_affine


@pytest.fixture
def write_nifti(tmp_path: Path) -> Callable[..., Path]:
    """Write voxels (default: random int16, negatives too) as NIfTI; `edit` may change the image before."""

    def write(name="scan.nii.gz", voxels=None, affine=None, edit=None, dtype=None, cls=nib.Nifti1Image) -> Path:
        if voxels is None:
            voxels = np.random.default_rng(0).integers(-300, 900, (7, 6, 5)).astype(np.int16)
        image = cls(voxels, oblique_affine() if affine is None else affine, dtype=dtype)
        if edit:
            edit(image)
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(image, path)
        return path

    return write


@pytest.fixture
def write_dicom(tmp_path: Path) -> Callable[..., Path]:
    """Write voxels `(X, Y, Z)` as a DICOM series on a RAS affine; `heights` moves slices along their normal."""
    import itk

    def write(
        folder="series", voxels=None, affine=None, heights=None, uid="1.2.826.0.1.3680043.2.1125.1", names="im{:03d}"
    ):
        voxels = np.arange(7 * 6 * 5, dtype=np.int16).reshape(7, 6, 5) - 50 if voxels is None else voxels
        affine = oblique_affine(flips=(1, 1, 1)) if affine is None else affine
        lps = np.diag([-1.0, -1, 1, 1]) @ affine
        spacing = np.linalg.norm(lps[:3, :3], axis=0)
        direction = lps[:3, :3] / spacing
        out = tmp_path / folder
        out.mkdir(parents=True, exist_ok=True)
        order = np.random.default_rng(0).permutation(voxels.shape[2])  # file names say nothing of the position
        for k in range(voxels.shape[2]):
            image = itk.image_from_array(np.ascontiguousarray(voxels[:, :, k : k + 1].T))
            height = k if heights is None else heights[k]
            image.SetSpacing([float(s) for s in spacing])
            image.SetOrigin([float(v) for v in lps[:3, 3] + direction[:, 2] * height * spacing[2]])
            image.SetDirection(itk.matrix_from_array(direction))
            tags = image.GetMetaDataDictionary()
            tags["0008|0060"] = "MR"
            tags["0020|000d"] = "1.2.826.0.1.3680043.2.1125.9"
            tags["0020|000e"] = uid
            tags["0020|0013"] = str(k + 1)
            io = itk.GDCMImageIO.New()
            io.KeepOriginalUIDOn()
            path = out / names.format(int(order[k]))
            writer = itk.ImageFileWriter[type(image)].New(Input=image, FileName=f"{path}.dcm", ImageIO=io)
            writer.Update()
            Path(f"{path}.dcm").rename(path)
        return out

    return write
