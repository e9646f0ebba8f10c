"""What came before networks, as modules without parameters that any workflow can run: `baseline(lr, shape)`."""

from .interpolation import Interpolation
from .lrtv import LRTV
from .nonlocal_means import NonLocalMeansUpsampling

__all__ = ["LRTV", "Interpolation", "NonLocalMeansUpsampling"]
