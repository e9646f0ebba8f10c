"""A picture per scan: what came, what interpolation makes of it, what the network makes of it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events
from monai.data import MetaTensor

from ..engines.scan_evaluator import scan_file
from ..errors import ScanError, reason
from ..figures import three_planes
from ..files import PathLike
from ..scans import PREVIEW_SUFFIX, scan_stem
from .summary import item_of

logger = logging.getLogger(__name__)


class Preview:
    """Write `<output_dir>/<stem>_<postfix>.png` after each scan: three planes, or the one of a slice, and an enlarged detail.

    It is `<stem>_<postfix>_preview.png` where the scan is a picture, as the other name is that of its result, and where the
    other name is that of an input. A preview that cannot be drawn is a warning, the scan stands. The images must be in one
    unit: bring all of them back by `RestoreIntensityd`, or none.

    Args:
        output_dir: folder of the pictures; it is made where it is missing.
        postfix: of the file name, as that of `SaveScand`; empty for none.
        images: title -> key of the item; a key that an item lacks is left out.
        inputs: files that must never be written over: the scans of the run, as for `SaveScan`.
    """

    def __init__(
        self,
        output_dir: PathLike,
        postfix: str = "sr",
        images: Mapping[str, str] | None = None,
        inputs: Iterable[PathLike] = (),
    ) -> None:
        self.output_dir, self.postfix = Path(output_dir).expanduser(), postfix
        self.images = dict(images or {"input": "lowres", "spline": "image", "SR": "pred"})
        self.inputs = {Path(p).expanduser().resolve() for p in inputs}

    def attach(self, engine: Engine) -> None:
        """Attach to a `ScanEvaluator`, after handlers whose time or line must not wait for the picture."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Draw the scan of this iteration, unless it failed."""
        item = item_of(engine)
        if "error" in item:
            return
        try:
            volumes = {title: item[key] for title, key in self.images.items() if key in item}
            three_planes(volumes, self._path(item), zoom=True)
        except Exception as error:  # a picture is no reason to lose a scan
            logger.warning("%s: no preview: %s", scan_file(item), reason(error))

    def _path(self, item: Mapping[str, Any]) -> Path:
        """Where the preview of a scan goes: no input's file, and not that of a result."""
        image, source = item.get("image"), scan_file(item)
        name = "_".join(part for part in (item.get("stem") or scan_stem(source), self.postfix) if part)
        path, beside = (self.output_dir / f"{name}{end}" for end in (".png", PREVIEW_SUFFIX))
        if path.resolve() in self.inputs or (isinstance(image, MetaTensor) and image.meta.get("picture")):
            path = beside
        if path.resolve() in {*self.inputs, Path(source).expanduser().resolve()}:
            raise ScanError(f"{path}: expected an output apart from the inputs, got the path of an input scan")
        return path
