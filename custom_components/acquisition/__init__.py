"""How a scanner turns a HR volume into a LR one: separable linear operators, their adjoints, interpolation, noise."""

from .blur import box_matrix, gaussian_matrix
from .cells import cell_average_matrix, sub_voxel_matrix
from .consistency import make_consistent
from .grid import centred_positions, corner_positions, rescaled_affine, slice_axis, target_shape
from .interpolation import interpolation_matrix
from .low_field import FieldChange, background_noise, simulate_low_field, tissue_t1
from .modes import AcquisitionModes
from .noise import add_gaussian_noise, add_rician_noise
from .operators import SeparableOperator
from .protocols import PROTOCOLS, Protocol, acquisition_operator, interpolation_operator

__all__ = [
    "PROTOCOLS",
    "AcquisitionModes",
    "FieldChange",
    "Protocol",
    "SeparableOperator",
    "acquisition_operator",
    "add_gaussian_noise",
    "add_rician_noise",
    "background_noise",
    "box_matrix",
    "cell_average_matrix",
    "centred_positions",
    "corner_positions",
    "gaussian_matrix",
    "interpolation_matrix",
    "interpolation_operator",
    "make_consistent",
    "rescaled_affine",
    "simulate_low_field",
    "slice_axis",
    "sub_voxel_matrix",
    "target_shape",
    "tissue_t1",
]
