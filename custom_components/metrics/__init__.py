"""Metrics of whole scans."""

from .checkerboard import Checkerboard, checkerboard
from .niqe import NIQE, Blocks, NaturalModel
from .perceptual_index import MaScore, PerceptualIndex, perceptual_index
from .ssim import VolumeSSIM

__all__ = [
    "NIQE",
    "Blocks",
    "Checkerboard",
    "MaScore",
    "NaturalModel",
    "PerceptualIndex",
    "VolumeSSIM",
    "checkerboard",
    "perceptual_index",
]
