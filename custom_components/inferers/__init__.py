"""Inference on whole volumes, and the forward pass of training."""

from .autocast import AutocastInferer
from .exact import ExactInferer
from .planning import Plan
from .receptive_field import receptive_field

__all__ = ["AutocastInferer", "ExactInferer", "Plan", "receptive_field"]
