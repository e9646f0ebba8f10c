"""Optimizers beside those of torch and MONAI."""

from .muon import Muon, orthogonalized

__all__ = ["Muon", "orthogonalized"]
