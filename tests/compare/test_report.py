from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from itertools import takewhile
from math import nan
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from custom_components.compare.report import write_report
from custom_components.compare.results import Result
from custom_components.compare.sections import Section, markdown_page, markdown_text
from custom_components.compare.study import Method, Study
from custom_components.errors import ScanError

METHODS = ["spline", "p = 1.9", "p = <b>2</b> | x"]
PSNR = {  # scale factor -> a row per method, a column per scan
    "2": [[30.11, 28.42, 33.03], [31.0, 28.9, 33.1], [32.4, 30.3, 32.9]],
    "1x1x3": [[26.0, 25.0, 28.0], [27.0, 26.5, 29.0], [27.5, nan, 29.1]],
}
SCANS = ["first", "second", "third"]
VOID = {"meta", "img", "br", "link", "hr", "input"}


def study(folder, **options):
    given = {"reference": "spline", "pairs": [("p = 1.9", METHODS[2])], "pictures": 1, "command": "compare --x '<b>'"}
    methods = {m: Method(Path("bundles/a_bundle"), [], {"checkpoint": "/home/someone/model_1.pt"}) for m in METHODS}
    return Study(methods, list(PSNR), folder, **{**given, **options})


def results():
    made = []
    for factor, table in PSNR.items():
        for m, row in zip(METHODS, table, strict=True):
            for scan, psnr in zip(SCANS, row, strict=True):
                error = "second.nii.gz: expected <this>, got that" if psnr != psnr else ""
                ssim = nan if error else psnr / 40
                made.append(Result(scan, factor, m, psnr, ssim, ssim / 30, psnr - 5, seconds=ssim * 4, error=error))
    return made


def volumes(made):
    rng = np.random.default_rng(0)
    for factor, step in (("2", (2, 2, 2)), ("1x1x3", (1, 1, 3))):
        truth = rng.random((12, 12, 12), dtype=np.float32)
        files = {made.truth_path(factor, "first"): truth}
        files[made.lowres_path(factor, "first")] = truth[:: step[0], :: step[1], :: step[2]]
        files[made.result_path(factor, "spline", "first")] = truth
        for path, voxels in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            affine = np.diag([12 / n for n in voxels.shape] + [1])
            nib.save(nib.Nifti1Image(voxels, affine), path)


class Page(HTMLParser):
    """Checks that tags are closed in order, and collects what a browser would fetch and show."""

    def __init__(self, text):
        super().__init__()
        self.open, self.sources, self.texts, self.tags = [], [], [], set()
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.texts.append(data)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("comparison")
    made = study(folder)
    volumes(made)
    write_report(folder, results(), made)
    return folder


def rows_below(text, title):
    """Cells of the first table below a title."""
    lines = text[text.index(title) :].splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("| "))
    table = list(takewhile(bool, lines[start:]))
    split = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in table]
    return [split[0], *split[2:]]


def test_numbers_are_those_of_the_results(report):
    text = (report / "report.md").read_text(encoding="utf-8")
    section = text[text.index("## Scale factor x2") : text.index("## Scale factor x1x1x3")]
    head, *rows = rows_below(section, "### Whole array")
    assert len(rows) == 3 and head[:5] == ["method", "scans", "PSNR (dB)", "gain over spline", "SSIM"]
    table = np.array(PSNR["2"])
    for row, values in zip(rows, table, strict=True):
        assert row[1] == "3 of 3"
        assert row[2].strip("*") == f"{values.mean():.2f} ± {values.std(ddof=1):.2f}"
        assert row[4].strip("*") == f"{values.mean() / 40:.4f} ± {values.std(ddof=1) / 40:.4f}"
        assert row[6].strip("*").startswith(f"{values.mean() / 1200:.4f}")
        assert row[7] == f"{values.mean() / 10:.1f}"
    assert [row[2].startswith("**") for row in rows] == [False, False, True]
    assert [row[6].startswith("**") for row in rows] == [True, False, False]  # the least error
    d = table[1] - table[0]
    half = 4.302653 * d.std(ddof=1) / 3**0.5  # t(0.975, 2)
    assert rows[1][3] == f"{d.mean():+.2f} [{d.mean() - half:+.2f}, {d.mean() + half:+.2f}]"
    assert rows[0][3] == "-"
    inside = rows_below(section, "### Inside the head")
    assert inside[1][2] == f"{table[0].mean() - 5:.2f} ± {table[0].std(ddof=1):.2f}"
    assert inside[1][4] == "-"  # no SSIM there
    scans = rows_below(section, "per scan")
    assert [row[1:] for row in scans[1:]] == [
        ["30.11", "31.00", "**32.40**"],
        ["28.42", "28.90", "**30.30**"],
        ["33.03", "**33.10**", "32.90"],
    ]


def test_a_missing_result_is_listed_and_its_scan_takes_no_part(report):
    text = (report / "report.md").read_text(encoding="utf-8")
    section = text[text.index("## Scale factor x1x1x3") : text.index("## Ranking")]
    rows = rows_below(section, "### Whole array")
    assert [row[1] for row in rows[1:]] == ["3 of 3", "3 of 3", "2 of 3"]
    assert [row[2].startswith("**") for row in rows[1:]] == [False, True, False]
    assert "those with fewer scans are left out" in section
    failures = rows_below(text, "## Failures")
    assert failures[1:] == [["x1x1x3", r"p = \<b>2\</b> \| x", "second", r"second.nii.gz: expected \<this>, got that"]]
    assert "1 of 18 results are missing" in text
    tests = rows_below(text, "### PSNR (dB)\n")
    assert [row[3] for row in tests[1:]] == ["3", "3", "3", "3", "2", "2"]


