from __future__ import annotations

import json
from pathlib import Path

import pytest

from custom_components.app.bundles import find_bundles, first_choice, read_bundle
from custom_components.app.command import Options, command, shown_command
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
    assert (esrgan.stage, esrgan.factor, esrgan.values["in_plane_only"]) == ("psnr", 2.0, True)
    assert (dict(recnn.stages), recnn.stage, recnn.factor, recnn.values["in_plane_only"]) == ({}, "", 2.0, False)


@pytest.mark.parametrize("folder", sorted((ROOT / "bundles").iterdir()), ids=lambda path: path.name)
def test_values_are_the_plain_ones_of_the_config(folder):
    config = json.loads((folder / "configs" / "inference.json").read_text())
    plain = {k: v for k, v in config.items() if not isinstance(v, (dict, list)) and not str(v).startswith("@")}
    values = read_bundle(folder).values
    assert plain.items() <= values.items()
    assert set(values) <= set(config)
    assert ("uncertainty" in values) == ("uncertainty" in config)


def test_references_are_followed(tmp_path):
    folder = tmp_path / "bundle" / "configs"
    folder.mkdir(parents=True)
    (folder / "metadata.json").write_text("{}")
    (folder / "inference.json").write_text('{"default_factor": "@a", "a": "@net::b", "net": {"b": 4}}')
    bundle = read_bundle(tmp_path / "bundle")
    assert (bundle.factor, bundle.title) == (4.0, "bundle")
    assert dict(bundle.values) == {"default_factor": 4, "a": 4}


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


def test_the_command_is_that_of_the_readme():
    shown = shown_command(read_bundle(ANY), Path("/private/IN"), Options())
    text = " ".join((ROOT / "README.md").read_text().replace("\\\n", " ").split())
    assert shown in text


def added(folder, stage=None, factor=None, **values):
    """Arguments that are more than those of nothing chosen."""
    bundle = read_bundle(folder)
    plain = command(bundle, "IN", "OUT", Options())
    given = command(bundle, "IN", "OUT", Options(values, stage, factor))
    assert given[: len(plain)] == plain
    return given[len(plain) :]


def test_only_what_was_chosen_is_added():
    assert added(RECNN, in_plane_only=False) == []
    assert added(RECNN, in_plane_only=True) == ["--in_plane_only", "True"]
    assert added(ESRGAN, in_plane_only=False) == ["--in_plane_only", "False"]
    assert added(RECNN, target_spacing=(1.0,), scale_factor=None) == ["--target_spacing", "1"]
    assert added(RECNN, target_spacing=(1.0, 0.0, 2.5)) == ["--target_spacing", "[1,0,2.5]"]
    assert added(RECNN, scale_factor=(1.5,)) == ["--scale_factor", "1.5"]
    assert added(RECNN, scale_factor=(1.0, 1.0, 3.3)) == ["--scale_factor", "[1,1,3.3]"]
    assert added(ANY, denoising_strength=0.0, uncertainty=False, self_ensemble=False) == []
    assert added(ANY, denoising_strength=0.25) == ["--denoising_strength", "0.25"]
    assert added(ANY, uncertainty=True, self_ensemble=True) == ["--uncertainty", "True", "--self_ensemble", "True"]
    assert added(ANY, slice_thickness=2.4, known_acquisition=None) == ["--slice_thickness", "2.4"]
    assert added(ANY, known_noise_std=0.0) == ["--known_noise_std", "0"]  # known to have none
    assert added(ANY, known_noise_std=0.03, known_acquisition="box") == [
        *("--known_noise_std", "0.03"),
        *("--known_acquisition", "box"),
    ]


def test_what_a_bundle_has_no_id_of_is_left_out():
    """Left over from another bundle."""
    assert added(RECNN, denoising_strength=0.5, uncertainty=True, self_ensemble=True, slice_thickness=3.0) == []
    assert added(RECNN, slice_thickness=3.0, known_acquisition="box") == ["--known_acquisition", "box"]
    assert added(RECNN, stage="gan", factor="4") == []


def test_stages_are_added_and_checked():
    assert added(ESRGAN, stage="psnr", factor="2", in_plane_only=True) == []
    assert added(ESRGAN, stage="gan", factor="4") == ["--stage", "gan", "--network_factor", "4"]
    with pytest.raises(ValueError, match=r"stage must be one of .*, got 'gan' at '3'"):
        added(ESRGAN, stage="gan", factor="3")


def test_what_excludes_each_other_is_refused():
    with pytest.raises(ValueError, match=r"^expected a target voxel size or a scale factor, got both$"):
        added(RECNN, target_spacing=(1.0,), scale_factor=(2.0,))
    with pytest.raises(ValueError, match=r"^expected a slice thickness or a protocol, which has its own, got both$"):
        added(ANY, slice_thickness=3.0, known_acquisition="slice_profile")
