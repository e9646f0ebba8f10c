from __future__ import annotations

import json
from pathlib import Path

import pytest

from custom_components.app.bundles import find_bundles, first_choice, read_bundle
from custom_components.app.command import Options, command, parse_factor, parse_spacing, shown_command
from custom_components.errors import ScanError

ROOT = Path(__file__).parents[2]
ESRGAN = ROOT / "bundles" / "fetal_mri_sr_esrgan"
RECNN = ROOT / "bundles" / "brain_mri_sr_recnn"
ANY = ROOT / "bundles" / "brain_mri_sr_any"


def test_all_bundles_are_there():
    found = find_bundles(ROOT / "bundles")
    assert sorted(found) == sorted(p.parents[1].name for p in ROOT.glob("bundles/*/configs/inference.json"))
    for name, bundle in found.items():
        about = json.loads((bundle.folder / "configs" / "metadata.json").read_text())
        assert (bundle.name, bundle.title, bundle.description) == (name, about["name"], about["description"])
    titles = [bundle.title for bundle in found.values()]
    assert len(set(titles)) == len(titles)
    assert first_choice(found) == "brain_mri_sr_any"
    assert first_choice({name: b for name, b in found.items() if name > "c"}) == "fetal_mri_sr_esrgan"


def test_stages_and_defaults_are_those_of_the_config():
    esrgan, recnn = read_bundle(ESRGAN), read_bundle(RECNN)
    assert dict(esrgan.stages) == {"psnr": ("2", "4", "8"), "gan": ("2", "4", "8")}
    assert (esrgan.stage, esrgan.factor, esrgan.in_plane_only) == ("psnr", 2.0, True)
    assert (dict(recnn.stages), recnn.stage, recnn.factor, recnn.in_plane_only) == ({}, "", 2.0, False)
    assert (recnn.denoising_strength, read_bundle(ANY).denoising_strength) == (None, 0.0)


def test_references_are_followed(tmp_path):
    folder = tmp_path / "bundle" / "configs"
    folder.mkdir(parents=True)
    (folder / "metadata.json").write_text("{}")
    (folder / "inference.json").write_text('{"default_factor": "@a", "a": "@net::b", "net": {"b": 4}}')
    bundle = read_bundle(tmp_path / "bundle")
    assert (bundle.factor, bundle.title) == (4.0, "bundle")


def test_a_folder_without_bundles_is_refused(tmp_path):
    with pytest.raises(ScanError, match=r"expected a folder of bundles, got none with configs/inference\.json"):
        find_bundles(tmp_path)
    (tmp_path / "b" / "configs").mkdir(parents=True)
    (tmp_path / "b" / "configs" / "inference.json").write_text("{")
    with pytest.raises(ScanError, match=r"metadata\.json: expected a config in JSON, got: No such file"):
        find_bundles(tmp_path)
    (tmp_path / "b" / "configs" / "metadata.json").write_text("[]")
    with pytest.raises(ScanError, match=r"expected a config in JSON, got: Expecting|got a list"):
        find_bundles(tmp_path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", None),
        ("  ", None),
        ("1", (1.0,)),
        ("0.8", (0.8,)),
        ("1 1 2.5", (1.0, 1.0, 2.5)),
        ("[1, 1, 0]", (1.0, 1.0, 0.0)),
        ("1;1;2", (1.0, 1.0, 2.0)),
    ],
)
def test_spacing_is_read_as_people_write_it(text, expected):
    assert parse_spacing(text) == expected


@pytest.mark.parametrize("text", ["a", "1 2", "1 1 1 1", "-1", "nan", "inf", "0", "0 0 0", "1,5 mm"])
def test_other_spacing_is_refused(text):
    with pytest.raises(ValueError, match=r"target spacing must be one number in mm or three such as 1 1 2\.5, got '"):
        parse_spacing(text)


@pytest.mark.parametrize(
    ("text", "expected"), [("", None), ("2", (2.0,)), ("1.5 1.5 3", (1.5, 1.5, 3.0)), ("[1,1,3.3]", (1.0, 1.0, 3.3))]
)
def test_a_factor_is_read_as_people_write_it(text, expected):
    assert parse_factor(text) == expected


@pytest.mark.parametrize("text", ["x2", "2 2", "0.5", "1 1 0", "nan", "inf", "-2"])
def test_other_factors_are_refused(text):
    with pytest.raises(ValueError, match=r"scale factor must be one number >= 1 or three such as 1 1 3, got '"):
        parse_factor(text)


def test_the_command_is_that_of_the_readme():
    shown = shown_command(read_bundle(ANY), Path("/private/IN"), Options())
    text = " ".join((ROOT / "README.md").read_text().replace("\\\n", " ").split())
    assert shown in text


def test_only_what_was_chosen_is_added():
    recnn, esrgan = read_bundle(RECNN), read_bundle(ESRGAN)

    def added(bundle, **chosen):
        plain = command(bundle, "IN", "OUT", Options())
        given = command(bundle, "IN", "OUT", Options(**chosen))
        assert given[: len(plain)] == plain
        return given[len(plain) :]

    assert added(recnn, in_plane_only=False) == []
    assert added(recnn, in_plane_only=True) == ["--in_plane_only", "True"]
    assert added(recnn, target_spacing=(1.0,)) == ["--target_spacing", "1"]
    assert added(recnn, target_spacing=(1.0, 0.0, 2.5)) == ["--target_spacing", "[1,0,2.5]"]
    assert added(recnn, scale_factor=(1.5,)) == ["--scale_factor", "1.5"]
    assert added(recnn, scale_factor=(1.0, 1.0, 3.3)) == ["--scale_factor", "[1,1,3.3]"]
    with pytest.raises(ValueError, match="expected a target voxel size or a scale factor, got both"):
        added(recnn, target_spacing=(1.0,), scale_factor=(2.0,))
    assert added(recnn, denoising_strength=0.5) == []  # the slider of another bundle
    assert added(read_bundle(ANY), denoising_strength=0.0) == []
    assert added(read_bundle(ANY), denoising_strength=0.25) == ["--denoising_strength", "0.25"]
    assert added(recnn, stage="gan", factor="4") == []  # left over from another bundle
    assert added(esrgan, stage="psnr", factor="2", in_plane_only=True) == []
    assert added(esrgan, stage="gan", factor="4") == ["--stage", "gan", "--network_factor", "4"]
    with pytest.raises(ValueError, match=r"stage must be one of .*, got 'gan' at '3'"):
        added(esrgan, stage="gan", factor="3")
