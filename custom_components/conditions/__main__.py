"""Evaluate a bundle over scale factors, protocols of acquisition and noise, against the spline, and say where it gains least.

Each condition, a protocol with a noise, is an evaluation by the bundle's train.json and evaluate.json over the validation split,
in a process of its own. All of them come into one table, `conditions.csv` and `conditions.md`; what is known of each scan stands in
the folder of its condition. The same command again computes only what is missing, failed or was made otherwise. Options other than
those below go to `python -m monai.bundle run`, as `--val_in_plane_only True`. The exit code is 1 when a condition failed.

    python -m custom_components.conditions --bundle bundles/brain_mri_sr_any --dataset_dir SCANS --output_dir OUT
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from ..acquisition import PROTOCOLS
from ..errors import one_line_errors
from .run import Conditions

SCALE_FACTORS: list[Any] = [1.2, 1.5, 2, 2.5, 3, 4, [2, 2, 3], [1, 1, 3.3], [1, 1, 5]]
PROTOCOLS_OF_USE = ["gaussian_spline", "slice_profile", "box"]


def parsed(arguments: Sequence[str]) -> tuple[Conditions, int]:
    """What the command line asks for, and how many evaluations at a time."""
    parser = argparse.ArgumentParser(
        prog="python -m custom_components.conditions",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--bundle", type=Path, required=True, help="folder of the bundle")
    add("--dataset_dir", required=True, help="folder of HR scans with their validation split")
    add("--output_dir", type=Path, required=True, help="folder of all that comes out")
    add("--checkpoint", type=Path, help="weights (default: models/model.pt of the bundle)")
    add("--scale_factors", type=json.loads, default=SCALE_FACTORS, metavar="LIST", help=f"(default: {SCALE_FACTORS})")
    add("--protocols", nargs="+", default=PROTOCOLS_OF_USE, choices=PROTOCOLS, help=f"(default: {PROTOCOLS_OF_USE})")
    add("--noise_std", nargs="+", type=float, default=[0.0, 0.03], help="Rician; HR is in [0, 1] (default: 0 0.03)")
    add("--known", action="store_true", help="tell the bundle protocol and noise")
    add("--jobs", type=int, default=1, help="evaluations at a time (default: 1)")
    given, options = parser.parse_known_args(arguments)
    for name in ("train", "evaluate"):
        file = given.bundle / "configs" / f"{name}.json"
        if not file.is_file():
            parser.error(f"--bundle: expected the folder of a bundle, got no {file}")
    if given.jobs < 1:
        parser.error(f"--jobs: expected at least 1, got {given.jobs}")
    if not all(0 <= noise < math.inf for noise in given.noise_std):
        parser.error(f"--noise_std: expected values >= 0, got {given.noise_std}")
    ids = {"dataset_dir": given.dataset_dir, "val_scale_factors": given.scale_factors}
    ids |= {"checkpoint": str(given.checkpoint.absolute())} if given.checkpoint else {}
    conditions = [(protocol, noise) for noise in given.noise_std for protocol in given.protocols]
    bundle, output_dir = given.bundle.absolute(), given.output_dir.absolute()
    return Conditions(bundle, output_dir, conditions, ids, given.known, options), given.jobs


def main(arguments: Sequence[str] | None = None) -> int:
    """Evaluate what the command line asks for, print the table; the exit code."""
    conditions, jobs = parsed(sys.argv[1:] if arguments is None else arguments)
    failed = conditions.run(jobs)
    print(conditions.write())
    for (protocol, noise), reason in failed.items():
        print(f"{protocol}, noise {noise:g}: {reason}", file=sys.stderr)
    return 1 if failed else 0


def _stop(number: int, _: Any) -> NoReturn:
    raise SystemExit(128 + number)  # so that the processes are stopped too


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    one_line_errors()
    signal.signal(signal.SIGTERM, _stop)
    sys.exit(main())
