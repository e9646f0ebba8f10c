"""Compare bundles, checkpoints and baselines on high-resolution scans: `python -m custom_components.compare --help`."""
