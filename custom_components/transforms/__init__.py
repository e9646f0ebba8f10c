"""MONAI transforms for super-resolution: loading, intensity, grids, simulated acquisition, saving."""

from .acquire import Acquire, Acquired
from .background import KeepBackground, KeepBackgroundd
from .consistency import ConsistencyError, ConsistencyErrord, MakeConsistent, MakeConsistentd
from .describe_acquisition import DescribeAcquisition, DescribeAcquisitiond, describe_acquisition, estimated_acquisition
from .informative import KeepInformativeSlices, KeepInformativeSlicesd, informative_slices
from .intensity import RestoreIntensity, RestoreIntensityd, RobustScale, RobustScaled
from .load import LoadScan, LoadScand
from .low_field import LowField, LowFieldd, RandLowField, RandLowFieldd
from .pairs import CheckPair, CheckPaird, TakePaird
from .patch import RandHRPatch, RandHRPatchd
from .rand_acquire import RandAcquire, RandAcquired
from .regrid import ToTargetGrid, ToTargetGridd
from .save import SaveScan, SaveScand
from .trained_range import CheckTrainedRanged
from .uncertainty import RestoreUncertainty, RestoreUncertaintyd, SplitUncertaintyd, split_uncertainty

__all__ = [
    "Acquire",
    "Acquired",
    "CheckPair",
    "CheckPaird",
    "CheckTrainedRanged",
    "ConsistencyError",
    "ConsistencyErrord",
    "DescribeAcquisition",
    "DescribeAcquisitiond",
    "KeepBackground",
    "KeepBackgroundd",
    "KeepInformativeSlices",
    "KeepInformativeSlicesd",
    "LoadScan",
    "LoadScand",
    "LowField",
    "LowFieldd",
    "MakeConsistent",
    "MakeConsistentd",
    "RandAcquire",
    "RandAcquired",
    "RandHRPatch",
    "RandHRPatchd",
    "RandLowField",
    "RandLowFieldd",
    "RestoreIntensity",
    "RestoreIntensityd",
    "RestoreUncertainty",
    "RestoreUncertaintyd",
    "RobustScale",
    "RobustScaled",
    "SaveScan",
    "SaveScand",
    "SplitUncertaintyd",
    "TakePaird",
    "ToTargetGrid",
    "ToTargetGridd",
    "describe_acquisition",
    "estimated_acquisition",
    "informative_slices",
    "split_uncertainty",
]
