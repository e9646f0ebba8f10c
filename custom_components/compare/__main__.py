"""Compare bundles, checkpoints and baselines on high-resolution scans, and write a report.

LR scans are made once. Each method gets the same LR files through its bundle's own inference.json, in a process of its own
(`python -m monai.bundle run`), and its results are scored against the HR truth: a number in the table is what a user gets.
A study is a JSON config; each id of it can be given on the command line too, inner ones as --methods::NAME::bundle:

    {
        "dataset_dir": "/path/to/high_resolution_scans", "scale_factors": [2, [1, 1, 3]],
        "methods": {
            "spline": {"bundle": "bundles/brain_mri_sr_recnn", "overlays": ["configs/baselines/bspline.json"]},
            "mine": {
                "bundle": "bundles/brain_mri_sr_recnn", "options": {"memory_gib": 4},
                "by_scale": {"2": {"checkpoint": "model_x2.pt"}}
            }
        },
        "pairs": [["mine", "spline"]]
    }

The same command again computes only what is missing, failed or changed. The exit code is 1 when a result is missing, 2 when
the command line cannot be read.
"""

from __future__ import annotations

import argparse
import ast
import json
import logging
import shlex
import signal
import sys
from collections.abc import Sequence
from math import isnan
from statistics import fmean
from typing import Any, NoReturn

from ..errors import one_line_errors
from ..markdown import markdown_table
from .config import DEFAULTS, read_study
from .results import Result
from .run import compare
from .study import Study

HELP = {
    "dataset_dir": "folder of HR scans, with or without dataset.json",
    "output_dir": "folder of all that comes out",
    "split": "training, validation, test or all",
    "where": "wanted values per field of dataset.json, such as \"{'population': 'adult'}\"",
    "max_subjects": "only the first subjects of the split",
    "seed": "of a split by subject, as in train.json, and of the noise",
    "scale_factors": "list; each one number, or three for the axes",
    "protocol": "of the acquisition, see custom_components.acquisition.PROTOCOLS",
    "noise_std": "standard deviation of Rician noise in the LR scans; the truth is in [0, 1]",
    "methods": "name -> {'bundle': ..., 'overlays': [...], 'options': {...}, 'by_scale': {'2': {...}}}",
    "reference": "method that gains are over; without it and without a method 'spline', that one is added",
    "pairs": "methods to test against each other: [['a', 'b'], ...]; each is tested against the reference anyway",
    "rank": "methods to rank and to show; default: all",
    "loss_curves": "name -> losses.csv of a training",
    "pictures": "scans to show in the report",
}
TEXTS = ("config_file", "dataset_dir", "output_dir", "split", "protocol", "reference")


def value_of(text: str) -> Any:
    """A value from the command line: JSON, else a Python literal, else the text itself."""
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError):  # noqa: PERF203
            continue
    return text


def parsed(arguments: Sequence[str]) -> dict[str, Any]:
    """Ids of a study from the command line, and `config_file`."""
    parser = argparse.ArgumentParser(
        prog="python -m custom_components.compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config_file", help="the study, JSON")
    for name, default in DEFAULTS.items():
        shown = "" if default is None else f" (default: {default})"
        parser.add_argument(f"--{name}", help=HELP[name] + shown, metavar="VALUE", default=argparse.SUPPRESS)
    known, others = parser.parse_known_args(arguments)
    given = dict(vars(known))
    while others:
        key, found, value = others.pop(0).partition("=")
        if not key.startswith("--") or not (found or others):
            parser.error(f"expected --id VALUE, got {key!r}")
        given[key[2:]] = value if found else others.pop(0)
    return {k: v if k in TEXTS or v is None else value_of(v) for k, v in given.items()}


def table(results: Sequence[Result], study: Study) -> str:
    """Mean scores per scale factor and method as Markdown; `scans` counts those with a result, of all."""
    head = ["scale factor", "method", "scans", "PSNR (dB)", "SSIM", "PSNR head (dB)", "SSIM head", "seconds"]
    columns = {"psnr": 2, "ssim": 4, "psnr_head": 2, "ssim_head": 4, "seconds": 1}
    rows = [head]
    for factor in study.scale_factors:
        for method in study.methods:
            own = [r for r in results if (r.scale_factor, r.method) == (factor, method)]
            done = [r for r in own if not r.error]
            row = [f"x{factor}", method, f"{len(done)} of {len(own)}"]
            for name, digits in columns.items():
                values = [v for v in (getattr(r, name) for r in done) if not isnan(v)]
                row.append(f"{fmean(values):.{digits}f}" if values else "-")
            rows.append(row)
    return markdown_table(rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the comparison that the command line asks for; the exit code."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    given = parsed(arguments)
    config_file = given.pop("config_file")
    command = shlex.join(["python", "-m", "custom_components.compare", *arguments])
    study = read_study(config_file, command=command, **given)
    results = compare(study)
    failed = [r for r in results if r.error]
    print(table(results, study))
    for r in failed:
        print(f"x{r.scale_factor}, {r.method}, {r.scan}: {r.error}", file=sys.stderr)
    print(f"{len(results)} results, {len(failed)} failed. Report: {study.output_dir / 'report.html'}")
    return 1 if failed else 0


def _stop(number: int, _: Any) -> NoReturn:
    raise SystemExit(128 + number)  # so that the method's process is stopped too


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    one_line_errors()
    signal.signal(signal.SIGTERM, _stop)
    sys.exit(main())
