from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from custom_components.acquisition import PROTOCOLS
from custom_components.app.bundles import find_bundles

pytest.importorskip("gradio", reason="needs the extra app")
from custom_components.app.options import MORE, TICKS, WORDS, chosen, part

ROOT = Path(__file__).parents[2]
BUNDLES = find_bundles(ROOT / "bundles")
ANY = BUNDLES["brain_mri_sr_any"]


@pytest.mark.parametrize("name", BUNDLES)
def test_parts_are_seen_where_the_config_has_their_id(name):
    config = json.loads((BUNDLES[name].folder / "configs" / "inference.json").read_text())
    assert {n for n in MORE if part(n, BUNDLES[name]).visible} == set(MORE) & set(config)


def test_the_bundle_for_any_scan_has_all():
    assert all(part(name, ANY).visible for name in MORE)
    assert not part("uncertainty", BUNDLES["brain_mri_sr_recnn"]).visible


@pytest.mark.parametrize("name", BUNDLES)
def test_an_untouched_page_chooses_the_defaults(name):
    for option in ("in_plane_only", *MORE):
        value = chosen(option, part(option, BUNDLES[name]).value)
        assert value in (None, BUNDLES[name].values.get(option, value))


def test_all_protocols_are_offered_in_words():
    assert set(WORDS) == set(PROTOCOLS)
    offered = part("known_acquisition", ANY).choices
    assert [value for _, value in offered] == ["", *PROTOCOLS]
    assert len({words for words, _ in offered}) == len(offered)


@pytest.mark.parametrize(("estimated", "words"), [(True, "estimated from the scan"), (False, "not known")])
def test_what_happens_to_what_is_not_said(estimated, words):
    bundle = replace(ANY, values={**ANY.values, "estimate_acquisition": estimated})
    assert part("known_acquisition", bundle).choices[0] == (words, "")
    assert part("slice_thickness", bundle).placeholder == f"the file's, else {words}"
    assert part("known_noise_std", bundle).placeholder == words
    known = replace(ANY, values={**ANY.values, "known_noise_std": 0.02})
    assert part("known_noise_std", known).placeholder == "default: 2 %"


def test_what_is_chosen_is_what_the_id_takes():
    assert chosen("slice_thickness", "3") == 3.0
    assert chosen("known_noise_std", "3") == 0.03
    assert (chosen("known_acquisition", ""), chosen("known_acquisition", "box")) == (None, "box")
    assert chosen("denoising_strength", 1) == 1.0
    assert all(chosen(name, value) is value for name in TICKS for value in (True, False))


def test_another_name_is_refused():
    with pytest.raises(ValueError, match=r"name must be one of .*, got 'overwrite'"):
        part("overwrite", ANY)
