"""The app for MONAI Label: options of a request, a bundle's run, the copy of the scans, and the real server over REST."""

from __future__ import annotations

import ast
import contextlib
import hashlib
import itertools
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from custom_components.errors import ScanError
from custom_components.label.options import choice, flag, number, numbers, offered_options, read_options
from custom_components.label.served import ServedBundle, served_bundles
from custom_components.label.studies import copy_studies

ROOT = Path(__file__).parents[2]
BUNDLES = sorted((ROOT / "bundles").glob("*_*/"))
AXES = ["auto", "0", "1", "2"]
OFFERED_BY_ANY = {
    "target_spacing": "",
    "scale_factor": "",
    "denoising_strength": "0.0",
    "slice_thickness": "",
    "in_plane_only": False,
    "slice_axis": AXES,
}
OFFERED_BY_ESRGAN = {
    "target_spacing": "",
    "scale_factor": "",
    "in_plane_only": True,
    "all_axes": False,
    "slice_axis": AXES,
    "stage": ["psnr", "gan"],
    "network_factor": ["2", "4", "8"],
}
ENVIRONMENT = "MRI_SR_LABEL_PYTHON"
START_SECONDS = 300  # a busy machine takes a minute to import it all


def bundle(name):
    return ServedBundle(next(path for path in BUNDLES if path.name.endswith(name)))


