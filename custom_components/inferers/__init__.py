"""Inference on whole volumes, and the forward pass of training."""

from .autocast import AutocastInferer
from .exact import ExactInferer
from .planning import Plan
from .receptive_field import receptive_field
from .slices import SlicesInferer

__all__ = ["AutocastInferer", "ExactInferer", "Plan", "SlicesInferer", "receptive_field"]
