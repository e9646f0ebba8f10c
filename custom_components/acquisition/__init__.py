"""How a scanner turns a HR volume into a LR one: separable linear operators, their adjoints, interpolation, noise."""

from .blur import box_matrix, gaussian_matrix
from .grid import centred_positions, corner_positions, rescaled_affine, target_shape
from .interpolation import interpolation_matrix
from .modes import AcquisitionModes
from .noise import add_gaussian_noise, add_rician_noise
from .operators import SeparableOperator
from .protocols import PROTOCOLS, Protocol, acquisition_operator, interpolation_operator

__all__ = [
    "PROTOCOLS",
    "AcquisitionModes",
    "Protocol",
    "SeparableOperator",
    "acquisition_operator",
    "add_gaussian_noise",
    "add_rician_noise",
    "box_matrix",
    "centred_positions",
    "corner_positions",
    "gaussian_matrix",
    "interpolation_matrix",
    "interpolation_operator",
    "rescaled_affine",
    "target_shape",
]
