"""Ignite engines in MONAI's manner."""

from .adversarial import RelativisticGANTrainer
from .prepare_batch import prepare_batch
from .scan_evaluator import ScanEvaluator

__all__ = ["RelativisticGANTrainer", "ScanEvaluator", "prepare_batch"]
