"""Metrics of whole scans."""

from .calibration import Calibration, CalibrationCurve, mean_curve
from .checkerboard import Checkerboard, checkerboard
from .niqe import NIQE, Blocks, NaturalModel
from .perceptual_index import MaScore, PerceptualIndex, perceptual_index
from .ssim import VolumeSSIM

__all__ = [
    "NIQE",
    "Blocks",
    "Calibration",
    "CalibrationCurve",
    "Checkerboard",
    "MaScore",
    "NaturalModel",
    "PerceptualIndex",
    "VolumeSSIM",
    "checkerboard",
    "mean_curve",
    "perceptual_index",
]
