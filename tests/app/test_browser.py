"""The page that works in the browser: what it computes, in a real browser, against the Python that it stands for."""

from __future__ import annotations

import gzip
import itertools
import json
import shutil
import socket
import struct
import threading
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from custom_components.acquisition import (
    cell_average_matrix,
    centred_positions,
    interpolation_matrix,
    rescaled_affine,
    target_shape,
)
from custom_components.app.browser import ADDRESS, FOLDER, network_file, page_files, routes
from custom_components.app.local import LocalOnly
from custom_components.figures import plane_slice
from custom_components.inferers import AnyScaleInferer
from custom_components.networks.any_scale import AnyScaleSR, acquisition_condition
from custom_components.runtimes.export_any_scale import export_any_scale
from custom_components.transforms import KeepBackground, LoadScan, RestoreIntensity, RobustScale, SaveScan

starlette = pytest.importorskip("starlette", reason="needs the extra app")
from starlette.applications import Starlette  # noqa: E402
from starlette.middleware import Middleware  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
PATIENCE = 240_000  # milliseconds: of a machine with much other work
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def network():
    """With details as large as those of a trained one, so that a wrong one is seen."""
    torch.manual_seed(0)
    made = AnyScaleSR(8, 4)
    with torch.no_grad():
        made.detail.weight.normal_(0, 0.02)
        for layer in made.layers:
            layer.modulation.weight.normal_(0, 0.5)
            layer.modulation.bias.normal_(0, 0.2)
        made.noise.weight.normal_(0, 0.02)
    return made.eval()


class TestRoutes:
    """What the server gives, without a browser."""

    @pytest.fixture
    def client(self, tmp_path):
        testclient = pytest.importorskip("starlette.testclient", reason="needs httpx")
        (tmp_path / "net.onnx").write_bytes(b"weights")
        app = Starlette(routes=routes(tmp_path / "net.onnx"), middleware=[Middleware(LocalOnly)])
        with testclient.TestClient(app, base_url="http://127.0.0.1") as client:
            yield client

    def test_files_of_the_page_and_the_network(self, client):
        for name in ("", "index.html", "main.js", "worker.js", "style.css", "ort/ort.webgpu.min.mjs"):
            answer = client.get(ADDRESS + name)
            assert (answer.status_code, answer.content) == (200, (FOLDER / (name or "index.html")).read_bytes())
        assert client.get(ADDRESS + "tiny.onnx").content == b"weights"
        assert client.get(ADDRESS + "main.js").headers["content-type"].startswith("text/javascript")

    def test_what_lies_zipped_comes_as_what_it_is(self, client):
        (name,) = (name for name in page_files("x") if name.endswith(".wasm"))
        answer = client.get(ADDRESS + name)
        assert (answer.headers["content-type"], answer.headers["content-encoding"]) == ("application/wasm", "gzip")
        assert answer.content == gzip.decompress((FOLDER / f"{name}.gz").read_bytes())
        assert answer.content[:4] == b"\0asm"

    def test_the_page_may_load_and_send_to_this_server_alone(self, client):
        answer = client.get(ADDRESS)
        own = answer.headers["content-security-policy"].split(", ")[0]
        sources = dict(part.split(" ", 1) for part in own.split("; "))
        assert sources["default-src"] == "'none'"
        assert sources["connect-src"] == sources["worker-src"] == "'self'"
        assert sources["form-action"] == "'none'"
        assert "unsafe-inline" not in own
        assert answer.headers["cross-origin-opener-policy"] == "same-origin"
        assert answer.headers["cross-origin-embedder-policy"] == "require-corp"

    @pytest.mark.parametrize(
        "name", ["none.js", "ort/README.md", "../browser.py", "%2e%2e/%2e%2e/browser.py", "/etc/passwd"]
    )
    def test_nothing_else_is_given(self, client, name):
        assert client.get(ADDRESS + name).status_code == 404

    def test_nothing_is_taken(self, client):
        for method in ("POST", "PUT", "DELETE"):
            assert client.request(method, ADDRESS + "index.html", content=b"scan").status_code == 405

    def test_a_missing_network(self, tmp_path):
        testclient = pytest.importorskip("starlette.testclient", reason="needs httpx")
        with testclient.TestClient(Starlette(routes=routes(network_file(tmp_path)))) as client:
            assert client.get(ADDRESS + "tiny.onnx").status_code == 404


