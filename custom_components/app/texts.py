"""What the page says, as HTML."""

from __future__ import annotations

import html
from collections.abc import Mapping

from .bundles import WARNINGS, Bundle
from .runs import Progress
from .views import SIDES

HEAD = """<h1>MRI super-resolution</h1>
<p><b>Research software, no medical device.</b> Do not use it for diagnosis. Your files stay on this machine, in a private folder
that is deleted when you close this page.</p>"""
EMPTY = """<div class="empty"><b>1</b> Choose a bundle: a network with its weights.<br>
<b>2</b> Drop a scan: NIfTI (.nii, .nii.gz), MetaImage, NRRD, a zip of one DICOM series or, for a bundle of slices, a PNG.<br>
<b>3</b> Sharpen: the result stands here beside the input and its spline interpolation, in three planes, to be downloaded.</div>"""
ROWS = {
    "voxels": ("shape_in", "shape_out"),
    "voxel size (mm)": ("spacing_in", "spacing_out"),
    "seconds": ("seconds",),
    "peak memory (GiB)": ("peak_memory_gib",),
    "consistency error": ("consistency_error",),
}
ARROW = " \u2192 "
ERROR = """<b>Expected error</b>: in each voxel the standard deviation that the network expects of the result's error, in the scan's
units and on the planes above. It is that of the result before noise is taken away, right on average over scans and not for each: in
single scans the real error was up to 3.2 times smaller, or 1.5 times larger."""
CONSISTENCY = "how far the result, acquired again, is from the scan: the lower the better"


def note(text: str, kind: str = "plain") -> str:
    """One line of a `kind`: plain, good, error or warning."""
    role = "alert" if kind == "error" else "status"
    return f'<div class="note {kind}" role="{role}">{html.escape(text)}</div>' if text else ""


def progress(now: Progress, seconds: float) -> str:
    """A bar; one without an end before the first slice and after the last."""
    if not now.total or now.done >= now.total:
        what, value = ("loads the scan and the network" if not now.total else "writes the result"), ""
    else:
        what, value = f"{now.unit} {now.done} of {now.total}", f' value="{now.done}" max="{now.total}"'
    return f'<div class="note plain" role="status">{what}, {seconds:.0f} s<progress{value}></progress></div>'


def about(bundle: Bundle) -> str:
    """What a bundle is."""
    return f'<div class="about">{html.escape(bundle.description)}</div>'


def warning(stage: str | None) -> str:
    """What a user must know of a stage, empty for nothing."""
    return note(WARNINGS.get(stage or "", ""), "warning")


def plane(name: str) -> str:
    """Name of a plane and how it is seen."""
    return f"<b>{name}</b><br>{SIDES[name]}"


def numbers(row: Mapping[str, str]) -> str:
    """The scan's line of `summary.csv` as a table, and its warnings."""
    lines = []
    for label, columns in ROWS.items():
        values = [html.escape(row.get(c) or "") for c in columns]
        if any(values):
            hint = f' title="{CONSISTENCY}"' if label.startswith("consistency") else ""
            lines.append(f"<tr{hint}><th>{label}</th><td>{ARROW.join(values)}</td></tr>")
    notes = "".join(note(w, "warning") for w in (row.get("warnings") or "").split("; ") if w)
    return f'<table class="numbers">{"".join(lines)}</table>{notes}'


CSS = """
.gradio-container { max-width: 1500px !important; margin: auto; }
.note { padding: .5em .8em; border-radius: 6px; background: var(--background-fill-secondary);
  overflow-wrap: anywhere; margin: .2em 0; }
.note.error { background: #fde8e8; color: #7d1a1a; }
.note.warning { background: #fff4d6; color: #6a4a00; }
.note.good { background: #e5f4e8; color: #14532d; }
.note progress { display: block; width: 100%; height: .6em; margin-top: .5em; accent-color: var(--color-accent); }
.about { font-size: .9em; }
.numbers th { text-align: left; font-weight: 500; padding: .15em 1.2em .15em 0; }
.numbers td { font-variant-numeric: tabular-nums; }
.numbers, .numbers tr, .numbers td, .numbers th { border: none !important; }
.plane { max-width: 480px; } /* below the height from which the toolkit scales the two pictures unlike */
.plane img { background: #000 !important; }
.error-bar { max-width: 640px; }
.empty { padding: 2em; line-height: 2; border: 1px dashed var(--border-color-primary); border-radius: 6px; }
.plane-title { font-size: .9em; }
"""
