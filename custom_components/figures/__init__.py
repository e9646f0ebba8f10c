"""Figures: planes of volumes with residuals and an enlarged detail, and charts of the scores of a comparison."""

from .bars import score_bars
from .calibration import calibration_curves
from .comparison import three_planes
from .curves import loss_curves
from .intervals import mean_intervals
from .patches import LabelledPatch, patch_rows
from .planes import head_position, plane_slice
from .ranks import rank_bars
from .residuals import residual_pictures
from .speed import speed_scatter

__all__ = [
    "LabelledPatch",
    "calibration_curves",
    "head_position",
    "loss_curves",
    "mean_intervals",
    "patch_rows",
    "plane_slice",
    "rank_bars",
    "residual_pictures",
    "score_bars",
    "speed_scatter",
    "three_planes",
]
