"""Ignite engines in MONAI's manner."""

from .prepare_batch import prepare_batch
from .scan_evaluator import ScanEvaluator

__all__ = ["ScanEvaluator", "prepare_batch"]
