"""An app for MONAI Label that serves the bundles: `python -m custom_components.label`. It has an environment of its own.

Only `task` and `main` import MONAI Label; nothing in the rest of the package imports this part.
"""