def checksums(folder):
    return {p: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*")) if p.is_file()}


def blob(shape=(16, 14, 9)):
    """A smooth bright spot off the centre on an empty background."""
    squares = [(np.arange(n) - 0.44 * n) ** 2 / (2 * 1.6**2) for n in shape]
    return np.rint(20000 * np.exp(-sum(np.ix_(*squares)))).astype(np.int16)


def corners(image):
    """The 8 corners of the field of view in mm, at the outer borders of the outer voxels."""
    ends = itertools.product(*((-0.5, n - 0.5) for n in image.shape))
    return nib.affines.apply_affine(image.affine, np.array(list(ends)))


def centre_of_mass(image):
    return nib.affines.apply_affine(image.affine, ndimage.center_of_mass(image.get_fdata()))


def assert_same_image(path, expected):
    got, expected = nib.load(path), nib.load(expected)
    assert got.get_data_dtype() == expected.get_data_dtype() == np.float32
    np.testing.assert_array_equal(got.affine, expected.affine)
    np.testing.assert_array_equal(np.asarray(got.dataobj), np.asarray(expected.dataobj))


def bundle_run(root, scan, folder, **options):
    """What the command of the README writes, as float32."""
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(root / "configs" / "inference.json")]
    given = {"bundle_root": root, "dataset_dir": scan, "output_dir": folder, "output_dtype": "float32", **options}
    for key, value in given.items():
        command += [f"--{key}", str(value)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return next(folder.glob("*_sr.nii.gz"))


@pytest.fixture
def scan(write_nifti):
    """An oblique scan of thick slices in a folder of its own."""
    return write_nifti("scans/head.nii.gz", voxels=blob())


class TestOptions:
    @pytest.mark.parametrize(
        ("value", "expected"),
        [
            (2, 2),
            (2.5, 2.5),
            ("2.5", 2.5),
            ([1, 1, 2.5], [1, 1, 2.5]),
            ("[1, 1, 2.5]", [1, 1, 2.5]),
            (" 1,1,2.5 ", [1, 1, 2.5]),
            ("[2]", [2]),
            ("", None),
            (None, None),
        ],
    )
    def test_numbers(self, value, expected):
        assert numbers("scale_factor", value) == expected

    @pytest.mark.parametrize(
        "value",
        [
            *(True, "two", [1, "2"], [], "[]", "[1,", "1;2", [[1]], {}, float("nan"), "1e999"),
            *("$1+1", "@network", "%run", "null", "[" * 100000),
        ],
    )
    def test_what_is_no_number_is_refused_in_one_short_line(self, value):
        with pytest.raises(ValueError, match=r"^scale_factor must be one number or one per axis, .*, got .*$") as info:
            numbers("scale_factor", value)
        assert len(str(info.value)) < 160

    def test_number(self):
        read = number(0, 1, 0.75)
        assert [read("denoising_strength", v) for v in (0.5, "0.25", 1, "", None)] == [0.5, 0.25, 1, 0.75, 0.75]
        for value in (1.5, "-0.1", [0.5], "0,1", "$1", True):
            with pytest.raises(ValueError, match=r"^denoising_strength must be one number .*, got "):
                read("denoising_strength", value)

    @pytest.mark.parametrize(("value", "expected"), [(True, True), (False, False), ("true", True), ("False", False)])
    def test_flag(self, value, expected):
        assert flag("in_plane_only", value) is expected

    @pytest.mark.parametrize("value", [1, 0, None, "", "yes", "$True", [True]])
    def test_what_is_no_flag_is_refused(self, value):
        with pytest.raises(ValueError, match="in_plane_only must be true or false, got"):
            flag("in_plane_only", value)

    def test_choice(self):
        read = choice({"auto": None, "0": 0, "1": 1})
        assert [read("slice_axis", v) for v in ("auto", "1", 0, ["auto", "0", "1"])] == [None, 1, 0, None]
        for value in ("2", -1, "$0", None, ["0"], True, 1.0):
            with pytest.raises(ValueError, match="slice_axis must be one of auto, 0, 1, got"):
                read("slice_axis", value)

    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("recnn", {"target_spacing": "", "scale_factor": "", "in_plane_only": False, "slice_axis": AXES}),
            ("esrgan", OFFERED_BY_ESRGAN),
            ("any", OFFERED_BY_ANY),
        ],
    )
    def test_what_a_bundle_offers(self, name, expected):
        assert {key: option.shown for key, option in bundle(name).options.items()} == expected

    @pytest.mark.parametrize("root", BUNDLES, ids=lambda path: path.name)
    def test_what_is_shown_can_be_sent_back_and_is_the_default(self, root):
        served = ServedBundle(root)
        shown = {name: option.shown for name, option in served.options.items()}
        assert read_options(served.options, shown) == {name: served.config[name] for name in shown}

    def test_defaults_of_a_changed_config_are_shown_first(self):
        config = {"scale_factor": [1, 2, 2], "slice_axis": 1, "stage": "b", "network_factor": 4}
        options = offered_options({**config, "weights": {"a": {}, "b": {"2": "x", "4": "y"}}})
        assert {name: option.shown for name, option in options.items()} == {
            "scale_factor": "[1, 2, 2]",
            "slice_axis": ["1", "auto", "0", "2"],
            "stage": ["b", "a"],
            "network_factor": ["4", "2"],
        }

    def test_unknown_options_are_refused(self):
        with pytest.raises(
            ValueError, match=r"among target_spacing, .*, got 'taget_spacing' \(did you mean target_spacing\?\)"
        ):
            read_options(bundle("recnn").options, {"taget_spacing": 1})
        with pytest.raises(ValueError, match=r"got 'stage'$"):
            read_options(bundle("recnn").options, {"stage": "gan"})


