"""The page in a real browser, as a user sees it."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from custom_components.app.bundles import read_bundle
from custom_components.app.command import Options, command
from custom_components.errors import ScanError
from custom_components.transforms import LoadScan
from custom_components.transforms.picture import write_png

pytest.importorskip("gradio", reason="needs the extra app")
sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright, of the extra test")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")]

ROOT = Path(__file__).parents[2]
BUNDLE = "brain_mri_sr_rrlsrn"
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
]
PATIENCE = 240_000  # milliseconds: of a machine with much other work


# Loaded by each Python that the server starts: a line in the file OUTSIDE for each other machine that is called or looked up.
WATCH = """
import os, sys
def watch(event, args):
    if event in ("socket.connect", "socket.getaddrinfo"):
        host = args[0] if event == "socket.getaddrinfo" else args[1][0] if isinstance(args[1], tuple) else "localhost"
        if host not in ("127.0.0.1", "localhost", "::1", "0.0.0.0", "", None):
            with open(os.environ["OUTSIDE"], "a") as file:
                print(event, host, file=file)
sys.addaudithook(watch)
"""


class Server:
    """`python -m custom_components.app` in a process of its own; `temp` is where it keeps its files."""

    def __init__(self, temp: Path, site: Path) -> None:
        self.temp, self.outside = temp, site / "outside.txt"
        (site / "sitecustomize.py").write_text(WATCH)
        command = [sys.executable, "-m", "custom_components.app", "--port", "0", "--temp_dir", str(temp)]
        command += ["--max_upload_mib", "1"]
        environment = {**os.environ, "PYTHONPATH": f"{site}{os.pathsep}{ROOT}", "OUTSIDE": str(self.outside)}
        environment |= {"GRADIO_ANALYTICS_ENABLED": "True", "GRADIO_SHARE": "True"}  # what a user's shell may have
        self.process = subprocess.Popen(command, cwd=temp.parent, env=environment, stdout=subprocess.PIPE, text=True)
        line = self.process.stdout.readline()
        self.url = re.search(r"http://127\.0\.0\.1:\d+/", line).group()

    def files(self) -> list[str]:
        """Names of all files that hold something."""
        found = []
        for path in self.temp.rglob("*"):
            with contextlib.suppress(FileNotFoundError):
                found += [path.name] if path.is_file() and path.stat().st_size else []
        return sorted(found)

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(60)
        self.process.stdout.close()
        return code


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    temp = tmp_path_factory.mktemp("server") / "temp"
    temp.mkdir()
    started = Server(temp, tmp_path_factory.mktemp("site"))
    yield started
    if started.process.poll() is None:
        started.end()


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as play:
        launched = play.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield launched
        launched.close()


@pytest.fixture
def page(server, browser):
    """The page, with the requests that it made under `requests`."""
    opened = browser.new_page(viewport={"width": 1500, "height": 1100})
    opened.set_default_timeout(PATIENCE)
    opened.requests = []
    opened.on("request", lambda request: opened.requests.append(request.url))
    opened.goto(server.url)
    opened.locator("#run").wait_for()
    yield opened
    if not opened.is_closed():
        opened.close()


def assert_registered(page, plane):
    """The two pictures of a plane lie on each other to a hundredth of a pixel, as a comparison must."""
    boxes = [img.bounding_box() for img in page.locator(f"#compare_{plane} img").all()]
    assert len(boxes) == 2
    assert boxes[0] == pytest.approx(boxes[1], abs=0.01)
    assert boxes[0]["width"] == pytest.approx(boxes[0]["height"], abs=0.5)
    assert boxes[0]["width"] > 200


@pytest.fixture
def by_command(scan, tmp_path):
    """The result of the command, which runs while a test runs."""
    given = command(read_bundle(ROOT / "bundles" / BUNDLE), scan, tmp_path / "OUT", Options())
    with subprocess.Popen(
        [sys.executable, *given], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:

        def result() -> bytes:
            assert process.wait(PATIENCE / 1000) == 0
            return (tmp_path / "OUT" / "t1_sr.nii.gz").read_bytes()

        yield result


@pytest.fixture(scope="module")
def scan(tmp_path_factory) -> Path:
    rng = np.random.default_rng(0)
    voxels = gaussian_filter(rng.random((24, 24, 16)), 1.5)
    voxels = (1000 * (voxels - voxels.min()) / np.ptp(voxels)).astype(np.int16)
    path = tmp_path_factory.mktemp("scan") / "t1.nii.gz"
    nib.save(nib.Nifti1Image(voxels, np.diag([1.2, 1, 3, 1])), path)
    return path


def choose(page, name):
    page.locator("#bundle input").click()
    page.get_by_role("option", name=name).click()


def give(page, path):
    page.set_input_files("#scan input[type=file]", path)


def status(page):
    return page.locator("#status").inner_text()


def until(condition, seconds=60):
    for _ in range(10 * seconds):
        if condition():
            return True
        time.sleep(0.1)
    return False


def write(page, part, text):
    """Fill in a field. Gradio gives one that has just been shown its first value a moment later, over what was written before."""
    field = page.locator(f"#{part} :is(input:not([type=range]), textarea)").first

    def stays():
        field.fill(text)
        page.wait_for_timeout(300)
        return field.input_value() == text

    assert until(stays)


def pictures(page, plane):
    """Addresses of the left and the right picture of a plane."""
    return sorted(img.get_attribute("src").rsplit("/", 1)[1] for img in page.locator(f"#compare_{plane} img").all())


def test_a_scan_is_sharpened_compared_and_downloaded(server, page, scan, by_command, tmp_path):
    assert "no medical device" in page.locator("body").inner_text()
    choose(page, "RRLSRN")
    give(page, scan)
    page.locator("#status .good").wait_for()
    page.locator("#run").click()
    page.locator("#status progress").first.wait_for()
    page.locator("#result").wait_for()
    assert status(page) == "Done."

    numbers = page.locator("#numbers").inner_text()
    assert "24x24x16 \u2192 48x48x32" in numbers
    assert "1.2x1x3 \u2192 0.6x0.5x1.5" in numbers
    assert "outside the trained range" in numbers

    for plane, name, count in ((0, "sagittal", 48), (1, "coronal", 48), (2, "axial", 32)):
        assert [p.split("_")[2] for p in pictures(page, plane)] == ["spline.png", "sr.png"]
        slider = page.locator(f"#slice_{plane} input[type=range]")
        assert slider.get_attribute("max") == str(count)
        before = pictures(page, plane)
        slider.fill("5")
        assert until(lambda plane=plane, name=name: f"{name}_5_sr.png" in pictures(page, plane))
        assert pictures(page, plane) != before
    page.locator("#left").get_by_label("input").check()
    assert until(
        lambda: all(f"{n}_5_input.png" in pictures(page, i) for i, n in enumerate(("sagittal", "coronal", "axial"))),
    )
    loaded = "imgs => imgs.length == 2 && imgs.every(i => i.complete && i.naturalWidth > 300)"
    assert until(lambda: page.locator("#compare_2 img").evaluate_all(loaded))

    assert_registered(page, 2)

    # the handle between the two
    picture = page.locator("#compare_2 img").first
    area = picture.bounding_box()
    before = page.locator("#compare_2").screenshot()
    middle = area["y"] + area["height"] / 2
    page.mouse.move(area["x"] + area["width"] / 2, middle)
    page.mouse.down()
    page.mouse.move(area["x"] + area["width"] / 4, middle, steps=5)
    page.mouse.up()
    assert page.locator("#compare_2").screenshot() != before

    with page.expect_download() as caught:
        page.locator("#download").click()
    caught.value.save_as(tmp_path / "page.nii.gz")
    assert caught.value.suggested_filename == "t1_sr.nii.gz"
    assert (tmp_path / "page.nii.gz").read_bytes() == by_command()

    assert {"t1.nii.gz", "t1_sr.nii.gz", "summary.csv"} <= set(server.files())
    hosts = {re.match(r"(?:blob:)?\w+://([^/:]+)", url)[1] for url in page.requests if not url.startswith("data:")}
    assert hosts == {"127.0.0.1"}
    page.close()
    assert until(lambda: server.files() == [], 90)


def test_a_file_that_is_no_scan_gets_one_line(page, tmp_path):
    bad = tmp_path / "notes.nii.gz"
    bad.write_text("no scan")
    with pytest.raises(ScanError) as caught:
        LoadScan()(bad)
    give(page, bad)
    page.locator("#status .good").wait_for()
    page.locator("#run").click()
    page.locator("#status .error").wait_for()
    assert status(page) == str(caught.value).removeprefix(f"{tmp_path}/")
    assert not page.locator("#result").is_visible()
    assert "Traceback" not in page.content()


def test_what_cannot_be_used_is_said_at_once(page, tmp_path, scan):
    page.locator("#run").click()
    page.locator("#status .error").wait_for()
    assert status(page) == "expected a scan, got none: choose a file first"
    (tmp_path / "series.zip").write_text("no zip")
    give(page, tmp_path / "series.zip")
    assert until(lambda: status(page).startswith("series.zip: expected a whole zip without a password, got: "))
    page.get_by_label("Remove this file").or_(page.locator("#scan button[aria-label='Clear']")).first.click()
    assert until(lambda: status(page) == "Choose a scan.")
    (tmp_path / "large.nii").write_bytes(bytes(2**20 + 2**16))
    give(page, tmp_path / "large.nii")
    page.get_by_text(re.compile("exceed", re.IGNORECASE)).first.wait_for()
    page.reload()
    page.locator("#run").wait_for()
    give(page, scan)
    page.locator("#status .good").wait_for()
    write(page, "spacing", "one")
    page.locator("#run").click()
    page.locator("#status .error").wait_for()
    assert status(page) == "target spacing must be one number in mm or three such as 1 1 2.5, got 'one'"
    write(page, "spacing", "0.5")
    write(page, "scale", "1.5")
    page.locator("#run").click()
    assert until(lambda: status(page) == "expected a target voxel size or a scale factor, got both")


def test_any_factor_by_the_bundle_that_is_offered_first(page, scan):
    """Also with noise taken away, which the other bundles do not offer."""
    give(page, scan)
    page.locator("#status .good").wait_for()
    write(page, "scale", "1.25 1.5 1")
    assert not page.locator("#denoising_strength").is_visible()
    page.get_by_text("More options").click()
    write(page, "denoising_strength", "0.5")
    page.locator("#run").click()
    page.locator("#result").wait_for()
    assert "24x24x16 \u2192 30x36x16" in page.locator("#numbers").inner_text()
    page.get_by_text("The same on the command line").click()
    expected = "--scale_factor '[1.25,1.5,1]' --denoising_strength 0.5"
    assert until(lambda: expected in page.locator("#command").inner_text())
    choose(page, "RRLSRN")
    page.locator("#denoising_strength").wait_for(state="hidden")
    assert page.locator("#known_acquisition").is_visible()


def test_the_expected_error_stands_beside_the_result(server, page, scan, tmp_path):
    give(page, scan)
    page.locator("#status .good").wait_for()
    page.get_by_text("More options").click()
    write(page, "slice_thickness", "2.5 mm")
    write(page, "known_noise_std", "2")
    page.locator("#uncertainty input").check()
    page.locator("#known_acquisition input").click()
    page.get_by_role("option", name="slices of a Gaussian profile").click()
    page.locator("#run").click()
    page.locator("#status .error").wait_for()
    assert status(page) == "expected a slice thickness or a protocol, which has its own, got both"
    write(page, "slice_thickness", "")
    page.locator("#run").click()
    page.locator("#result").wait_for()
    page.locator("#about_error").wait_for()
    assert "standard deviation" in page.locator("#about_error").inner_text()
    loaded = "imgs => imgs.length == 1 && imgs.every(i => i.complete && i.naturalWidth > 300)"
    for part in ("error_bar", "error_0", "error_1", "error_2"):
        assert until(lambda part=part: page.locator(f"#{part} img").evaluate_all(loaded)), part
    number = page.locator("#slice_2 input[type=range]")
    number.fill("5")
    source = page.locator("#error_2 img")
    assert until(lambda: source.get_attribute("src").endswith("axial_5_uncertainty.png"))
    assert until(lambda: "axial_5_sr.png" in pictures(page, 2))
    boxes = [page.locator(f"#{name}_2 img").first.bounding_box() for name in ("compare", "error")]
    assert boxes[0]["x"] == pytest.approx(boxes[1]["x"], abs=2)
    assert boxes[0]["width"] == pytest.approx(boxes[1]["width"], abs=2)

    with page.expect_download() as caught:
        page.locator("#download_error").click()
    caught.value.save_as(tmp_path / "error.nii.gz")
    assert caught.value.suggested_filename == "t1_sr_uncertainty.nii.gz"
    error = nib.load(tmp_path / "error.nii.gz")
    assert error.shape == (48, 48, 32)
    assert error.get_fdata().min() >= 0 and error.get_fdata().max() > 0
    page.get_by_text("The same on the command line").click()
    expected = "--known_acquisition slice_profile --known_noise_std 0.02 --uncertainty True"
    assert until(lambda: expected in page.locator("#command").inner_text())

    page.locator("#uncertainty input").uncheck()
    page.locator("#run").click()
    page.locator("#status progress").first.wait_for()
    page.locator("#result").wait_for()
    assert until(lambda: not page.locator("#error_2").is_visible() and not page.locator("#error_bar").is_visible())
    assert not page.locator("#download_error").is_visible()
    page.close()
    assert until(lambda: server.files() == [], 90)


def test_a_run_is_cancelled(server, page, scan):
    give(page, scan)
    page.locator("#status .good").wait_for()
    page.locator("#run").click()
    page.locator("#status progress").first.wait_for()
    page.locator("#cancel").click()
    assert until(lambda: status(page) == "stopped")
    assert not any(name.endswith("_sr.nii.gz") for name in server.files())
    assert page.locator("#run").is_enabled()


def test_a_picture_by_a_stage_that_needs_a_warning(page, tmp_path):
    rng = np.random.default_rng(0)
    write_png(tmp_path / "slice.png", rng.integers(0, 255, (24, 16), dtype=np.uint8))
    assert not page.locator("#stage").is_visible()
    choose(page, "ESRGAN")
    page.locator("#stage").wait_for()
    assert page.locator("#in_plane_only input").is_checked()
    assert not page.locator("#warning").is_visible()
    page.locator("#stage").get_by_label("gan").check()
    page.locator("#warning").wait_for()
    assert "invents texture" in page.locator("#warning").inner_text()
    page.locator("#factor").get_by_label("4", exact=True).check()
    give(page, tmp_path / "slice.png")
    page.locator("#status .good").wait_for()
    page.locator("#run").click()
    page.locator("#result").wait_for()
    assert "24x16x1 \u2192 96x64x1" in page.locator("#numbers").inner_text()
    assert page.locator("#download").inner_text() == "Download slice_sr.png"
    assert pictures(page, 0) == ["picture_1_spline.png", "picture_1_sr.png"]
    assert not page.locator("#compare_1").is_visible()
    assert_registered(page, 0)
    page.get_by_text("The same on the command line").click()
    assert until(lambda: "--stage gan --network_factor 4" in page.locator("#command").inner_text())


def test_the_server_leaves_nothing(server):
    """The last test of this file."""
    subprocess.run(  # so that the watch is known to see
        [sys.executable, "-c", "import socket; socket.socket(type=socket.SOCK_DGRAM).connect(('192.0.2.1', 9))"],
        env={**os.environ, "PYTHONPATH": str(server.outside.parent), "OUTSIDE": str(server.outside)},
        check=False,
        stderr=subprocess.DEVNULL,
    )
    assert server.outside.read_text() == "socket.connect 192.0.2.1\n"
    assert server.end() == 0
    assert list(server.temp.iterdir()) == []
    assert [p.name for p in server.temp.parent.iterdir()] == ["temp"]
