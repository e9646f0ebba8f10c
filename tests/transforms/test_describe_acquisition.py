from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from torch import nn

from custom_components.acquisition import PROTOCOLS, Protocol, acquisition_operator
from custom_components.errors import ScanError
from custom_components.inferers import AnyScaleInferer
from custom_components.networks import AcquisitionEstimator, AnyScaleSR
from custom_components.transforms import (
    DescribeAcquisition,
    DescribeAcquisitiond,
    ToTargetGridd,
    describe_acquisition,
    estimated_acquisition,
)
from custom_components.transforms.describe_acquisition import width_in_noise

SIZE = (12, 10, 6)


def scan(spacing=(1.0, 1.0, 4.0), size=SIZE, **meta) -> MetaTensor:
    voxels = torch.rand(1, *size, generator=torch.Generator().manual_seed(0))
    affine = torch.diag(torch.tensor([*spacing, 1.0], dtype=torch.float64))
    return MetaTensor(voxels, affine=affine, meta={"filename_or_obj": "a.nii", **meta})


def item(factor, *, slice_axis=None, **kwargs):
    """An item as the inference path has it: after `ToTargetGridd`."""
    return ToTargetGridd("image", scale_factor=factor, slice_axis=slice_axis)({"image": scan(**kwargs)})


def described(data, **kwargs):
    """`slice_width`, `noise_std` and the warnings that `DescribeAcquisitiond` gives."""
    got = DescribeAcquisitiond(**kwargs)(data)
    return got["lowres"].meta["slice_width"], got["lowres"].meta["noise_std"], got["warnings"]


