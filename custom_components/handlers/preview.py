"""A picture per scan: what came, what interpolation makes of it, what the network makes of it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from ignite.engine import Engine, Events

from ..engines.scan_evaluator import scan_file
from ..errors import reason
from ..figures import three_planes
from ..files import PathLike
from ..scans import scan_stem
from .summary import item_of

logger = logging.getLogger(__name__)


class Preview:
    """Write `<output_dir>/<stem>_<postfix>.png` after each scan: three planes and an enlarged detail.

    A preview that cannot be drawn is a warning, the scan stands. The images must be in one unit: bring all of them back
    by `RestoreIntensityd`, or none.

    Args:
        output_dir: folder of the pictures; it is made where it is missing.
        postfix: of the file name, as that of `SaveScand`; empty for none.
        images: title -> key of the item; a key that an item lacks is left out.
    """

    def __init__(self, output_dir: PathLike, postfix: str = "sr", images: Mapping[str, str] | None = None) -> None:
        self.output_dir, self.postfix = Path(output_dir).expanduser(), postfix
        self.images = dict(images or {"input": "lowres", "spline": "image", "SR": "pred"})

    def attach(self, engine: Engine) -> None:
        """Attach to a `ScanEvaluator`, after handlers whose time or line must not wait for the picture."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Draw the scan of this iteration, unless it failed."""
        item = item_of(engine)
        if "error" in item:
            return
        stem = item.get("stem") or scan_stem(scan_file(item))
        name = "_".join(part for part in (stem, self.postfix) if part)
        try:
            volumes = {title: item[key] for title, key in self.images.items() if key in item}
            three_planes(volumes, self.output_dir / f"{name}.png", zoom=True)
        except Exception as error:  # a picture is no reason to lose a scan
            logger.warning("%s: no preview: %s", scan_file(item), reason(error))