class TestServedBundle:
    def test_a_run_keeps_the_field_of_view_and_leaves_the_process_as_it_was(self, scan, tmp_path):
        before = sys.path[:], sys.excepthook
        row = bundle("rrlsrn").run(scan, tmp_path / "out", {"scale_factor": "2,2,1", "slice_axis": "2"}, "cpu")
        assert (sys.path[:], sys.excepthook) == before
        visible = {p.name for p in (tmp_path / "out").iterdir() if not p.name.startswith(".")}
        assert visible == {"head_sr.nii.gz", "summary.csv"}
        assert (row["status"], row["shape_out"], row["error"]) == ("ok", "32x28x9", "")
        result = nib.load(row["output"])
        assert (result.shape, result.get_data_dtype()) == ((32, 28, 9), np.float32)
        np.testing.assert_allclose(corners(result), corners(nib.load(scan)), atol=1e-4)

    def test_any_factor_and_less_noise(self, scan, tmp_path):
        served, results = bundle("_any"), []
        for strength in ("0", "1"):
            given = {"scale_factor": "1.5,1.5,2.4", "denoising_strength": strength}
            row = served.run(scan, tmp_path / strength, given, "cpu")
            assert row["shape_out"] == "24x21x22"
            results.append(nib.load(row["output"]).get_fdata())
        assert np.abs(results[0] - results[1]).max() > 0

    def test_options_reach_the_network(self, scan, tmp_path):
        served, results = bundle("esrgan"), {}
        for stage, factor in (("psnr", 2), ("gan", 2), ("gan", 4)):
            given = {"stage": stage, "network_factor": str(factor), "scale_factor": 2}
            row = served.run(scan, tmp_path / f"{stage}{factor}", given)
            results[stage, factor] = nib.load(row["output"]).get_fdata()
        for a, b in itertools.combinations(results.values(), 2):
            assert a.shape == b.shape == (32, 28, 9)
            assert np.abs(a - b).max() > 1

    @pytest.mark.parametrize(
        ("given", "reason"),
        [
            ({"target_spacing": 9}, "target spacing must be at most the scan's 0.9 mm"),
            ({"scale_factor": 0.5}, "scale_factor must be >= 1, got 0.5"),
            ({"scale_factor": [2, 2]}, "scale_factor must be one number or 3 numbers, got 2"),
            ({"scale_factor": 2, "target_spacing": 1}, "expected target_spacing or scale_factor, got both"),
        ],
    )
    def test_what_cannot_be_done_is_refused_in_one_line(self, scan, tmp_path, given, reason):
        with pytest.raises(ScanError) as info:
            bundle("rrlsrn").run(scan, tmp_path / "out", given)
        assert reason in str(info.value) and "\n" not in str(info.value)

    def test_what_is_no_scan_is_refused(self, tmp_path):
        (tmp_path / "text.nii.gz").write_text("this is not an image")
        with pytest.raises(ScanError, match="expected a NIfTI image, got a file that does not read as one"):
            bundle("rrlsrn").run(tmp_path / "text.nii.gz", tmp_path / "out")

    def test_a_folder_of_scans_is_refused(self, scan, write_nifti, tmp_path):
        write_nifti("scans/other.nii")
        with pytest.raises(ScanError, match="scans: expected one scan, got 2"):
            bundle("rrlsrn").run(scan.parent, tmp_path / "out")

    @pytest.mark.parametrize("name", ["scale_factor", "in_plane_only", "slice_axis", "all_axes"])
    def test_text_in_a_request_is_never_run_as_code(self, name, scan, tmp_path):
        code = f"$open({str(tmp_path / 'written')!r}, 'w')"
        with pytest.raises(ValueError, match=f"{name} must be"):
            bundle("rrlsrn").run(scan, tmp_path / "out", {name: code})
        assert not (tmp_path / "written").exists()

    def test_bundles_by_path(self, tmp_path):
        assert list(served_bundles()) == [path.name for path in BUNDLES]
        some = served_bundles(f"{BUNDLES[1]}, {BUNDLES[0]}/")
        assert list(some) == [BUNDLES[1].name, BUNDLES[0].name]
        assert some[BUNDLES[0].name].root == BUNDLES[0]
        with pytest.raises(ScanError, match=f"got a second {BUNDLES[0].name}"):
            served_bundles(f"{BUNDLES[0]},{BUNDLES[0]}")
        with pytest.raises(ScanError, match=r"inference.json: expected a config of a bundle, got: No such file"):
            served_bundles(str(tmp_path))


