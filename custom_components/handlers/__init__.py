"""Ignite handlers: the state of a run, its course, reports, previews."""

from .calibration_report import CalibrationReport
from .evaluation_report import EvaluationReport
from .gradient_clipping import AdjustableGradientClipping, GradientNormClipping
from .loss_curve import LossCurve
from .loss_terms import LossTerms
from .notice import Notice
from .phase_balance import PhaseBalance
from .preview import Preview
from .progress import Progress
from .scan_metric import ScanMetric
from .summary import SummaryReport
from .training_state import TrainingState
from .weights_loader import WeightsLoader, load_weights

__all__ = [
    "AdjustableGradientClipping",
    "CalibrationReport",
    "EvaluationReport",
    "GradientNormClipping",
    "LossCurve",
    "LossTerms",
    "Notice",
    "PhaseBalance",
    "Preview",
    "Progress",
    "ScanMetric",
    "SummaryReport",
    "TrainingState",
    "WeightsLoader",
    "load_weights",
]
