"""The app of MONAI Label. `python -m custom_components.label` starts it, from a copy: the server writes beside this file."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from fastapi import HTTPException
from monailabel.config import settings
from monailabel.interfaces.app import MONAILabelApp

from custom_components import __version__
from custom_components.label.served import served_bundles
from custom_components.label.studies import PATTERNS
from custom_components.label.task import BundleTask


class SuperResolutionApp(MONAILabelApp):  # type: ignore[misc]
    """Serves bundles.

    Args:
        app_dir: folder of the app; the server writes its logs there.
        studies: folder of scans; the server writes there too, so it is a copy.
        conf: `bundle`, paths with commas between; without it all bundles of the repository.
    """

    def __init__(self, app_dir: str, studies: str, conf: dict[str, str]) -> None:
        self._bundles = served_bundles(conf.get("bundle"))
        settings.MONAI_LABEL_DATASTORE_FILE_EXT = list(PATTERNS)
        super().__init__(
            app_dir=app_dir,
            studies=studies,
            conf=conf,
            name="MRI super-resolution",
            description="MRI super-resolution by MONAI bundles. Research software, no medical device.",
            version=__version__,
        )

    def init_infers(self) -> dict[str, BundleTask]:
        """A task for each bundle."""
        return {name: BundleTask(bundle) for name, bundle in self._bundles.items()}

    def infer(self, request: dict[str, Any], datastore: Any = None) -> Any:
        """Run a bundle on a scan of the server or on an upload, and on no other file of the machine.

        Raises:
            HTTPException: 404 and one line, when there is no such model or scan; otherwise see `BundleTask`.
        """
        model, image = request.get("model"), str(request.get("image", ""))
        if model not in self._bundles:
            raise HTTPException(404, f"expected a model among {', '.join(self._bundles)}, got {model!r}")
        folder = Path(tempfile.gettempdir()).resolve()
        upload = os.path.exists(image) and Path(image).resolve().is_relative_to(folder)
        if not upload and not (datastore or self.datastore()).get_image_uri(image):
            raise HTTPException(404, f"expected the id of a scan of the server, or an upload, got {image!r}")
        try:
            return super().infer(request, datastore)
        except HTTPException:
            # The server removes an upload on success only. (Those of sessions are in folders of their own, for further requests.)
            if upload and Path(image).resolve().parent == folder:
                Path(image).unlink(missing_ok=True)
            raise