class TestStudies:
    def test_scans_are_copied_and_the_source_is_not_touched(self, write_nifti, write_dicom, tmp_path, caplog):
        source = write_nifti("scans/head.NII.GZ.nii.gz").parent
        write_nifti("scans/head.nii")
        write_dicom("scans/t1_series")
        (source / "apart.mhd").write_text("ElementDataFile = apart.raw")
        (source / "notes.txt").write_text("no scan")
        before = checksums(source)
        with caplog.at_level(logging.WARNING):
            ids = copy_studies(source, tmp_path / "copy")
        assert checksums(source) == before
        assert "apart.mhd: left out" in caplog.text
        assert sorted(ids) == ["head", "head.NII.GZ", "t1_series"]
        names = sorted(p.name for p in (tmp_path / "copy").iterdir())
        assert names == ["head.NII.GZ.nii.gz", "head.nii", "t1_series.dicom"]
        assert (tmp_path / "copy" / "head.nii").read_bytes() == (source / "head.nii").read_bytes()
        copied, original = (
            sorted(p.read_bytes() for p in folder.iterdir())
            for folder in (tmp_path / "copy" / "t1_series.dicom", source / "t1_series")
        )
        assert copied == original

    def test_a_folder_that_is_not_there(self, tmp_path):
        with pytest.raises(ScanError, match="nowhere: expected a folder of scans, got: no such file or folder"):
            copy_studies(tmp_path / "nowhere", tmp_path / "copy")


def test_only_this_part_needs_monai_label_and_nothing_needs_this_part():
    for file in sorted((ROOT / "custom_components").rglob("*.py")):
        modules = [
            name
            for node in ast.walk(ast.parse(file.read_text()))
            if isinstance(node, (ast.Import, ast.ImportFrom))
            for name in [getattr(node, "module", None) or "", *(alias.name for alias in node.names)]
        ]
        if file.parent.name != "label":
            assert not {name for name in modules if "label" in name.split(".")}, file
        if file.parent.name != "label" or file.name not in ("main.py", "task.py", "__main__.py"):
            assert not {name for name in modules if name.split(".")[0] == "monailabel"}, file


@pytest.mark.slow
def test_without_monai_label_the_command_says_what_is_missing(tmp_path):
    blocker = "import sys; sys.modules['monailabel'] = None; import runpy; sys.argv = ['label', '--bundle', {!r}];"
    code = blocker.format(str(BUNDLES[0])) + "runpy.run_module('custom_components.label', run_name='__main__')"
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith("error: expected MONAI Label in this environment (`make label`")
    assert list(tmp_path.iterdir()) == []


def label_python():
    given = os.environ.get(ENVIRONMENT)
    python = Path(given) if given else ROOT / ".venv-label" / "bin" / "python"
    if not python.exists():
        pytest.skip(
            f"needs the environment of MONAI Label: `make label` builds .venv-label, or {ENVIRONMENT} names its Python"
        )
    return python


