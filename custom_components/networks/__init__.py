"""Super-resolution networks; each maps `(B, C, *spatial)` to `(B, 1, *(scale * spatial))`, with scale 1 on the HR grid.

But for `Discriminator`, which maps HR images to logits.
"""

from .dcsrn import DCSRN
from .discriminator import Discriminator
from .edsr import EDSR
from .recnn import ReCNN
from .rrdb import RRDBNet
from .rrlsrn import RRLSRN
from .srcnn import SRCNN

__all__ = ["DCSRN", "EDSR", "RRLSRN", "SRCNN", "Discriminator", "RRDBNet", "ReCNN"]