def test_the_licence_of_what_is_not_ours_is_there():
    assert (FOLDER / "ort" / "LICENSE").read_text().startswith("MIT License\n\nCopyright (c) Microsoft")
    assert "1.30.0" in (FOLDER / "ort" / "README.md").read_text()
    assert "ONNX Runtime Web v1.30.0" in (FOLDER / "ort" / "ort.webgpu.min.mjs").read_text()[:100]


def test_the_page_names_no_other_host():
    for path in FOLDER.glob("*.*"):
        assert "://" not in path.read_text(), path.name


# In Chromium


@pytest.fixture(scope="module")
def site(network, tmp_path_factory):
    """Address of the page, served as the app serves it."""
    uvicorn = pytest.importorskip("uvicorn", reason="needs the extra app")
    file = tmp_path_factory.mktemp("network") / "net.onnx"
    export_any_scale(network, file)
    app = Starlette(routes=routes(file), middleware=[Middleware(LocalOnly)])
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off", ws="none"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        while not server.started:
            time.sleep(0.05)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}{ADDRESS}"
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright, of the extra test")
    if CHROMIUM is None:
        pytest.skip("needs Chromium")
    with sync_api.sync_playwright() as play:
        launched = play.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield launched
        launched.close()


@pytest.fixture
def page(site, browser):
    """The page on one thread and in small tiles, with its requests and errors under `sent` and `errors`."""
    opened = browser.new_page(viewport={"width": 1500, "height": 1000})
    opened.set_default_timeout(PATIENCE)
    opened.sent, opened.errors = [], []
    opened.on("request", lambda request: opened.sent.append(request))  # noqa: PLW0108 - a bound method takes no attribute
    opened.on("pageerror", lambda error: opened.errors.append(str(error)))
    opened.on("console", lambda said: opened.errors.append(said.text) if said.type == "error" else None)
    opened.goto(f"{site}?backend=wasm&threads=1&most=9000")
    yield opened
    opened.close()


