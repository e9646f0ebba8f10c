"""Components of the MRI super-resolution bundles, from the acquisition model to the engines that train and infer.

Nothing is imported here. What is needed comes from the subpackages, so that `import custom_components` costs nothing.
"""

__version__ = "0.1.0"

__all__ = ["__version__"]
