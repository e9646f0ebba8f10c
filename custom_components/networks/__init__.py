"""Super-resolution networks; each maps `(B, C, *spatial)` to `(B, 1, *(scale * spatial))`, with scale 1 on the HR grid.

But for `Discriminator`, which maps HR images to logits, `VGG19`, whose features losses compare, and `AcquisitionEstimator`, which
says how a scan was acquired.
"""

from .acquisition_estimator import AcquisitionEstimator
from .any_scale import AnyScaleSR, acquisition_condition
from .dcsrn import DCSRN
from .discriminator import Discriminator
from .edsr import EDSR
from .progressive import ProgressiveRRDBNet
from .recnn import ReCNN
from .rrdb import RRDBNet
from .rrlsrn import RRLSRN
from .srcnn import SRCNN
from .vgg import VGG19

__all__ = [
    "DCSRN",
    "EDSR",
    "RRLSRN",
    "SRCNN",
    "VGG19",
    "AcquisitionEstimator",
    "AnyScaleSR",
    "Discriminator",
    "ProgressiveRRDBNet",
    "RRDBNet",
    "ReCNN",
    "acquisition_condition",
]