def head(shape, seed=0):
    """A smooth blob on exactly empty ground."""
    rng = np.random.default_rng(seed)
    voxels = gaussian_filter(rng.random(shape), 1.2)
    voxels = (voxels - voxels.min()) / np.ptp(voxels)
    away = np.linalg.norm(np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")), axis=0)
    return np.where(away < 0.9, 200 + 800 * voxels, 0)


def oblique(spacing, flips=(1, 1, 1)):
    affine = np.eye(4)
    turn = Rotation.from_euler("xyz", [10, -20, 35], degrees=True).as_matrix()
    affine[:3, :3] = turn @ np.diag(np.multiply(spacing, flips))
    affine[:3, 3] = -30, 12, 7
    return affine


def by_python(network, path, folder, spacing=None, factor=None, thickness=None, strength=0.0):
    """The file that the bundle's own components write."""
    scan = RobustScale()(LoadScan()(path))
    shape = target_shape(scan.shape[1:], [float(v) for v in scan.pixdim], spacing, factor)
    scan.meta["slice_width"] = thickness
    result = AnyScaleInferer(denoising_strength=strength)(scan[None], network, shape)[0]
    result = KeepBackground()(result, scan)
    image = RestoreIntensity()(result, scan)
    image.affine = rescaled_affine(scan.affine, scan.shape[1:], shape)
    return Path(SaveScan(folder)(image).meta["saved_to"])


def sharpen(page, path, target, unit="factor", thickness="", strength="0"):
    page.set_input_files("#scan", path)
    page.locator("#target").fill(target)
    page.locator("#more").evaluate("more => { more.open = true; }")
    page.locator("#strength").fill(strength)
    page.locator("#thickness").fill(thickness)
    page.locator("#unit").select_option(unit)
    page.locator("#run").click()
    page.locator("#bar").wait_for(state="hidden")
    return page.locator("#status").inner_text()


def saved(page, folder):
    with page.expect_download() as caught:
        page.locator("#save").click()
    file = folder / caught.value.suggested_filename
    caught.value.save_as(file)
    return file


CASES = {
    "twice": ((24, 22, 14), (1.2, 1, 3), (1, 1, 1), np.int16, "2", {"factor": 2.0}),
    "slices": ((20, 24, 9), (1, 1, 4), (-1, 1, 1), np.uint8, "1 1 4", {"factor": (1, 1, 4)}),
    "any": ((17, 15, 13), (1.1, 0.9, 2.3), (-1, -1, 1), np.float32, "0.7 0 0.8", {"spacing": (0.7, 0, 0.8)}),
    "wide": ((9, 10, 12), (1.1, 2, 2), (1, -1, -1), np.uint16, "1.3 5 2.7", {"factor": (1.3, 5, 2.7)}),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_the_page_gives_what_python_gives(page, network, tmp_path, case):
    shape, spacing, flips, dtype, target, wish = CASES[case]
    voxels = head(shape) / (4 if dtype is np.uint8 else 1)
    image = nib.Nifti1Image(voxels.astype(dtype), oblique(spacing, flips))
    image.header["descrip"] = b"a head"
    image.set_sform(image.affine, 2)
    image.set_qform(image.affine, 1)
    image.header.set_xyzt_units("mm", "sec")
    path = tmp_path / ("scan.nii" if case == "any" else "scan.nii.gz")
    nib.save(image, path)
    assert sharpen(page, path, target, "mm" if "spacing" in wish else "factor") == "Done."
    ours = nib.load(by_python(network, path, tmp_path / "python", **wish))
    file = saved(page, tmp_path)
    assert file.name == "scan_sr.nii.gz"
    theirs = nib.load(file)
    assert theirs.shape == ours.shape
    assert theirs.get_data_dtype() == ours.get_data_dtype() == np.dtype(dtype)
    wanted = ours.get_fdata()
    tolerance = 1e-3 * np.ptp(wanted) if dtype is np.float32 else 1
    np.testing.assert_allclose(theirs.get_fdata(), wanted, rtol=0, atol=tolerance)
    assert np.abs(theirs.get_fdata() - wanted).mean() < 1e-2
    spline = by_python(AnyScaleSR(8, 4).eval(), path, tmp_path / "spline", **wish)  # a new network adds nothing
    assert np.abs(nib.load(spline).get_fdata() - wanted).max() > 20 * tolerance
    np.testing.assert_allclose(theirs.affine, ours.affine, atol=1e-4)
    np.testing.assert_allclose(theirs.get_qform(), ours.get_qform(), atol=1e-3)
    for field in ("sform_code", "qform_code", "xyzt_units", "descrip", "magic"):
        assert theirs.header[field] == ours.header[field], field
    assert {(sent.method, sent.post_data) for sent in page.sent} == {("GET", None)}
    assert {sent.url.split("/")[2].split(":")[0] for sent in page.sent if "://" in sent.url} == {"127.0.0.1"}
    assert page.errors == []


@pytest.mark.slow
def test_a_thickness_that_is_known_reaches_the_network(page, network, tmp_path):
    path = tmp_path / "scan.nii.gz"
    nib.save(nib.Nifti1Image(head((16, 14, 10)).astype(np.float32), oblique((1, 1, 3))), path)
    sharpen(page, path, "1 1 2", thickness="2.4")
    results = {
        name: nib.load(by_python(network, path, tmp_path / name, factor=(1, 1, 2), thickness=width)).get_fdata()
        for name, width in (("known", [None, None, 0.8]), ("unknown", None))
    }
    theirs = nib.load(saved(page, tmp_path)).get_fdata()
    np.testing.assert_allclose(theirs, results["known"], rtol=0, atol=0.5)
    assert np.abs(theirs - results["unknown"]).max() > 2
    said = sharpen(page, path, "2", thickness="30")
    assert said == "scan.nii.gz: slice thickness must be in (0, 9.00] mm, got 30"


@pytest.mark.slow
@pytest.mark.parametrize(("strength", "target"), [("0.5", (2, 2, 1)), ("1", (1.3, 1, 2.5))])
def test_noise_is_taken_away_as_python_does(page, network, tmp_path, strength, target):
    path = tmp_path / "scan.nii.gz"
    rng = np.random.default_rng(3)
    noisy = head((34, 30, 26)) + rng.normal(0, 30, (34, 30, 26))
    page.goto(page.url.replace("most=9000", "most=25000"))  # two tiles
    nib.save(nib.Nifti1Image(noisy.astype(np.float32), oblique((1, 1, 2))), path)
    assert sharpen(page, path, " ".join(map(str, target)), strength=strength) == "Done."
    assert page.locator("#strength_shown").inner_text() == strength
    theirs = nib.load(saved(page, tmp_path)).get_fdata()
    ours, kept = (
        nib.load(by_python(network, path, tmp_path / f"s{s}", factor=target, strength=s)).get_fdata()
        for s in (float(strength), 0.0)
    )
    taken = np.abs(ours - kept).max()
    assert taken > 20
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=max(1e-3 * taken, 0.1))


def damaged(folder):
    """Files that cannot be used, and what is said of them."""
    voxels = head((8, 8, 8)).astype(np.int16)

    def scan(name, data, change=None):
        image = nib.Nifti1Image(data, np.diag([1, 1, 2, 1]))
        nib.save(image, folder / name)
        if change:
            raw = bytearray((folder / name).read_bytes())
            change(raw)
            (folder / name).write_bytes(raw)
        return folder / name

    (folder / "notes.nii").write_text("no scan")
    scan("whole.nii.gz", voxels)
    (folder / "cut.nii.gz").write_bytes((folder / "whole.nii.gz").read_bytes()[:-200])
    nan = head((8, 8, 8)).astype(np.float32)
    nan[3, 3, 3] = np.nan
    nib.save(nib.Nifti2Image(voxels, np.eye(4)), folder / "two.nii")
    colours = np.zeros((8, 8, 8), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    flat = np.diag([1.0, 1, 0, 1])
    return {
        folder / "notes.nii": "expected a NIfTI image (.nii, .nii.gz), got a file that does not read as one",
        folder / "cut.nii.gz": "expected a whole gzip file, got one that is cut short or damaged",
        folder / "two.nii": "expected a NIfTI-1 image (.nii, .nii.gz), got NIfTI-2",
        scan("series.nii", np.stack([voxels] * 2, -1)): "expected one volume with 3 axes, got shape 8 x 8 x 8 x 2",
        scan("slice.nii", voxels[:, :, :1]): "expected at least 2 voxels along each of 3 axes, got shape 8 x 8 x 1",
        scan("nan.nii", nan): "expected finite values, got NaN or infinity in some voxels",
        scan("constant.nii", 0 * voxels + 7): "expected an image with contrast, got the constant 7",
        scan("colours.nii", colours): "expected one real value of at most 64 bits per voxel, got NIfTI data type 128",
        scan("short.nii", voxels, lambda raw: raw.__delitem__(slice(-50, None))): (
            "expected 512 voxels, got a file that is cut short"
        ),
        scan("zero.nii", voxels, lambda raw: struct.pack_into("<f", raw, 84, 0.0)): (
            "expected voxel sizes above 0 mm, got 1 x 0 x 2"
        ),
        scan("flat.nii", voxels, lambda raw: struct.pack_into("<12f", raw, 280, *flat[:3].ravel())): (
            "expected an invertible affine from voxels to mm, got [1 0 0 0; 0 1 0 0; 0 0 0 0]"
        ),
    }


@pytest.mark.slow
def test_bad_input_gets_one_line(page, tmp_path):
    for path, line in damaged(tmp_path).items():
        assert sharpen(page, path, "2") == f"{path.name}: {line}"
        assert page.locator("#status").get_attribute("role") == "alert"
        assert page.locator("#result").is_hidden()
    good = tmp_path / "whole.nii.gz"
    lines = {
        ("a", "factor"): "target must be one number or three such as 1 1 4, got 'a'",
        ("1 2", "factor"): "target must be one number or three such as 1 1 4, got '1 2'",
        ("0.5", "factor"): "whole.nii.gz: factor must be >= 1, got 0.5 on axis 0",
        ("3", "mm"): (
            "whole.nii.gz: target voxel size must be at most the scan's 1.000 mm on axis 0 (0 keeps an axis), got 3 mm"
        ),
    }
    for (target, unit), line in lines.items():
        assert sharpen(page, good, target, unit) == line
    assert sharpen(page, good, "1 1 2") == "Done."  # and goes on


@pytest.mark.slow
def test_a_network_that_is_not_there_gets_one_line(page, tmp_path):
    path = tmp_path / "scan.nii.gz"
    nib.save(nib.Nifti1Image(head((8, 8, 8)).astype(np.int16), np.eye(4)), path)
    page.route("**/tiny.onnx", lambda route: route.fulfill(status=404))
    assert "expected the network" in sharpen(page, path, "2")


@pytest.mark.slow
def test_a_run_is_stopped(page, tmp_path):
    path = tmp_path / "scan.nii.gz"
    nib.save(nib.Nifti1Image(head((64, 64, 64)).astype(np.int16), np.eye(4)), path)
    page.set_input_files("#scan", path)
    page.locator("#run").click()
    page.locator("#bar[value]").wait_for()
    page.locator("#cancel").click()
    assert page.locator("#status").inner_text() == "Stopped."
    small = tmp_path / "small.nii.gz"
    nib.save(nib.Nifti1Image(head((8, 8, 8)).astype(np.int16), np.eye(4)), small)
    assert sharpen(page, small, "2") == "Done."


# Parts of the page, called by themselves


def call(page, module, expression, *given):
    """Value of a JavaScript expression of the module `m` and the arguments `a`, by JSON."""
    script = f"async (a) => {{ const m = await import('./{module}'); return JSON.stringify({expression}); }}"
    return json.loads(page.evaluate(script, list(given)))


READ = "(s => ({...s, values: [...s.values]}))(await m.readNifti(Uint8Array.from(a[0])))"


def dense(rows, n, taps=1):
    matrix = np.zeros((len(rows), n * taps))
    for row, line in zip(matrix, rows, strict=True):
        row[taps * line["first"] :][: len(line["weights"])] = line["weights"]
    return matrix


@pytest.mark.slow
def test_matrices_are_those_of_python(page):
    plain = "m.NAME(...a).map(r => ({first: r.first, weights: [...r.weights]}))"
    for n, m in ((2, 2), (2, 7), (5, 5), (9, 18), (30, 41), (13, 64)):
        spline = dense(call(page, "axes.js", plain.replace("NAME", "splineMatrix"), n, m), n)
        np.testing.assert_allclose(spline, interpolation_matrix(n, centred_positions(n, m)).numpy(), atol=2e-7)
        for degree in (0, 3, 5):
            cells = dense(
                call(page, "axes.js", plain.replace("NAME", "cellAverageMatrix"), n, m, degree), n, degree + 1
            )
            np.testing.assert_allclose(cells, cell_average_matrix(n, m, degree).numpy(), atol=1e-12)


@pytest.mark.slow
def test_the_condition_is_that_of_python(page):
    given = [[10, 12, 8], [15, 12, 25], [1.2, 0.9, 3.0], [0.8, 1.0, None]]
    found = call(page, "network.js", "[...m.condition(...a)]", *given)
    factors = [m / n for n, m in zip(given[0], given[1], strict=True)]
    np.testing.assert_allclose(found, acquisition_condition(factors, given[2], given[3]).numpy(), rtol=1e-6)


@pytest.mark.slow
def test_geometry_is_that_of_nibabel(page):
    rng = np.random.default_rng(1)
    turns = [*Rotation.random(20, rng=rng).as_matrix(), *np.eye(3)[list(itertools.permutations(range(3)))]]
    for turn in turns:
        affine = np.eye(4)
        affine[:3, :3] = turn * rng.uniform(0.5, 3, 3) * rng.choice([-1, 1], 3)
        affine[:3, 3] = rng.normal(0, 50, 3)
        image = nib.Nifti1Image(np.zeros((2, 2, 2), np.int16), affine)
        image.set_qform(affine, 1)
        header = image.header
        found = call(page, "geometry.js", "m.quaternionOf(...a)", affine.tolist())
        assert found["sign"] == header["pixdim"][0]
        quaternion = [float(header[name]) for name in ("quatern_b", "quatern_c", "quatern_d")]
        back = "m.affineOfQuaternion(...a)"
        for given in (found["quaternion"], quaternion):
            read = call(
                page,
                "geometry.js",
                back,
                given,
                affine[:3, 3].tolist(),
                [float(v) for v in header.get_zooms()],
                found["sign"],
            )
            np.testing.assert_allclose(read, affine, atol=2e-3)


@pytest.mark.slow
def test_voxels_are_read_as_nibabel_reads_them(page, tmp_path):
    for dtype, order in itertools.product(["i1", "u1", "i2", "u2", "i4", "u4", "f4", "f8"], "<>"):
        voxels = (head((5, 6, 7)) / 10).astype(dtype)
        path = tmp_path / "scan.nii"
        image = nib.Nifti1Image(voxels, None, nib.Nifti1Header(endianness=order))
        image.set_data_dtype(voxels.dtype.newbyteorder(order))
        nib.save(image, path)
        assert path.read_bytes()[:2] == (b"\x5c\x01" if order == "<" else b"\0\0")
        read = call(page, "nifti.js", READ, [*path.read_bytes()])
        assert (read["shape"], read["type"]) == ([5, 6, 7], voxels.dtype.name)
        np.testing.assert_array_equal(np.reshape(read["values"], (5, 6, 7), order="F"), voxels.astype(np.float32))
        assert (read["low"], read["high"]) == pytest.approx((voxels.min(), voxels.max()), rel=1e-6)


@pytest.mark.slow
def test_a_header_of_other_units_scale_or_without_codes(page, tmp_path):
    voxels = head((5, 6, 7)).astype(np.int16)
    for name, change in {
        "micron": lambda h: h.__setitem__("xyzt_units", 3),
        "qform": lambda h: h.__setitem__("sform_code", 0),
        "none": lambda h: [h.__setitem__(f"{c}form_code", 0) for c in "sq"],
        "scaled": lambda h: h.set_slope_inter(0.5, -3),
    }.items():
        image = nib.Nifti1Image(voxels, oblique((1, 2, 3)))
        image.set_qform(image.affine, 1)
        change(image.header)
        image.header["vox_offset"] = 352
        raw = image.header.binaryblock + bytes(4) + voxels.tobytes(order="F")
        (tmp_path / f"{name}.nii").write_bytes(raw)
        ours = LoadScan()(tmp_path / f"{name}.nii")
        theirs = call(page, "nifti.js", READ, [*raw])
        np.testing.assert_allclose(theirs["affine"], ours.affine.numpy(), rtol=1e-5, atol=1e-4)
        np.testing.assert_allclose(np.reshape(theirs["values"], voxels.shape, order="F"), ours[0].numpy(), rtol=1e-6)
        assert theirs["type"] == ours.meta["scan_dtype"]


@pytest.mark.slow
def test_slices_are_shown_as_the_other_page_shows_them(page):
    rng = np.random.default_rng(2)
    voxels = rng.integers(0, 255, (4, 5, 6))
    for order in itertools.permutations(range(3)):
        for flips in ((1, 1, 1), (-1, 1, -1)):
            affine = np.eye(4)
            affine[:3, :3] = np.eye(3)[list(order)].T * flips * (1, 1.5, 2)
            grid = {"shape": list(voxels.shape), "affine": affine.tolist(), "values": voxels.ravel("F").tolist()}
            for plane, world in (("sagittal", 0), ("coronal", 1), ("axial", 2)):
                axis = order.index(world)
                wanted = [0.5, 0.5, 0.5]
                wanted[axis] = 0.3 if flips[axis] > 0 else 0.7
                shown = plane_slice(torch.from_numpy(voxels[None].astype(np.float32)), affine, plane, tuple(wanted))
                grey_of = "(i => [i.width, i.height, [...i.data].filter((_, k) => k % 4 === 0)])"
                expression = f"{grey_of}(new m.Plane(...a).image(0.3, [0, 255]))"
                width, height, grey = call(page, "pictures.js", expression, plane, grid)
                np.testing.assert_array_equal(np.reshape(grey, (height, width)), shown.pixels)


@pytest.mark.slow
def test_tiles_hold_what_they_may_and_cover_all(page):
    for shape, halo, most, extra in (
        ([256, 256, 24], 8, 500_000, 1.3),
        ([200, 180, 160], 8, 500_000, 2),
        ([30, 30, 30], 2, 9000, 2),
        ([20, 20, 20], 8, 8000, 1),
    ):
        parts = call(page, "sharpen.js", "m.tiling(...a)", shape, halo, most)
        width = [min(-(-n // p) + min(p - 1, 2) * halo, n) for n, p in zip(shape, parts, strict=True)]
        assert np.prod(width) <= most
        assert np.prod(width) * np.prod(parts) <= extra * np.prod(shape)
