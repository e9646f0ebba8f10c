"""Metrics of whole scans."""

from .ssim import VolumeSSIM

__all__ = ["VolumeSSIM"]
