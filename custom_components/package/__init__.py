"""Put a bundle into one archive that runs without this repository: `python -m custom_components.package --help`."""
