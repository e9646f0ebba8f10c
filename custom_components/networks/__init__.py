"""Super-resolution networks: `(B, C, *spatial)` to `(B, 1, *spatial * scale)`."""

from .recnn import ReCNN

__all__ = ["ReCNN"]
