"""MONAI transforms for super-resolution: loading, intensity, grids, simulated acquisition, saving."""

from .acquire import Acquire, Acquired
from .background import KeepBackground, KeepBackgroundd
from .consistency import ConsistencyError, ConsistencyErrord
from .intensity import RestoreIntensity, RestoreIntensityd, RobustScale, RobustScaled
from .load import LoadScan, LoadScand
from .patch import RandHRPatch, RandHRPatchd
from .rand_acquire import RandAcquire, RandAcquired
from .regrid import ToTargetGrid, ToTargetGridd
from .save import SaveScan, SaveScand
from .trained_range import CheckTrainedRanged

__all__ = [
    "Acquire",
    "Acquired",
    "CheckTrainedRanged",
    "ConsistencyError",
    "ConsistencyErrord",
    "KeepBackground",
    "KeepBackgroundd",
    "LoadScan",
    "LoadScand",
    "RandAcquire",
    "RandAcquired",
    "RandHRPatch",
    "RandHRPatchd",
    "RestoreIntensity",
    "RestoreIntensityd",
    "RobustScale",
    "RobustScaled",
    "SaveScan",
    "SaveScand",
    "ToTargetGrid",
    "ToTargetGridd",
]
