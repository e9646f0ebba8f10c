"""`python -m custom_components.package`: write a bundle, whole in itself, as `<bundle>_v<version>.zip` with its checksum."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..errors import one_line_errors
from ..files import PathLike
from .archive import write_zip
from .contents import contents, version_of


def package_bundle(bundle: PathLike, output_dir: PathLike) -> Path:
    """Write `<output_dir>/<bundle>_v<version>.zip` and its `.sha256`; the path of the archive.

    The same files of the checkout give the same bytes. See `contents` for what is in it, `write_zip` for how.

    Args:
        bundle: folder of a bundle in a checkout.
        output_dir: made where it is missing.

    Raises:
        ScanError: when a file of the bundle is not as expected, or the archive cannot be written.
        ValueError: when a config cannot be rewritten.
    """
    bundle = Path(bundle).resolve()
    files = contents(bundle)
    path = Path(output_dir) / f"{bundle.name}_v{version_of(bundle)}.zip"
    write_zip(path, bundle.name, files)
    return path


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the archive of a bundle."""
    parser = argparse.ArgumentParser(prog="python -m custom_components.package", description=__doc__)
    parser.add_argument("--bundle", required=True, help="folder of the bundle, say bundles/brain_mri_sr_recnn")
    parser.add_argument("--output_dir", default="dist", help="folder of the archive; default: dist")
    chosen = parser.parse_args(arguments)
    print(package_bundle(chosen.bundle, chosen.output_dir))


if __name__ == "__main__":
    one_line_errors()
    main()
