"""A page that sharpens a scan inside the browser: this server gives it its own files and the network, and gets nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..files import PathLike

FOLDER = Path(__file__).parent / "static" / "browser"
ADDRESS = "/browser/"
NETWORK = "tiny.onnx"  # by this name below the address
LINK = f"""<p><a href="{ADDRESS}" target="_blank" rel="noopener">Sharpen in the browser itself</a>: with a small network and without
sending the scan anywhere, not even to this server.</p>"""
_KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".wasm": "application/wasm",
    ".onnx": "application/octet-stream",
}
# The page may load its own files alone. Isolated from pages of other origins it may use several threads.
HEADERS = {
    "content-security-policy": "; ".join(
        [
            "default-src 'none'",
            "script-src 'self' 'wasm-unsafe-eval'",
            "worker-src 'self'",
            "connect-src 'self'",
            "style-src 'self'",
            "img-src 'self' data:",
            "form-action 'none'",
            "base-uri 'none'",
            "frame-ancestors 'none'",
        ]
    ),
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-embedder-policy": "require-corp",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",  # another version of the page must not meet files of this one
    "x-content-type-options": "nosniff",
}


def network_file(bundles_dir: PathLike) -> Path:
    """The network of the page, made by `python -m custom_components.runtimes.export_any_scale`."""
    return Path(bundles_dir).expanduser() / "brain_mri_sr_any" / "models" / NETWORK


def page_files(network: PathLike, folder: PathLike = FOLDER) -> dict[str, Path]:
    """Path below the address -> file, of what the page loads; a file `NAME.gz` is sent zipped as `NAME`."""
    root = Path(folder)
    found = {path.relative_to(root).as_posix().removesuffix(".gz"): path for path in root.rglob("*") if path.is_file()}
    files = {name: path for name, path in found.items() if Path(name).suffix in _KINDS}
    return files | {"": root / "index.html", NETWORK: Path(network)}


def routes(network: PathLike) -> list[Any]:
    """Routes of Starlette that answer GET and HEAD below `ADDRESS`; the extra `app` brings Starlette.

    Args:
        network: ONNX file; where it is missing the page says so.
    """
    from starlette.requests import Request
    from starlette.responses import FileResponse, PlainTextResponse, Response
    from starlette.routing import Route

    files = page_files(network)

    async def answer(request: Request) -> Response:
        name = request.path_params["name"]
        path = files.get(name)
        if path is None or not path.is_file():
            return PlainTextResponse("no such file\n", status_code=404, headers=HEADERS)
        zipped = {"content-encoding": "gzip"} if path.suffix == ".gz" else {}
        kind = _KINDS[Path(name or "index.html").suffix]
        return FileResponse(path, media_type=kind, headers={**HEADERS, **zipped})

    return [Route(ADDRESS + "{name:path}", answer, methods=["GET"])]
