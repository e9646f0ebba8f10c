"""The server of the page: on 127.0.0.1 alone, quiet, and clean at its end."""

from __future__ import annotations

import argparse
import os
import signal
import socket
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..compare.study import ROOT
from ..errors import ScanError
from .browser import network_file, routes
from .bundles import Bundle, find_bundles
from .local import HOSTS, LocalOnly
from .sessions import Sessions
from .uploads import MIB, Limits

DESCRIPTION = """Choose a bundle and a scan in the browser, see and download the result.

The page is served on 127.0.0.1 alone. Research software, no medical device.
"""
# The toolkit reads these when it is imported: no statistics, no look for updates, no share link, nothing kept in the browser.
QUIET = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "GRADIO_SHARE": "False",
    "GRADIO_RUN_HISTORY": "False",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="python -m custom_components.app",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    limits = Limits()
    made.add_argument("--bundles_dir", default=str(ROOT / "bundles"), help="folder of the bundles")
    made.add_argument("--port", type=int, default=7860, help="0 takes a free one (default: 7860)")
    made.add_argument("--temp_dir", help="where sessions keep their files; default: the system's temporary folder")
    made.add_argument("--max_upload_mib", type=int, default=limits.upload_mib, help="size of a file (default: 512)")
    made.add_argument(
        "--max_unzipped_mib", type=int, default=limits.unzipped_mib, help="size of all files of a zip (default: 2048)"
    )
    made.add_argument("--max_files", type=int, default=limits.files, help="files of a zip (default: 10000)")
    made.add_argument("--max_runs", type=int, default=1, help="runs at a time; others wait (default: 1)")
    return made


def _port(wanted: int) -> int:
    """A port of 127.0.0.1 that is free."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", wanted))
        except (OSError, OverflowError) as error:
            raise ValueError(f"port must be a free one of 127.0.0.1, got {wanted}: {error}") from error
        return int(probe.getsockname()[1])


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve the page until the program is told to end."""
    args = parser().parse_args(arguments)
    bundles = find_bundles(args.bundles_dir)
    limits = Limits(args.max_upload_mib, args.max_unzipped_mib, args.max_files)
    if args.max_runs < 1:
        raise ValueError(f"max_runs must be >= 1, got {args.max_runs}")
    port = _port(args.port)
    os.environ.update(QUIET)
    os.environ["NO_PROXY"] = ",".join([*HOSTS, *filter(None, [os.environ.get("NO_PROXY")])])
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: ended.set())
    with Sessions(args.temp_dir) as sessions:
        os.environ["GRADIO_TEMP_DIR"] = str(sessions.root)  # where the toolkit puts uploads
        _serve(bundles, sessions, limits, port, args.max_runs, ended, network_file(args.bundles_dir))


def _serve(
    bundles: Mapping[str, Bundle],
    sessions: Sessions,
    limits: Limits,
    port: int,
    max_runs: int,
    ended: threading.Event,
    network: Path,
) -> None:
    try:
        import gradio as gr
        from starlette.middleware import Middleware
    except ModuleNotFoundError as error:
        raise ScanError(f"expected the extra `app` (pip install '.[app]'), got no module {error.name}") from error
    from .page import build
    from .texts import CSS

    page = build(bundles, sessions, limits, max_runs, in_browser=network.is_file())
    # fonts of the system: those of the toolkit's themes come from Google
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    try:
        _, url, _ = page.launch(
            server_name="127.0.0.1",
            server_port=port,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            max_file_size=limits.upload_mib * MIB,
            app_kwargs={"middleware": [Middleware(LocalOnly)], "routes": routes(network)},
            footer_links=[],
            run_history=False,
            enable_monitoring=False,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            theme=theme,
            css=CSS,
        )
        print(
            f"open {url} in a browser of this machine; Ctrl-C ends the server and removes all files of it", flush=True
        )
        ended.wait()
    finally:
        page.close(verbose=False)
