"""A bundle as a task of MONAI Label."""

from __future__ import annotations

import logging
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from fastapi import HTTPException
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType
from monailabel.utils.others.generic import device_list, name_to_device

from ..errors import reason
from ..scans import scan_stem
from .served import ServedBundle

logger = logging.getLogger(__name__)

# What MONAI Label itself and its clients put into a request; all else is an option of the bundle.
OWN_KEYS = {
    *("model", "image", "description", "device", "label", "label_tag", "save_label", "session", "session_id"),
    *("client_id", "user", "timeout", "logging"),
    *(f"result_{name}" for name in ("extension", "dtype", "compress", "write_to_file")),
}
TOLD = ("shape_in", "shape_out", "spacing_in", "spacing_out", "seconds", "consistency_error", "warnings")
USAGE = "Give target_spacing (mm) or scale_factor: one number or one per array axis, such as [1,1,2.5]; empty for the default."


class BundleTask(InferTask):  # type: ignore[misc]
    """Serves a `ServedBundle`: the scan of a request becomes a float32 NIfTI, whatever voxel type or format a client asks for.

    The type is `others`, as viewers take the result of any other for a label map and ask for 8 bits.
    """

    def __init__(self, bundle: ServedBundle) -> None:
        shown = {name: option.shown for name, option in bundle.options.items()}
        super().__init__(
            type=InferType.OTHERS,
            labels={},
            dimension=3,
            description=f"{bundle.description} {USAGE}",
            config={"device": device_list(), **shown},
        )
        self.bundle = bundle

    def is_valid(self) -> bool:
        """Whether the app lists it."""
        return True

    def info(self) -> dict[str, Any]:
        """What `/info/` shows."""
        return {**super().info(), "version": self.bundle.version}

    def __call__(self, request: dict[str, Any]) -> tuple[str, dict[str, str]]:
        """Run the bundle on `request["image"]`, a path: the result's path, which the caller removes, and what is said of it.

        Raises:
            HTTPException: 400 and one line, when the scan or an option cannot be used; 500 and one line otherwise.
        """
        given = {key: value for key, value in request.items() if key not in OWN_KEYS}
        folder = Path(tempfile.mkdtemp(prefix="mri-sr-"))
        try:
            row = self.bundle.run(request["image"], folder, given, _device(request.get("device")))
            handle, result = tempfile.mkstemp(prefix=f"{scan_stem(request['image'])}_sr_", suffix=".nii.gz")
            os.close(handle)
            shutil.move(row["output"], result)
        except ValueError as error:
            raise HTTPException(400, reason(error)) from error
        except Exception as error:
            logger.exception("%s failed on %s", self.bundle.name, request["image"])
            raise HTTPException(500, reason(error)) from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return result, {name: row.get(name, "") for name in TOLD}


def _device(name: Any) -> str | None:
    """The device that a client names as `/info/` does, or as PyTorch does; None for the config's own choice."""
    if name is None or name == device_list():
        return None
    device = name_to_device(name) if isinstance(name, str) and name else None
    if device is None or not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise ValueError(f"device must be one of {', '.join(device_list())}, got {name!r}")
    return str(device)
