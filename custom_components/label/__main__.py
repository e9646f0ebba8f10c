"""`python -m custom_components.label`: serve the bundles by MONAI Label on 127.0.0.1, until Ctrl-C.

The server writes into its folder of scans and keeps uploads, sessions and logs. All of that is in one temporary folder, which
goes when it ends; the folder of scans that you name is copied there and only read.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

from ..errors import ScanError, one_line_errors, reason
from .served import served_bundles
from .studies import copy_studies

HOST = "127.0.0.1"  # MONAI Label asks nobody for a password


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", help="folder of scans, or a scan (default: none, scans are uploaded)")
    parser.add_argument("--bundle", help="bundles by path, with commas between (default: all in bundles/)")
    parser.add_argument("--port", type=int, default=8000, help="(default: 8000)")
    return parser.parse_args()


def _prepare_server(work: Path, port: int) -> None:
    """Keep what MONAI Label writes in `work`, keep other web pages out, and make each fault one line in the reply.

    Its batches would run in a process that this one does not see the results of: `monai.bundle run` on a folder does them better.
    """
    from fastapi import Request
    from fastapi.responses import JSONResponse
    from monailabel.config import settings
    from starlette.routing import Route

    # Nobody else changes the copy of the scans, and a watcher would write there while it is being removed.
    settings.MONAI_LABEL_DATASTORE_AUTO_RELOAD = False
    settings.MONAI_LABEL_SESSION_PATH = str(work / "sessions")
    settings.MONAI_LABEL_CORS_ORIGINS = [f"http://{HOST}:{port}"]
    from monailabel.app import app  # reads the settings

    def unreadable(_: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"detail": f"expected params to be a JSON object, got: {error}"}, 400)

    def unforeseen(_: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"detail": reason(error)}, 500)

    def batch(_: Request) -> JSONResponse:
        return JSONResponse({"detail": "expected one scan per request; for a folder: python -m monai.bundle run"}, 501)

    app.router.routes.insert(0, Route("/batch/infer/{model}", batch, methods=["POST"]))
    app.add_exception_handler(json.JSONDecodeError, unreadable)
    app.add_exception_handler(Exception, unforeseen)


def _stop(*_: Any) -> None:
    sys.exit(0)


def main() -> None:
    """Prepare the temporary folder and start the server."""
    one_line_errors()
    args = _arguments()
    roots = [str(bundle.root) for bundle in served_bundles(args.bundle).values()]
    signal.signal(signal.SIGTERM, _stop)  # so that the temporary folder goes then too
    with tempfile.TemporaryDirectory(prefix="mri-sr-label-") as folder:
        work = Path(folder).resolve()
        for name in ("app", "studies", "empty"):
            (work / name).mkdir()
        if args.studies:
            copy_studies(args.studies, work / "studies")
        shutil.copyfile(Path(__file__).with_name("main.py"), work / "app" / "main.py")
        os.chdir(work / "empty")  # an id of a scan that is also a path here would be taken for that
        tempfile.tempdir = str(work)
        try:
            from monailabel.main import Main
        except ImportError as error:
            wanted = "MONAI Label in this environment (`make label` builds one)"
            raise ScanError(f"expected {wanted}, got: {error}") from error
        _prepare_server(work, args.port)
        server = ["start_server", "--app", str(work / "app"), "--studies", str(work / "studies")]
        server += ["--host", HOST, "--port", str(args.port), "--conf", "bundle", ",".join(roots)]
        sys.argv = ["monailabel", *server]
        Main().run()


if __name__ == "__main__":
    main()