def measured_width(n: int, m: int, protocol: str) -> float:
    """FWHM of the Gaussian that has the variance of the middle LR voxel's response along an axis, in LR voxels."""
    row = acquisition_operator((n,), (m,), protocol)(torch.eye(n, dtype=torch.float64)[:, None])[:, 0, m // 2].numpy()
    at = np.arange(n) - np.average(np.arange(n), weights=row)
    return 2.3548 * float(np.sqrt(np.average(at**2, weights=row))) * m / n


class TestProtocol:
    @pytest.mark.parametrize("factor", [4, 5])
    @pytest.mark.parametrize(("protocol", "expected"), [("slice_profile", 1), ("box", 2.3548 / 12**0.5)])
    def test_width_is_what_the_operator_does(self, protocol, expected, factor):
        width, _, _ = described(item((1, 1, factor)), protocol=protocol)
        assert width == [None, None, pytest.approx(expected, rel=1e-4)]
        assert width[2] == pytest.approx(measured_width(factor * 15, 15, protocol), rel=0.1)

    def test_sigma_of_hr_voxels_in_lr_voxels_of_each_axis(self):
        """FWHM = 2 sqrt(2 ln 2) sigma = 2.3548 HR voxels, over HR voxels per LR voxel; unchanged axes have none."""
        width, _, warnings = described(item((2, 1, 2.5)), protocol="gaussian_spline")
        assert width == [pytest.approx(2.3548 / 2, rel=1e-4), None, pytest.approx(2.3548 / 2.5, rel=1e-4)]
        assert warnings == []

    def test_factor_is_that_of_the_grids(self):
        """3.1 asked for 6 voxels gives 19: a factor of 3.1667."""
        width, _, _ = described(item((1, 1, 3.1)), protocol=Protocol(sigma=1.5))
        assert width[2] == pytest.approx(1.5 * 2.3548 * 6 / 19, rel=1e-4)

    def test_without_blur_nothing_is_known_and_the_header_is_not_asked(self):
        width, _, _ = described(item(2, slice_thickness=4.0), protocol="bicubic")
        assert width == [None] * 3

    def test_counts_before_the_header(self):
        assert described(item((1, 1, 4), slice_thickness=2.0), protocol="slice_profile")[0][2] == 1


class TestThickness:
    @pytest.mark.parametrize("axis", [0, 1, 2])
    @pytest.mark.parametrize("header", [True, False])
    def test_holds_across_thick_slices(self, axis, header):
        spacing = [0.9, 1.1, 0.8]
        spacing[axis] = 4.0
        meta = {"slice_thickness": 3.0} if header else {}
        width, _, warnings = described(item(2, spacing=spacing, **meta), **({} if header else {"slice_thickness": 3.0}))
        expected = [None] * 3
        expected[axis] = pytest.approx(0.75)
        assert width == expected
        assert warnings == []

    def test_given_counts_before_the_header(self):
        assert described(item(2, slice_thickness=2.0), slice_thickness=5)[0] == [None, None, pytest.approx(1.25)]

    def test_a_given_slice_axis_counts_for_a_given_thickness(self):
        width, _, _ = described(item(2, slice_axis=0, spacing=(1, 1, 1)), slice_thickness=1.5)
        assert width == [pytest.approx(1.5), None, None]

    def test_of_the_header_is_not_put_on_an_axis_that_is_a_guess(self):
        """Sagittal slices along the last axis, head-foot along the second: the guess is axial."""
        data = item(2, spacing=(0.94, 0.94, 0.8), slice_thickness=1.6)
        data["lowres"].meta["slice_axis"] = 1
        assert described(data)[0] == [None] * 3
        data["lowres"].meta["slice_axis"] = 2
        assert described(data)[0] == [None, None, pytest.approx(2)]

    @pytest.mark.parametrize("thickness", [0.0, -3.0, 12.1])
    def test_odd_ones_of_the_header_are_ignored_with_a_warning(self, thickness, caplog):
        data = item(2, slice_thickness=thickness)
        width, _, warnings = described({**data, "warnings": ["earlier"]})
        assert width == [None] * 3
        told = f"slice thickness of {thickness:g} mm in the header is not in (0, 12] mm: taken as not known"
        assert warnings == ["earlier", told]
        with caplog.at_level(logging.WARNING):
            DescribeAcquisition()(data["lowres"], data["image"].shape[1:])
        assert f"a.nii: {told}" in caplog.text

    def test_the_widest_that_is_taken(self):
        assert described(item(2, slice_thickness=12.0))[0][2] == pytest.approx(3)

    def test_odd_given_ones_are_refused(self):
        with pytest.raises(ScanError, match=r"thickness of at most 3 voxels, got 3\.25 voxels of 4 mm on axis 2"):
            described(item(2), slice_thickness=13.0)
        with pytest.raises(ScanError, match=r"at most 3 voxels, got 5\.89 voxels of 1 mm on axis 0"):
            described(item((2, 1, 1)), protocol=Protocol(sigma=5.0))


class TestItem:
    def test_nothing_known(self):
        assert described(item(2)) == ([None] * 3, None, [])

    @pytest.mark.parametrize("noise", [0.0, 0.02, 1])
    def test_noise_goes_through(self, noise):
        assert described(item(2), noise_std=noise)[1] == noise

    def test_voxels_geometry_and_the_item_stay(self):
        data = item(2)
        got = DescribeAcquisitiond(noise_std=0.1)(data)
        assert torch.equal(got["lowres"], data["lowres"])
        assert torch.equal(got["lowres"].affine, data["lowres"].affine)
        assert got["lowres"].meta["filename_or_obj"] == "a.nii"
        assert got["image"] is data["image"]
        assert "slice_width" not in data["lowres"].meta
        assert "warnings" not in data

    def test_before_the_target_grid_the_slice_axis_is_that_of_the_grid(self):
        got = DescribeAcquisition(slice_thickness=2.0)(scan((4.0, 1.0, 1.0)), (24, 10, 6))
        assert got.meta["slice_width"] == [pytest.approx(0.5), None, None]

    def test_array_version_is_the_function(self):
        lowres = scan(slice_axis=2)
        shape = (12, 10, 24)
        there, _ = describe_acquisition(lowres, shape, "slice_profile", noise_std=0.03)
        got = DescribeAcquisition("slice_profile", noise_std=0.03)(lowres, shape)
        assert got.meta["slice_width"] == there.meta["slice_width"] == [None, None, 1.0]
        assert got.meta["noise_std"] == there.meta["noise_std"] == 0.03

    @pytest.mark.parametrize("size", [(12, 10, 1), (12, 10)])
    def test_pictures_are_left_untouched(self, size):
        affine = torch.eye(len(size) + 1, dtype=torch.float64)
        picture = MetaTensor(torch.rand(1, *size), affine=affine, meta={"slice_thickness": 5.0})
        data = {"lowres": picture, "image": torch.rand(1, *(2 * n for n in size))}
        assert DescribeAcquisitiond(protocol="box", noise_std=0.1)(data)["lowres"] is picture

    def test_keys(self):
        with pytest.raises(KeyError):
            DescribeAcquisitiond("other")(item(2))
        got = DescribeAcquisitiond(["lowres", "other"], allow_missing_keys=True)(item(2))
        assert "slice_width" in got["lowres"].meta

    @pytest.mark.parametrize(
        ("kwargs", "match"),
        [
            ({"protocol": "magic"}, r"protocol must be one of .*got 'magic'"),
            ({"slice_thickness": 0}, "slice_thickness must be a number > 0 in mm or None, got 0"),
            ({"slice_thickness": -1.0}, "slice_thickness must be a number > 0 in mm or None, got -1.0"),
            ({"slice_thickness": "5mm"}, "slice_thickness must be a number > 0 in mm or None, got '5mm'"),
            ({"slice_thickness": float("nan")}, "slice_thickness must be a number > 0 in mm or None, got nan"),
            ({"noise_std": -0.1}, "noise_std must be a number >= 0 or None, got -0.1"),
            ({"noise_std": float("inf")}, "noise_std must be a number >= 0 or None, got inf"),
            ({"noise_std": [0.1]}, r"noise_std must be a number >= 0 or None, got \[0.1\]"),
            ({"protocol": "box", "slice_thickness": 3.0}, "protocol or slice_thickness, got both: 'box' and 3 mm"),
        ],
    )
    def test_bad_arguments(self, kwargs, match):
        with pytest.raises(ValueError, match=match):
            DescribeAcquisitiond(**kwargs)


class Stub(nn.Module):
    """Says the same of each scan, and remembers what it saw."""

    def __init__(self, *says):
        super().__init__()
        self.says = nn.Parameter(torch.tensor(says))
        self.seen = []

    def forward(self, x, scale_factor):
        self.seen.append(x)
        self.factors = scale_factor.tolist()
        return self.says[None]


class TestWidthInNoise:
    @pytest.mark.parametrize(
        ("width", "factor", "noise", "told"),
        [
            (0.8, 1.2, 0.0, 0.8),  # no noise hides nothing
            (1.0, 2.0, 0.03, 1.0),  # 2 HR voxels: much to sharpen
            (1.2, 4.0, 0.03, 1.2),
            (1.0, 1.2, 0.03, 0.68),  # 0.8 HR voxels less than 2
            (1.0, 1.2, 0.015, 0.84),
            (0.5, 1.2, 0.03, 0.3),  # less than 1 HR voxel: the largest part
            (0.5, 1.2, 0.04, 0.5 * (1 - 0.4 * 4 / 3)),
            (0.5, 1.2, 0.5, 0.5 * (1 - 0.4 * 4 / 3)),  # beyond the noise of the training
        ],
    )
    def test_values(self, width, factor, noise, told):
        assert width_in_noise(width, factor, noise) == pytest.approx(told)

    def test_a_known_profile_is_told_so(self):
        """On the axes that are acquired, each by its own factor; no estimate stands in for any of it."""
        width = described(item((1, 1.25, 3)), protocol="slice_profile", noise_std=0.03)[0]
        factor = 12 / 10  # the grid that 1.25 of 10 voxels comes to
        assert width == [None, pytest.approx(width_in_noise(1.0, factor, 0.03)), pytest.approx(1.0)]
        assert width[1] < 0.7

    def test_nothing_is_changed_where_the_noise_is_not_known(self):
        assert described(item(1.5), protocol="box")[0] == [pytest.approx(PROTOCOLS["box"].width(1.5))] * 3


class TestEstimated:
    says = (0.6, 0.7, 0.9, 0.5)
    noise = pytest.approx(0.015)

    @property
    def widths(self):
        return [pytest.approx(w) for w in self.says[:3]]

    def test_takes_the_place_of_what_is_not_known(self, caplog):
        stub, data = Stub(*self.says), item(2)
        with caplog.at_level(logging.INFO):
            assert described(data, estimator=stub) == (self.widths, self.noise, [])
        assert len(stub.seen) == 1 and torch.equal(stub.seen[0][0], data["lowres"].as_tensor())
        profiles = ", ".join(f"slice profile of {w:.2f} voxels on axis {a}" for a, w in enumerate(self.says[:3]))
        assert f"a.nii: estimated from the scan: {profiles}, noise of 1.5 % of its range" in caplog.text
        assert caplog.text.count("estimated") == 1

    def test_only_axes_that_grow(self):
        stub = Stub(*self.says)
        assert described(item((1, 1, 4)), estimator=stub)[0] == [None, None, self.widths[2]]
        assert stub.factors == [[1, 1, 4]]

    @pytest.mark.parametrize(
        ("known", "meta"), [({"slice_thickness": 2.0}, {}), ({}, {"slice_thickness": 2.0})], ids=["given", "header"]
    )
    def test_a_thickness_counts_before_it(self, known, meta):
        """Half a voxel of 2 HR voxels, of which noise of 1.5 % hides a fifth (`TestWidthInNoise`)."""
        width, noise, _ = described(item(2, **meta), estimator=Stub(*self.says), **known)
        assert width == [*self.widths[:2], pytest.approx(0.5 * 0.8)]
        assert noise == self.noise

    def test_a_thickness_of_the_header_that_is_odd_is_estimated(self):
        width, _, warnings = described(item(2, slice_thickness=-1.0), estimator=Stub(*self.says))
        assert width == self.widths and len(warnings) == 1

    @pytest.mark.parametrize("protocol", ["slice_profile", "bicubic"])
    def test_a_protocol_counts_before_it_on_all_axes(self, protocol):
        """One without a blur has no width that could be told."""
        data = item((1, 2, 2))
        expected = described(data, protocol=protocol)[0]
        assert described(data, protocol=protocol, estimator=Stub(*self.says))[:2] == (expected, self.noise)

    def test_a_given_noise_counts_before_it(self):
        stub = Stub(*self.says)
        assert described(item(2), noise_std=0.0, estimator=stub)[:2] == (self.widths, 0.0)
        assert len(stub.seen) == 1

    def test_it_is_not_asked_where_all_is_known(self, caplog):
        stub = Stub(*self.says)
        with caplog.at_level(logging.INFO):
            described(item(2), protocol="box", noise_std=0.01, estimator=stub)
            described(item(1), noise_std=0.01, estimator=stub)
        assert stub.seen == [] and "estimated" not in caplog.text

    def test_what_is_beyond_the_training_is_clamped(self):
        for says, widths, noise in (((-1.0, 0.1, 0.25, -0.2), 0.25, 0.0), ((9.0, 2.5, 3.0, 1.7), 0.48, 0.04)):
            found = estimated_acquisition(scan(), (24, 20, 12), Stub(*says))
            assert found == ([pytest.approx(widths)] * 3, pytest.approx(noise))

    @pytest.mark.parametrize(
        ("noise", "given", "left"), [(0.0, None, 1.0), (0.5, None, 0.775), (1.0, None, 0.55), (1.0, 0.015, 0.775)]
    )
    def test_widths_are_limited_the_more_the_less_there_is_to_gain(self, noise, given, left):
        """By 0.6 LR voxels per factor, 1.2 at most, less 45 % at 3 % of noise; a noise that is known counts before the estimate."""
        data, stub = item((1.2, 1.5, 4)), Stub(5.0, 5.0, 5.0, noise)
        shape, lowres = data["image"].shape[1:], data["lowres"]
        factors = [m / n for n, m in zip(lowres.shape[1:], shape, strict=True)]
        widths, found = estimated_acquisition(lowres, shape, stub, given)
        assert widths == [pytest.approx(min(1.2, 0.6 * f) * left) for f in factors]
        assert found == pytest.approx(0.03 * noise if given is None else given)

    def test_without_gradients_in_single_precision(self):
        stub = Stub(*self.says)
        lowres = scan()
        with torch.autocast("cpu", torch.bfloat16):
            described({"lowres": lowres.double(), "image": torch.rand(1, 24, 20, 12)}, estimator=stub)
        assert stub.seen[0].dtype == torch.float32 and type(stub.seen[0]) is torch.Tensor
        assert stub.seen[0].is_inference() or not stub.seen[0].requires_grad

    def test_array_version(self):
        got = DescribeAcquisition(estimator=Stub(*self.says))(item(2)["lowres"], (24, 20, 12))
        assert got.meta["slice_width"] == self.widths and got.meta["noise_std"] == self.noise

    def test_what_was_told_is_more_certain_than_what_was_estimated(self):
        lowres = item((2, 2, 4))["lowres"]
        for told, certainty in (
            ({}, [0.75] * 3),
            ({"slice_thickness": 4.0}, [0.75, 0.75, 1.0]),
            ({"protocol": "box"}, [1.0] * 3),
        ):
            got = DescribeAcquisition(**told, estimator=Stub(*self.says))(lowres, item((2, 2, 4))["image"].shape[1:])
            assert got.meta["slice_width_certainty"] == certainty

    def test_a_network_of_its_own_kind(self):
        torch.manual_seed(0)
        network = AcquisitionEstimator(2)
        with torch.inference_mode():
            said = network(scan().as_tensor()[None], torch.tensor([[2.0, 1.5, 4.0]]))[0].tolist()
        widths, noise = estimated_acquisition(scan(), (24, 15, 24), network)
        left = 1 - 0.45 * min(max(said[3], 0), 4 / 3)
        limits = [1.2 * left, 0.9 * left, 1.2 * left]
        assert widths == [pytest.approx(min(max(w, 0.25), most)) for w, most in zip(said[:3], limits, strict=True)]
        assert noise == min(max(said[3] * 0.03, 0.0), 0.04)

    def test_something_else_is_refused(self):
        with pytest.raises(TypeError, match=r"estimator must be a torch.nn.Module or None, got str"):
            DescribeAcquisitiond(estimator="models/estimator.pt")


@pytest.mark.parametrize(
    "known",
    [
        {"protocol": "slice_profile"},
        {"slice_thickness": 4.0},
        {"noise_std": 0.06},
        {"estimator": Stub(0.5, 0.5, 0.8, 0.5)},
    ],
)
def test_the_inferer_hands_it_to_the_network(known, monkeypatch):
    """The values of the condition stand where `acquisition_condition` says."""
    told = []
    folded = AnyScaleSR.folded

    def listen(self, condition, *args):
        told.append(condition)
        return folded(self, condition, *args)

    monkeypatch.setattr(AnyScaleSR, "folded", listen)
    data = DescribeAcquisitiond(**known)(item((1, 1, 4)))
    lowres = data["lowres"]
    AnyScaleInferer()(MetaTensor(lowres.as_tensor()[None], meta=lowres.meta), AnyScaleSR(2, 1), data["image"].shape[1:])
    width, noise = ([0.0, 0.0], [2.0, 1.0]) if "noise_std" in known else ([1.0, 1.0], [0.0, 0.0])
    if "estimator" in known:
        width, noise = [0.8, 0.75], [0.5, 1.0]
    assert told[0].tolist() == pytest.approx([0, 0, 0, 0, 0, 0, 0, 0, 2, 2, *width, *noise])


def test_protocols_all_go():
    for name, protocol in PROTOCOLS.items():
        assert described(item(2), protocol=name)[0] == [protocol.width(2.0)] * 3
