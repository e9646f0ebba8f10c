"""Figures of volumes: axial, coronal and sagittal planes side by side, with residuals and an enlarged detail."""

from .comparison import three_planes
from .planes import head_position, plane_slice

__all__ = ["head_position", "plane_slice", "three_planes"]