STOCK_APP = """
import shutil, sys, types
utils = sys.modules["torchvision.utils"] = types.ModuleType("torchvision.utils")
sys.modules["torchvision"] = types.ModuleType("torchvision")
utils.make_grid = utils.save_image = None  # all that MONAI Label takes from torchvision, for pictures that nobody asks for
from monailabel.tasks.infer.bundle import BundleInferTask
root, scan, result = sys.argv[1:]
shutil.move(BundleInferTask(root, {})({"image": scan, "device": "cpu", "result_extension": ".nii.gz"})[0], result)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["recnn", "dnsp", "pnorm"])
def test_bundles_on_the_hr_grid_run_right_in_the_stock_app(name, scan, tmp_path):
    """The task that MONAI Label's own app `monaibundle` makes of a bundle; those that upsample themselves need our app."""
    root = tmp_path / bundle(name).name
    shutil.copytree(bundle(name).root, root)
    command = [str(label_python()), "-W", "ignore", "-c", STOCK_APP, root, scan, tmp_path / "stock.nii.gz"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    assert not (root / "output").exists()
    got, expected = nib.load(tmp_path / "stock.nii.gz"), nib.load(bundle_run(root, scan, tmp_path / "out"))
    np.testing.assert_allclose(got.affine, expected.affine, atol=1e-5)  # written by ITK as rotation and spacing
    np.testing.assert_array_equal(np.asarray(got.dataobj), np.asarray(expected.dataobj))


class Server:
    """The server of a test and requests to it."""

    def __init__(self, process, url, log, studies, folder):
        self.process, self.url, self.log, self.studies, self.folder = process, url, log, studies, folder

    def request(self, method, path, query=None, file=None, **fields):
        """Status and body of an answer; `fields` and the file go as a form."""
        mark = uuid.uuid4().hex
        form = []
        for name, value in fields.items():
            form.append(f'--{mark}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode())
        if file:
            head = f'--{mark}\r\nContent-Disposition: form-data; name="file"; filename="{file.name}"\r\n\r\n'
            form += [head.encode(), file.read_bytes(), b"\r\n"]
        body = b"".join([*form, f"--{mark}--\r\n".encode()]) if form else None
        headers = {"Content-Type": f"multipart/form-data; boundary={mark}"} if form else {}
        url = f"{self.url}{path}?{urllib.parse.urlencode(query or {})}"
        request = urllib.request.Request(url, body, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=START_SECONDS) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()

    def infer(self, model, image="", file=None, output="image", **params):
        query = {"image": image, "output": output} if image else {"output": output}
        return self.request("POST", f"/infer/{model}", query, file, params=json.dumps(params))


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The real server on a folder with a scan, on a free port of this machine; stopped with all its processes."""
    python, base = label_python(), tmp_path_factory.mktemp("server")
    studies, temporary = base / "studies", base / "tmp"
    studies.mkdir(), temporary.mkdir()
    nib.save(
        nib.Nifti1Image(blob(), np.diag([1, 1, 2, 1])), studies / "bundles.nii.gz"
    )  # also a path in the repository
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(python), "-m", "custom_components.label", "--studies", str(studies), "--port", str(port)]
    environment = {**os.environ, "TMPDIR": str(temporary), "OMP_WAIT_POLICY": "PASSIVE"}
    with (base / "log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    running = Server(process, f"http://127.0.0.1:{port}", base / "log", studies, temporary)
    try:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if process.poll() is not None:
                pytest.fail(f"the server ended:\n{(base / 'log').read_text()[-3000:]}")
            with contextlib.suppress(OSError):
                if running.request("GET", "/info/")[0] == 200:
                    break
            time.sleep(0.5)
        else:
            pytest.fail(f"no answer after {START_SECONDS} s:\n{(base / 'log').read_text()[-3000:]}")
        yield running
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(120)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.mark.slow
class TestServer:
    def test_info_shows_bundles_and_options(self, server):
        info = json.loads(server.request("GET", "/info/")[1])
        assert sorted(info["models"]) == [path.name for path in BUNDLES]
        model = info["models"]["fetal_mri_sr_esrgan"]
        assert (model["type"], model["labels"]) == ("others", {})
        assert {k: v for k, v in model["config"].items() if k != "device"} == OFFERED_BY_ESRGAN
        assert "Research software, no medical device" in model["description"]

    @pytest.mark.parametrize(
        ("name", "options"),
        [
            ("recnn", {"target_spacing": [0.6, 0, 1.5]}),
            ("rrlsrn", {"scale_factor": 2}),
            ("esrgan", {"stage": "gan", "network_factor": 4, "in_plane_only": False, "scale_factor": [2, 2, 3]}),
        ],
    )
    def test_what_comes_back_is_what_monai_bundle_writes(self, server, scan, tmp_path, name, options):
        root = bundle(name).root
        assert server.request("PUT", "/datastore/image", {"image": f"head_{name}"}, scan)[0] == 200
        status, body = server.infer(root.name, f"head_{name}", **options)
        assert status == 200, body
        (tmp_path / "result.nii.gz").write_bytes(body)
        assert_same_image(tmp_path / "result.nii.gz", bundle_run(root, scan, tmp_path / "out", **options))

    def test_geometry_and_intensities(self, server, scan, tmp_path):
        before = nib.load(scan)
        status, body = server.infer("brain_mri_sr_recnn", file=scan, scale_factor="2,2,3")
        assert status == 200, body
        (tmp_path / "result.nii.gz").write_bytes(body)
        result = nib.load(tmp_path / "result.nii.gz")
        assert result.shape == (32, 28, 27)
        spacing = np.linalg.norm(before.affine[:3, :3], axis=0) / (2, 2, 3)
        np.testing.assert_allclose(np.linalg.norm(result.affine[:3, :3], axis=0), spacing, rtol=1e-6)
        np.testing.assert_allclose(corners(result), corners(before), atol=1e-4)
        assert np.abs(centre_of_mass(result) - centre_of_mass(before)).max() < 0.05
        assert result.get_data_dtype() == np.float32
        fine = ndimage.zoom(blob().astype(float), (2, 2, 3), order=3, mode="nearest", grid_mode=True)
        assert np.abs(result.get_fdata() - fine).mean() < 0.02 * np.ptp(fine)
        assert result.get_fdata().sum() == pytest.approx(fine.sum(), rel=0.02)
        assert len(np.unique(result.get_fdata())) > 1000  # not the 256 or fewer values of a label map

    def test_a_client_cannot_ask_for_eight_bits(self, server, scan, tmp_path):
        bodies = []
        for asked in ({}, {"result_extension": ".nrrd", "result_dtype": "uint8", "result_compress": False}):
            status, body = server.infer("brain_mri_sr_rrlsrn", file=scan, **asked)
            assert status == 200, body
            bodies.append(body)
        assert bodies[0] == bodies[1]

    def test_the_numbers_come_as_json(self, server):
        status, body = server.infer("brain_mri_sr_rrlsrn", "bundles", output="json")
        answer = json.loads(body)
        assert status == 200
        assert (answer["shape_in"], answer["shape_out"], answer["spacing_out"]) == ("16x14x9", "32x28x18", "0.5x0.5x1")
        assert float(answer["seconds"]) > 0 and 0 < float(answer["consistency_error"]) < 0.2

    @pytest.mark.parametrize(
        ("status", "reason", "request_"),
        [
            (400, "scale_factor must be one number", {"params": '{"scale_factor": "$open(\'x\')"}'}),
            (400, "did you mean scale_factor?", {"params": '{"scalefactor": 2}'}),
            (400, "at most the scan's 1 mm", {"params": '{"target_spacing": 5}'}),
            (400, "device must be one of", {"params": '{"device": "$1"}'}),
            (400, "expected params to be a JSON object", {"params": "{not JSON"}),
            (404, "expected the id of a scan of the server", {"image": "nobody"}),
            (404, "expected the id of a scan of the server", {"image": str(ROOT / "README.md")}),
            (404, "expected a model among brain_mri_sr_any", {"model": "no_model"}),
        ],
    )
    def test_a_bad_request_gets_one_clear_line(self, server, status, reason, request_):
        model = request_.get("model", "brain_mri_sr_rrlsrn")
        query = {"image": request_.get("image", "bundles"), "output": "image"}
        got, body = server.request("POST", f"/infer/{model}", query, params=request_.get("params", "{}"))
        detail = json.loads(body)["detail"]
        assert got == status
        assert reason in detail and "\n" not in detail and "Traceback" not in detail

    def test_a_bad_file_gets_one_clear_line_and_is_not_kept(self, server, tmp_path):
        (tmp_path / "text.nii.gz").write_text("this is not an image")
        before = set(server.folder.rglob("*"))
        status, body = server.infer("brain_mri_sr_rrlsrn", file=tmp_path / "text.nii.gz")
        assert (status, json.loads(body)["detail"]) == (
            400,
            "expected a NIfTI image, got a file that does not read as one",
        )
        assert set(server.folder.rglob("*")) == before
        assert server.request("POST", "/batch/infer/brain_mri_sr_rrlsrn")[0] == 501

    def test_the_folder_of_the_user_is_only_read(self, server):
        before = checksums(server.studies)
        assert server.request("DELETE", "/datastore/image", {"id": "bundles"})[0] == 200
        assert server.infer("brain_mri_sr_rrlsrn", "bundles")[0] == 404
        assert checksums(server.studies) == before
        assert [p.name for p in server.studies.iterdir()] == ["bundles.nii.gz"]

    def test_nothing_is_left_when_it_stops(self, server):
        assert any(server.folder.iterdir())
        os.killpg(server.process.pid, signal.SIGTERM)
        assert server.process.wait(120) == 0
        assert list(server.folder.iterdir()) == []
        assert "Traceback" not in server.log.read_text().split("Shutting down")[-1]
