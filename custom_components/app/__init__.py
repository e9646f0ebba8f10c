"""A page in the browser that runs the bundles on this machine: `python -m custom_components.app --help`."""
