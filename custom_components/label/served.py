"""A bundle that a server runs on one scan at a time, as `python -m monai.bundle run` would."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from monai.bundle import ConfigWorkflow

from ..batches.summary_file import NAME, read_rows
from ..errors import ScanError, reason, root_cause
from ..files import PathLike, read_json
from .options import offered_options, read_options

ROOT = Path(__file__).resolve().parents[2]
QUIET = {"preview": "_disabled_", "progress_bar": "_disabled_"}  # handlers for people at a terminal
_one_at_a_time = threading.Lock()  # each run may use all of its memory budget


@contextmanager
def _process_state_kept() -> Iterator[None]:
    """A workflow puts its bundle on `sys.path` each time it runs, and our configs set `sys.excepthook`."""
    path, hook = sys.path[:], sys.excepthook
    try:
        yield
    finally:
        sys.path[:], sys.excepthook = path, hook


class ServedBundle:
    """A bundle by its path, run by its own `configs/inference.json`.

    Preprocessing, network, inferer and postprocessing are those of the config, and the result is the file that it saves: the
    voxels and the affine that `monai.bundle run --output_dtype float32` writes.

    Args:
        root: the bundle's folder.

    Raises:
        ScanError: when there is no `configs/inference.json` or `configs/metadata.json` that can be read.
    """

    def __init__(self, root: PathLike) -> None:
        self.root = Path(root).expanduser().resolve()
        self.config_file = self.root / "configs" / "inference.json"
        self.config = read_json(self.config_file, "a config of a bundle")
        metadata = read_json(self.root / "configs" / "metadata.json", "a config of a bundle")
        self.name = self.root.name
        self.version, self.description = str(metadata.get("version", "")), str(metadata.get("description", ""))
        self.options = offered_options(self.config)

    def run(
        self, scan: PathLike, output_dir: PathLike, given: Mapping[str, Any] | None = None, device: str | None = None
    ) -> dict[str, str]:
        """Run the bundle on a scan.

        Args:
            scan: file, or folder of one DICOM series.
            output_dir: an empty folder for the result, `<stem>_sr.nii.gz`, float32.
            given: values of `options` by name, as a request has them.
            device: such as `cpu` or `cuda:0`; None for the config's own choice.

        Returns:
            The scan's line in `summary.csv`; `output` is the result.

        Raises:
            ValueError: on an option that is none or has a wrong value.
            ScanError: when the bundle refuses the scan or what was asked of it, in one line.
        """
        values = read_options(self.options, given or {})
        overrides: dict[str, Any] = {
            "bundle_root": str(self.root),
            "dataset_dir": str(Path(scan).resolve()),
            "output_dir": str(output_dir),
            "output_dtype": "float32",
            **{f"{name}::{key}": True for name, key in QUIET.items() if name in self.config},
            **({"inferer::progress": False} if "progress" in self.config.get("inferer", {}) else {}),
            **({} if device is None else {"device": f"$torch.device({device!r})"}),
            **values,
        }
        with _one_at_a_time, _process_state_kept():
            try:
                workflow = ConfigWorkflow(str(self.config_file), logging_file=False, workflow_type="infer", **overrides)
                workflow.initialize()
                with suppress(SystemExit):  # of a scan that failed: its line says why
                    workflow.run()
            except Exception as error:
                if isinstance(root_cause(error), ValueError):
                    raise ScanError(reason(error)) from error
                raise
        rows = read_rows(Path(output_dir) / NAME)
        if len(rows) != 1:
            raise ScanError(f"{scan}: expected one scan, got {len(rows)}")
        if rows[0]["error"]:
            raise ScanError(rows[0]["error"])
        return rows[0]


def served_bundles(paths: str | None = None) -> dict[str, ServedBundle]:
    """Bundles by name.

    Args:
        paths: their folders, with commas between; None for all in `bundles/` of the repository.

    Raises:
        ScanError: when there is none, one is no bundle, or two have one name.
    """
    roots = [p.strip() for p in paths.split(",")] if paths else sorted((ROOT / "bundles").glob("*_*/"))
    bundles: dict[str, ServedBundle] = {}
    for bundle in map(ServedBundle, roots):
        if bundle.name in bundles:
            raise ScanError(f"{bundle.root}: expected a name that no other bundle has, got a second {bundle.name}")
        bundles[bundle.name] = bundle
    if not bundles:
        raise ScanError(f"{ROOT / 'bundles'}: expected bundles, got none (name them: --bundle PATH[,PATH...])")
    return bundles
