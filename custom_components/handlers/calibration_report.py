"""Does the uncertainty that a model gives tell its error? A table and a figure of an evaluation."""

from __future__ import annotations

import csv
import logging
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import torch
from ignite.engine import Engine, Events

from ..engines.scan_evaluator import scan_file
from ..figures import calibration_curves
from ..files import PathLike, atomic_write
from ..markdown import markdown_table
from ..metrics import Calibration, CalibrationCurve, mean_curve
from ..tensors import plain
from .evaluation_report import factor_name
from .summary import item_of

logger = logging.getLogger(__name__)

NUMBERS = ("predicted", "observed", "ratio", "calibration_error", "correlation")


class _Scan(NamedTuple):
    name: str
    factor: str
    curve: CalibrationCurve
    numbers: dict[str, float]


class CalibrationReport:
    """Compare the expected standard deviation of the error with the error, over the foreground of each scan of an evaluation.

    - `calibration.csv`, whole after each scan: `scan, scale_factor, bin`, the root mean square error that is expected
      (`predicted`) and found (`observed`) in bins of equally many voxels, from the lowest expectation on. Lines of bin `all` hold
      those of all voxels, their `ratio` (below 1 errors are larger than expected), the `calibration_error` (see
      `custom_components.metrics.CalibrationCurve`) and the `correlation` over voxels of the deviation and the size of the error.
      For each scale factor the means over its scans follow: quadratic ones of the bins, plain ones of the numbers of `all`.
    - `calibration.png`: error over expected error with the diagonal, a thin line per scan and a thick one for their mean, a panel
      per scale factor.

    The means are printed at the end too. A scan without foreground is left out, with a warning.

    Args:
        output_dir: folder of the files; it is made where it is missing.
        uncertainty_key: the expected standard deviation, in the unit of the images.
        image_key: the result.
        label_key: the truth; the foreground is by it.
        foreground: what is above it counts, in the unit of the truth: 0.02 of the [0, 1] scale leaves air and what lies around a
            skull-stripped brain out, where errors are small and easy to expect.
        bins: of equally many voxels.

    Raises:
        ValueError: when there is no bin; on a scan that lacks an image.
    """

    def __init__(
        self,
        output_dir: PathLike,
        uncertainty_key: str = "uncertainty",
        image_key: str = "pred",
        label_key: str = "label",
        foreground: float = 0.02,
        bins: int = 10,
    ) -> None:
        if bins < 1:
            raise ValueError(f"bins must be >= 1, got {bins}")
        self.output_dir = Path(output_dir).expanduser()
        self.keys = (uncertainty_key, image_key, label_key)
        self.foreground, self.bins = foreground, bins
        self.scans: list[_Scan] = []

    def attach(self, engine: Engine) -> None:
        """Attach to a `ScanEvaluator`."""
        engine.add_event_handler(Events.EPOCH_STARTED, lambda _: self.scans.clear())
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._scan)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._end)

    def _scan(self, engine: Engine) -> None:
        item = item_of(engine)
        if "error" in item:
            return
        missing = [key for key in self.keys if not isinstance(item.get(key), torch.Tensor)]
        if missing:
            raise ValueError(f"expected the images {missing} to compare, got {sorted(map(str, item))}")
        std, image, truth = (plain(item[key]) for key in self.keys)
        mask = truth > self.foreground
        calibration = Calibration()
        calibration.update(std[mask], (image - truth)[mask])
        if not calibration.count:
            logger.warning("%s: no calibration: no voxel of the truth is above %g", scan_file(item), self.foreground)
            return
        curve = calibration.curve(self.bins)
        numbers = {name: getattr(curve if name == "calibration_error" else calibration, name) for name in NUMBERS}
        self.scans.append(_Scan(str(item.get("stem", "")), factor_name(item), curve, numbers))
        self._write()

    def _groups(self) -> dict[str, list[_Scan]]:
        groups: dict[str, list[_Scan]] = {}
        for scan in self.scans:
            groups.setdefault(scan.factor, []).append(scan)
        return groups

    def _means(self) -> list[_Scan]:
        """Of the scans of each scale factor."""
        return [
            _Scan(
                f"mean of {len(scans)}",
                factor,
                mean_curve([s.curve for s in scans]),
                {name: fmean(s.numbers[name] for s in scans) for name in NUMBERS},
            )
            for factor, scans in self._groups().items()
        ]

    def _write(self) -> None:
        path = self.output_dir / "calibration.csv"
        with atomic_write(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ("scan", "scale_factor", "bin", *NUMBERS))
            writer.writeheader()
            for name, factor, curve, numbers in [*self.scans, *self._means()]:
                pairs = zip(curve.predicted, curve.observed, strict=True)
                lines: list[tuple[int | str, Mapping[str, float]]] = [
                    *((i, {"predicted": p, "observed": o}) for i, (p, o) in enumerate(pairs, 1)),
                    ("all", numbers),
                ]
                for number, values in lines:
                    cells = {key: f"{value:.6g}" for key, value in values.items()}
                    writer.writerow({"scan": name, "scale_factor": factor, "bin": number, **cells})

    def _end(self, _: Engine) -> None:
        if not self.scans:
            return
        means = self._means()
        calibration_curves(
            {_title(factor): [s.curve for s in scans] for factor, scans in self._groups().items()},
            {_title(mean.factor): mean.curve for mean in means},
            self.output_dir / "calibration.png",
            "root mean square error",
        )
        rows = [[m.name, m.factor, *(f"{m.numbers[name]:.4f}" for name in NUMBERS)] for m in means]
        print(markdown_table([["scan", "factor", *(n.replace("_", " ") for n in NUMBERS)], *rows]))


def _title(factor: str) -> str:
    return f"factor {factor}" if factor else "all scans"
