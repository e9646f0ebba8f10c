"""A study is read from JSON and from overrides, and refused in one line where it does not fit together."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from custom_components.compare.config import read_study
from custom_components.compare.study import ROOT, Method, Study
from custom_components.errors import ScanError

BUNDLE = "bundles/brain_mri_sr_recnn"


@pytest.fixture
def scans(write_nifti, tmp_path) -> Path:
    for name in ("a", "b"):
        write_nifti(f"hr/{name}.nii.gz")
    return tmp_path / "hr"


@pytest.fixture
def read(scans, tmp_path):
    def read(config=None, **overrides) -> Study:
        own = {"dataset_dir": str(scans), "split": "all", "output_dir": str(tmp_path / "out")}
        own |= {"methods": {"mine": {"bundle": BUNDLE}}, "reference": "mine"} if config is None else config
        (tmp_path / "study.json").write_text(json.dumps(own))
        return read_study(tmp_path / "study.json", **overrides)

    return read


def methods(*names, **fields):
    return {name: {"bundle": BUNDLE, **fields} for name in names}


class TestRead:
    def test_all_of_it(self, read, tmp_path):
        for name in ("x.pt", "y.pt", "losses.csv"):
            (tmp_path / name).touch()
        mine = {
            "bundle": BUNDLE,
            "overlays": ["configs/baselines/bspline.json"],
            "options": {"network_def::residual": False, "checkpoint": "$@weights + '/x.pt'"},
            "by_scale": {"2": {"checkpoint": "@other"}, "3": {"checkpoint": "nowhere.pt"}},
        }
        study = read(
            {
                "weights": str(tmp_path),
                "other": str(tmp_path / "y.pt"),
                "scale_factors": [2, [1, 1, 3]],
                "methods": {"mine": mine, "spline": {"bundle": BUNDLE}},
                "pairs": [["mine", "spline"]],
                "rank": ["mine"],
                "loss_curves": {"mine": "$@weights + '/losses.csv'"},
                "noise_std": 0.01,
            }
        )
        assert study.scale_factors == ["2", "1x1x3"]
        assert list(study.methods) == ["mine", "spline"]
        method = study.methods["mine"]
        assert (method.bundle, list(method.overlays)) == (
            ROOT / BUNDLE,
            [ROOT / "configs" / "baselines" / "bspline.json"],
        )
        assert method.options_at("2") == {"network_def::residual": False, "checkpoint": str(tmp_path / "y.pt")}
        assert method.options_at("1x1x3")["checkpoint"] == str(tmp_path / "x.pt")
        assert (study.reference, study.pairs, study.rank) == ("spline", [("mine", "spline")], ["mine"])
        assert study.loss_curves == {"mine": tmp_path / "losses.csv"}
        assert [scan["stem"] for scan in study.scans] == ["a", "b"]
        assert (study.noise_std, study.output_dir) == (0.01, tmp_path / "out")

    def test_expressions_on_other_ids_are_left_for_the_bundle(self, read):
        options = {"checkpoint": "$@bundle_root + '/models/model.pt'", "device": "$torch.device('cpu')"}
        study = read({"methods": methods("spline", options=options)})
        assert study.methods["spline"].options == options

    def test_overrides(self, read):
        study = read(
            **{"scale_factors": [3], "methods::new::bundle": BUNDLE, "methods::new::options::network_def::a": 1}
        )
        assert study.scale_factors == ["3"]
        assert study.methods["new"].options == {"network_def::a": 1}
        study = read(**{"methods::mine::by_scale::2::network_def::a": 1, "methods::mine::by_scale::3": {"b": 2}})
        assert study.methods["mine"].options_at("2") == {"network_def::a": 1}

    def test_an_id_of_the_file_may_be_left_unused_by_an_override(self, read, tmp_path):
        mine = {"bundle": BUNDLE, "options": {"checkpoint": "$@weights + '/x.pt'"}}
        given = {"weights": str(tmp_path), "methods": {"mine": mine}, "reference": "mine"}
        (tmp_path / "x.pt").touch()
        config = {"dataset_dir": str(tmp_path / "hr"), "split": "all", **given}
        assert read(config, methods=methods("other"), reference="other").reference == "other"
        with pytest.raises(ValueError, match="got 'weight'"):
            read(config, weight="x")

    def test_spline_is_added_where_no_reference_is_named(self, read):
        study = read({"methods": methods("mine")})
        assert list(study.methods) == ["spline", "mine"]
        assert study.reference == "spline"
        assert [p.name for p in study.methods["spline"].overlays] == ["bspline.json"]

    def test_paths_are_looked_for_here_first(self, read, tmp_path, monkeypatch):
        own = tmp_path / BUNDLE / "configs" / "inference.json"
        own.parent.mkdir(parents=True)
        own.touch()
        monkeypatch.chdir(tmp_path)
        assert read().methods["mine"].bundle == tmp_path / BUNDLE

    def test_without_a_file(self, scans):
        study = read_study(dataset_dir=str(scans), methods=methods("mine"))
        assert (study.scale_factors, study.protocol, study.rank) == (["2"], "gaussian_spline", ["spline", "mine"])
        assert len(study.scans) == 1  # the validation split


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scale_factor": [2]}, r"study: expected keys of .* got 'scale_factor' \(did you mean 'scale_factors'\?\)"),
        ({"methods": {}}, "a study needs methods, got none"),
        ({"methods": ["a"]}, "methods must be a dict, got"),
        (
            {"methods": {"m": {"bundel": "x"}}},
            r"method 'm': expected keys of .* got 'bundel' \(did you mean 'bundle'\?",
        ),
        ({"methods": {"m": {}}}, "method 'm': expected the folder of a bundle, got None"),
        ({"methods": {"m": {"bundle": "nowhere"}}}, "nowhere: expected the bundle of method 'm', got: no such"),
        ({"methods": {"m": {"bundle": "tests"}}}, r"inference\.json: expected the inference config of method 'm'"),
        ({"methods": methods("m", overlays=["no.json"])}, r"no\.json: expected an overlay of method 'm'"),
        ({"methods": methods("m", options={"checkpoint": "no.pt"})}, r"no\.pt: expected the checkpoint of method 'm'"),
        ({"methods": methods("m", by_scale={"2": {"checkpoint": "no.pt"}})}, r"no\.pt: expected the checkpoint"),
        ({"methods": methods("m", by_scale={"two": {}})}, "a scale factor must be one number"),
        ({"methods": methods("m", options=[1])}, "options of method 'm' must be a dictionary"),
        ({"reference": "other"}, r"reference must be one of \('mine',\), got 'other'"),
        ({"pairs": [["mine", "other"]]}, "a pair must hold names of .* got .*'other'"),
        ({"pairs": [["mine", "mine"]]}, "pairs must be lists of two methods"),
        ({"pairs": ["mine"]}, "a pair must hold names of"),
        ({"rank": ["other"]}, "rank must hold names of"),
        ({"scale_factors": [0.5]}, "a scale factor must be one number or 3 numbers >= 1, got 0.5"),
        ({"scale_factors": []}, "expected methods and scale factors, got 1 and 0"),
        ({"protocol": "other"}, "protocol must be one of .* got 'other'"),
        ({"noise_std": -1}, "noise_std must be finite and not negative, got -1"),
        ({"noise_std": "much"}, "noise_std must be a float, got 'much'"),
        ({"pictures": True}, "pictures must be a int, got True"),
        ({"dataset_dir": None}, "a study needs dataset_dir"),
        ({"dataset_dir": "nowhere"}, "dataset_dir must be a folder of scans, got nowhere"),
        ({"loss_curves": {"mine": "no.csv"}}, r"no\.csv: expected the loss curve of 'mine'"),
        ({"output_dir": "$@nowhere"}, r"expected an expression of ids of the study, got '\$@nowhere'"),
        ({"methods::mine::bundle::x": 1}, "expected an id of the study, got 'methods::mine::bundle::x'"),
    ],
)
def test_a_bad_study_is_refused(read, changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        read(**changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_a_file_that_is_no_study_is_refused(tmp_path, text):
    (tmp_path / "study.json").write_text(text)
    with pytest.raises(ScanError, match=r"study\.json: expected a study in JSON, got"):
        read_study(tmp_path / "study.json")
    with pytest.raises(ScanError, match=r"none\.json: expected a study in JSON, got: No such file"):
        read_study(tmp_path / "none.json")


def test_each_method_has_a_folder_of_its_own(tmp_path):
    names = ["p = 1.9", "p=1.9", "P = 1.9", "hr", "lr", "head", "...", "SRCNN3D (Pham)", "ä"]
    study = Study({name: Method(tmp_path) for name in names}, [2], tmp_path, reference="hr")
    folders = [study.result_path("2", name, "scan").parent for name in names]
    assert len({f.name.casefold() for f in folders} | {"hr", "lr", "head"}) == len(names) + 3
    assert all(f.parent == tmp_path / "x2" for f in folders)
    assert folders[0].name == "p_1.9" and folders[7].name == "SRCNN3D_Pham"
