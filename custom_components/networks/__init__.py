"""Super-resolution networks; each maps `(B, C, *spatial)` to `(B, 1, *(scale * spatial))`, with scale 1 on the HR grid."""

from .dcsrn import DCSRN
from .edsr import EDSR
from .recnn import ReCNN
from .rrlsrn import RRLSRN
from .srcnn import SRCNN

__all__ = ["DCSRN", "EDSR", "RRLSRN", "SRCNN", "ReCNN"]
