"""Inference on whole volumes, and the forward pass of training."""

from .any_scale import AnyScaleInferer
from .autocast import AutocastInferer, faster_dtype
from .exact import ExactInferer
from .planning import Plan
from .receptive_field import receptive_field

__all__ = ["AnyScaleInferer", "AutocastInferer", "ExactInferer", "Plan", "faster_dtype", "receptive_field"]
