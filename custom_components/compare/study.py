"""What a comparison compares: methods, scans, scale factors, and where each file of it lies."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..acquisition import PROTOCOLS
from .results import factor_name

ROOT = Path(__file__).resolve().parents[2]  # of the repository, beside the package


@dataclass(frozen=True)
class Method:
    """A bundle, what is laid over its `inference.json`, and options for `python -m monai.bundle run`.

    Attributes:
        bundle: folder of the bundle.
        overlays: config files that go on top of its `configs/inference.json`.
        options: config id -> value, for all scale factors.
        by_scale: scale factor -> further options, over `options`.
    """

    bundle: Path
    overlays: Sequence[Path] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    by_scale: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def options_at(self, factor: str) -> dict[str, Any]:
        """Options at a scale factor."""
        return {**self.options, **self.by_scale.get(factor, {})}


def _slugs(names: Sequence[str]) -> dict[str, str]:
    """A folder name for each method, like no other and none of the study's own: `p = 1.9` -> `p_1.9`."""
    taken = {"hr", "lr", "head"}
    slugs = {}
    for name in names:
        own = slug = re.sub(r"[^A-Za-z0-9.]+", "_", name).strip("._") or "method"
        count = 1
        while slug.casefold() in taken:
            count += 1
            slug = f"{own}_{count}"
        taken.add(slug.casefold())
        slugs[name] = slug
    return slugs


@dataclass
class Study:
    """A comparison that is to be made; see `python -m custom_components.compare --help` for the config it is read from.

    Attributes:
        methods: name -> method, in the order of the tables.
        scale_factors: names as `factor_name` gives them, `2` or `1x1x3`.
        output_dir: folder of all that comes out.
        scans: HR scans, items of `custom_components.splits.training_scans` (`image`, `stem`, ...).
        reference: the method that gains are over.
        pairs: methods that are tested against each other, besides each against the reference.
        rank: methods that are ranked and shown; empty takes all.
        protocol: of the acquisition, a name in `custom_components.acquisition.PROTOCOLS`.
        noise_std: standard deviation of the Rician noise in the LR scans, for a truth in [0, 1].
        seed: of the noise.
        loss_curves: name -> a `losses.csv` of training.
        pictures: number of scans that the report shows.
        command: the command line, for the report.

    Raises:
        ValueError: when the parts do not fit together.
    """

    methods: Mapping[str, Method]
    scale_factors: list[str]
    output_dir: Path
    scans: Sequence[Mapping[str, str]] = ()
    reference: str = "spline"
    pairs: list[tuple[str, str]] = field(default_factory=list)
    rank: list[str] = field(default_factory=list)
    protocol: str = "gaussian_spline"
    noise_std: float = 0.0
    seed: int = 0
    loss_curves: Mapping[str, Path] = field(default_factory=dict)
    pictures: int = 1
    command: str = ""

    def __post_init__(self) -> None:
        names = tuple(self.methods)
        if not names or not self.scale_factors:
            raise ValueError(f"expected methods and scale factors, got {len(names)} and {len(self.scale_factors)}")
        self.scale_factors = list(dict.fromkeys(factor_name(f) for f in self.scale_factors))
        if self.reference not in names:
            raise ValueError(f"reference must be one of {names}, got {self.reference!r}")
        self.rank = list(self.rank or names)
        for what, given in (("rank", self.rank), *(("a pair", pair) for pair in self.pairs)):
            if isinstance(given, str) or not set(given) <= set(names):
                raise ValueError(f"{what} must hold names of {names}, got {given!r}")
        if any(len(set(pair)) != 2 or len(pair) != 2 for pair in self.pairs):
            raise ValueError(f"pairs must be lists of two methods, got {self.pairs}")
        self.pairs = [(a, b) for a, b in self.pairs]
        if self.protocol not in PROTOCOLS:
            raise ValueError(f"protocol must be one of {tuple(PROTOCOLS)}, got {self.protocol!r}")
        if not 0 <= self.noise_std < float("inf"):
            raise ValueError(f"noise_std must be finite and not negative, got {self.noise_std}")
        if self.pictures < 0:
            raise ValueError(f"pictures must not be negative, got {self.pictures}")
        self._slugs = _slugs(names)

    def folder(self, factor: str, method: str | None = None) -> Path:
        """Folder of a scale factor, or of a method's results there."""
        root = self.output_dir / f"x{factor}"
        return root if method is None else root / self._slugs[method]

    def truth_path(self, factor: str, scan: str) -> Path:
        """The HR truth, cropped, in [0, 1]."""
        return self.folder(factor) / "hr" / f"{scan}.nii.gz"

    def lowres_path(self, factor: str, scan: str) -> Path:
        """The LR scan, the input of each method."""
        return self.folder(factor) / "lr" / f"{scan}.nii.gz"

    def head_path(self, factor: str, scan: str) -> Path:
        """The head mask on the grid of the truth, 0 or 1."""
        return self.folder(factor) / "head" / f"{scan}.nii.gz"

    def result_path(self, factor: str, method: str, scan: str) -> Path:
        """What a method made of the LR scan."""
        return self.folder(factor, method) / f"{scan}_sr.nii.gz"