def test_rank_points_and_tests(report):
    text = (report / "report.md").read_text(encoding="utf-8")
    rows = rows_below(text, "### Rank points")
    assert [row[1] for row in rows[1:]] == ["8", "**5**", "**5**"]
    assert [row[3] for row in rows[1:]] == ["6", "4", "**2**"]
    tests = rows_below(text, "### PSNR (dB)\n")[1:]
    assert [row[1:3] for row in tests[:3]] == [
        ["p = 1.9", "spline"],
        [r"p = \<b>2\</b> \| x", "spline"],
        ["p = 1.9", r"p = \<b>2\</b> \| x"],
    ]
    assert tests[0][5:8] == ["0.25", "1", "0.25"]
    anova = rows_below(text, "### Analysis of variance")
    assert anova[1][:4] == ["PSNR (dB)", "x2", "method", "2, 4"]


def test_html_is_well_formed_whole_in_itself_and_escaped(report):
    text = (report / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    assert "script" not in page.tags and "b" not in page.tags
    assert "http" not in text and "@import" not in text and "url(" not in text
    assert all(s.startswith(("data:image/png;base64,", "#")) for s in page.sources)
    assert "p = <b>2</b> | x" in page.texts and "compare --x '<b>'" in page.texts
    pictures = [base64.b64decode(s.split(",")[1]) for s in page.sources if s.startswith("data:")]
    files = {path.read_bytes() for path in (report / "figures").iterdir()}
    assert set(pictures) == files


def test_both_pages_hold_the_same_cells(report):
    texts = {t.strip() for t in Page((report / "report.html").read_text(encoding="utf-8")).texts}
    markdown = (report / "report.md").read_text(encoding="utf-8")
    cells = {c.strip() for line in markdown.splitlines() if line.startswith("| ") for c in re.split(r"(?<!\\)\|", line)}
    plain = {re.sub(r"\\(.)", r"\1", c.removeprefix("**").removesuffix("**")) for c in cells if c.strip("-: ")}
    assert len(plain) > 100
    assert plain <= texts


def test_figures_are_linked_and_small(report):
    names = sorted(path.name for path in (report / "figures").iterdir())
    assert names == [
        *("bars_x1x1x3.png", "bars_x2.png", "intervals.png", "ranks.png"),
        *("residuals_x1x1x3_first.png", "residuals_x2_first.png", "speed.png"),
    ]
    links = re.findall(r"\]\((figures/.+?)\)", (report / "report.md").read_text(encoding="utf-8"))
    assert sorted(links) == [f"figures/{name}" for name in names]
    assert max(path.stat().st_size for path in (report / "figures").iterdir()) < 400_000


def test_machine_paths_are_given_by_their_names(report):
    text = (report / "report.md").read_text(encoding="utf-8")
    assert "checkpoint = model_1.pt" in text
    assert "/home/someone" not in text


@pytest.mark.parametrize(
    ("methods", "scans"), [(METHODS[:1], SCANS), (METHODS, SCANS[:1]), (METHODS, []), (METHODS[:1], [])]
)
def test_degenerate_comparisons_have_a_report(tmp_path, methods, scans):
    made = Study({m: Method(Path("a")) for m in methods}, ["2"], tmp_path, loss_curves={"run": tmp_path / "none.csv"})
    write_report(tmp_path, [r for r in results() if r.scan in scans], made)
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert f"of {len(methods)} methods on {len(scans)} scans" in text
    assert Page((tmp_path / "report.html").read_text(encoding="utf-8")).open == []
    assert "No analysis of PSNR (dB) at x2: needs 2 methods and 2 scans" in text
    if len(methods) > 1:
        assert f"No test (a test needs at least 2 scans that both methods finished, got {len(scans)}" in text
    if scans:
        assert "No figure residuals_x2_first: " in text


def test_methods_with_equal_scores(tmp_path):
    made = Study({m: Method(Path("a")) for m in METHODS[:2]}, ["2"], tmp_path, pictures=0)
    write_report(tmp_path, [Result(s, "2", m, 30, 0.9, 0.1) for s in SCANS for m in METHODS[:2]], made)
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "both methods have the same scores" in text
    assert "the scores leave no residual variance" in text
    assert [row[1] for row in rows_below(text, "### Rank points")[1:]] == ["**4.5**", "**4.5**"]


def test_a_later_report_takes_the_place_of_the_first(tmp_path):
    made = study(tmp_path, pictures=0)
    write_report(tmp_path, results()[:4], made)
    first = (tmp_path / "report.md").read_text(encoding="utf-8")
    write_report(tmp_path, results(), made)
    assert (tmp_path / "report.md").read_text(encoding="utf-8") != first
    assert not list(tmp_path.rglob(".partial-*"))


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ScanError, match="expected to write the file"):
        write_report(tmp_path / "file", results()[:3], study(tmp_path / "file", pictures=0))


def test_markdown_shows_text_as_it_is():
    assert markdown_text("a_b [1, 2]\n_c_ *d* `e` <f> \\ | g") == r"a_b [1, 2] \_c\_ \*d\* \`e\` \<f> \\ \| g"
    assert markdown_text("[a](b)") == r"[a\](b)"
    page = markdown_page("t", [Section("", code="echo ```")], Path())
    assert "````\necho ```\n````" in page
