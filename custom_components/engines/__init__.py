"""Ignite engines in MONAI's manner."""

from .acquisition_batch import AcquisitionBatch, acquisition_target
from .adversarial import RelativisticGANTrainer
from .distilled_batch import DistilledBatch
from .prepare_batch import prepare_batch
from .rand_acquire_batch import RandAcquireBatch
from .scan_evaluator import ScanEvaluator

__all__ = [
    "AcquisitionBatch",
    "DistilledBatch",
    "RandAcquireBatch",
    "RelativisticGANTrainer",
    "ScanEvaluator",
    "acquisition_target",
    "prepare_batch",
]
