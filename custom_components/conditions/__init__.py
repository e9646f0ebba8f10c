"""Evaluation of a bundle over many conditions of acquisition: `python -m custom_components.conditions`."""
