"""Many scans in one call or in several: what is done already, and the record of it."""

from .unfinished import part_of, result_fingerprint, unfinished_scans

__all__ = ["part_of", "result_fingerprint", "unfinished_scans"]
