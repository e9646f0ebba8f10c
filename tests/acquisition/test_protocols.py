import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, zoom

from custom_components.acquisition import (
    PROTOCOLS,
    Protocol,
    acquisition_operator,
    interpolation_operator,
    rescaled_affine,
    target_shape,
)

FACTORS = [(2, 2, 2), (3, 3, 3), (2, 2, 3), (2.5, 2.5, 2.5), (1, 1, 3.3)]
SHAPE = (30, 24, 33)
IDS = ["x".join(map(str, f)) for f in FACTORS]


def lr_shape(shape, factor):
    return tuple(round(n / f) for n, f in zip(shape, factor, strict=True))


def volume(shape=SHAPE):
    return np.random.default_rng(0).normal(size=shape)


def apply(operator, x):
    return operator(torch.as_tensor(x)[None, None])[0, 0].numpy()


class TestAgainstScipy:
    @pytest.mark.parametrize("factor", FACTORS, ids=IDS)
    @pytest.mark.parametrize(
        ("name", "options", "atol"),
        [
            ("gaussian_spline", {"mode": "nearest", "grid_mode": True}, 1e-6),
            # The paper's code leaves mode at `constant`: the same, but 0 where rounding puts a point past the end.
            ("gaussian_spline_corner", {"mode": "mirror"}, 1e-7),
        ],
    )
    def test_gaussian_then_zoom(self, name, options, atol, factor):
        x, new = volume(), lr_shape(SHAPE, factor)
        sigma = [1.0 if n != m else 0.0 for n, m in zip(SHAPE, new, strict=True)]
        ratio = [m / n for n, m in zip(SHAPE, new, strict=True)]
        expected = zoom(gaussian_filter(x, sigma), ratio, order=3, **options)
        np.testing.assert_allclose(apply(acquisition_operator(SHAPE, new, name), x), expected, rtol=0, atol=atol)

    @pytest.mark.parametrize("factor", FACTORS, ids=IDS)
    @pytest.mark.parametrize(("kind", "order"), [("nearest", 0), ("linear", 1), ("bspline", 3)])
    def test_interpolation_is_zoom(self, kind, order, factor):
        shape = (7, 9, 8)
        new = target_shape(shape, (1, 1, 1), scale_factor=factor)
        ratio = [m / n for n, m in zip(shape, new, strict=True)]
        for alignment, boundary, options in (
            ("centre", "nearest", {"mode": "nearest", "grid_mode": True}),
            ("corner", "mirror", {"mode": "mirror"}),
        ):
            if (kind, alignment) == ("nearest", "corner"):
                continue  # ties between two voxels are decided by rounding errors
            x = volume(shape)
            got = apply(interpolation_operator(shape, new, kind, boundary, alignment), x)
            np.testing.assert_allclose(got, zoom(x, ratio, order=order, **options), rtol=0, atol=1e-6)

    @pytest.mark.parametrize("factor", [2, 3, 2.5])
    def test_bicubic_is_torchs_antialiased_resize_in_the_interior(self, factor):
        x = torch.from_numpy(volume((60, 90)))[None, None]
        new = lr_shape((60, 90), (factor, factor))
        expected = torch.nn.functional.interpolate(x, size=new, mode="bicubic", antialias=True)
        got = acquisition_operator((60, 90), new, "bicubic")(x)
        inner = (slice(None), slice(None), slice(3, -3), slice(3, -3))
        torch.testing.assert_close(got[inner], expected[inner], rtol=0, atol=1e-12)

    @pytest.mark.parametrize("factor", [2, 3])
    def test_gaussian_bicubic_is_scipys_gaussian_and_torchs_resize_in_the_interior(self, factor):
        """Steps 2 and 3 of Thurnhofer-Hemsi 2019."""
        x = volume((60, 90))
        new = lr_shape((60, 90), (factor, factor))
        blurred = torch.from_numpy(gaussian_filter(x, 1))[None, None]
        expected = torch.nn.functional.interpolate(blurred, size=new, mode="bicubic", antialias=True)
        got = acquisition_operator((60, 90), new, "gaussian_bicubic")(torch.from_numpy(x)[None, None])
        inner = (slice(None), slice(None), slice(3, -3), slice(3, -3))
        torch.testing.assert_close(got[inner], expected[inner], rtol=0, atol=1e-12)

    @pytest.mark.parametrize("factor", [2, 3, (1, 2, 3)])
    def test_box_at_whole_factors_is_average_pooling(self, factor):
        x = torch.from_numpy(volume((12, 18, 24)))[None, None]
        expected = torch.nn.functional.avg_pool3d(x, factor)
        got = acquisition_operator((12, 18, 24), expected.shape[2:], "box")(x)
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


class TestSliceProfile:
    """The response of one LR voxel to an impulse that moves over the HR axis is its point-spread function."""

    @staticmethod
    def width(row, step):
        profile = row.numpy()
        half, peak = profile.max() / 2, int(profile.argmax())
        left = np.flatnonzero(profile[:peak] < half)[-1]
        right = peak + np.flatnonzero(profile[peak:] < half)[0]
        start = np.interp(half, profile[left : left + 2], [left, left + 1])
        end = np.interp(-half, -profile[right - 1 : right + 1], [right - 1, right])
        return (end - start) * step

    @pytest.mark.parametrize("thickness", [2.0, 3.0, 4.4])
    @pytest.mark.parametrize("protocol", ["gaussian_spline", "slice_profile"])
    def test_thickness_in_mm_is_the_measured_fwhm(self, protocol, thickness):
        """HR 0.25 mm, LR 3 mm: below 3 mm there is a gap between slices, above an overlap."""
        operator = acquisition_operator((10, 10, 240), (10, 10, 20), protocol, (1, 1, 0.25), (None, None, thickness))
        assert operator.matrices[:2] == [None, None]
        assert self.width(operator.matrices[2][10], 0.25) == pytest.approx(thickness, rel=0.02)

    def test_default_fwhm_is_the_lr_spacing(self):
        operator = acquisition_operator((240,), (20,), "slice_profile")
        assert self.width(operator.matrices[0][10], 0.25) == pytest.approx(3.0, rel=0.02)

    def test_box_thickness_in_mm(self):
        row = acquisition_operator((240,), (20,), "box", (0.25,), (2.0,)).matrices[0][10]
        assert torch.equal((row > 0).nonzero().ravel(), torch.arange(122, 130))  # 8 voxels of 0.25 mm around 126 - 1/2
        np.testing.assert_allclose(row[122:130], 1 / 8, rtol=1e-12)

    @pytest.mark.parametrize(
        "protocol",
        [
            Protocol(sigma=4.0),
            Protocol(sigma=7.0),
            Protocol(thickness=0.75),
            Protocol(thickness=1.4, sigma=2.0),
            Protocol("box", thickness=0.75, boundary="reflect"),
        ],
        ids=repr,
    )
    @pytest.mark.parametrize("factor", [12, 24])
    def test_width_is_the_measured_fwhm_in_lr_voxels(self, protocol, factor):
        """Of a box, that of the Gaussian of its variance."""
        row = acquisition_operator((480,), (480 // factor,), protocol).matrices[0][240 // factor]
        equivalent = 1 if protocol.blur == "gaussian" else np.sqrt(8 * np.log(2) / 12)
        assert protocol.width(factor) == pytest.approx(equivalent * self.width(row, 1 / factor), rel=0.01)

    def test_width_of_a_box_is_that_of_a_gaussian_of_the_measured_variance(self):
        """Measured on HR voxels so fine that those which the box covers in part do not count."""
        protocol, factor, at = Protocol("box", thickness=0.75, boundary="reflect"), 48, np.arange(480)
        row = acquisition_operator((480,), (480 // factor,), protocol).matrices[0][5].numpy()
        variance = row @ (at - row @ at) ** 2
        assert protocol.width(factor) == pytest.approx(np.sqrt(8 * np.log(2) * variance) / factor, rel=0.01)

    def test_no_blur_has_no_width(self):
        assert PROTOCOLS["bicubic"].width(2.0) is None

    def test_thickness_blurs_an_axis_of_unchanged_size(self):
        operator = acquisition_operator((20, 90), (20, 90), "slice_profile", (1, 0.5), (None, 3.0))
        x = volume((20, 90))
        sigma = 3.0 / 0.5 / 2.3548200450309493
        np.testing.assert_allclose(apply(operator, x), gaussian_filter(x, (0, sigma)), rtol=0, atol=1e-7)


class TestProperties:
    @pytest.mark.parametrize("factor", FACTORS, ids=IDS)
    @pytest.mark.parametrize("name", PROTOCOLS)
    def test_a_constant_stays(self, name, factor):
        y = acquisition_operator(SHAPE, lr_shape(SHAPE, factor), name)(
            torch.full((1, 1, *SHAPE), 0.7, dtype=torch.float64)
        )
        torch.testing.assert_close(y, torch.full_like(y, 0.7), rtol=0, atol=1e-7)

    @pytest.mark.parametrize("name", PROTOCOLS)
    def test_axes_of_unchanged_size_are_kept(self, name):
        assert acquisition_operator((5, 6), (5, 6), name).matrices == [None, None]
        assert interpolation_operator((5, 6), (5, 12)).matrices[0] is None

    @pytest.mark.parametrize("name", PROTOCOLS)
    def test_mirrored_volume_gives_mirrored_scan(self, name):
        operator = acquisition_operator((30, 33), (12, 10), name)
        x = volume((30, 33))
        np.testing.assert_allclose(
            apply(operator, x[::-1, ::-1].copy()), apply(operator, x)[::-1, ::-1], rtol=0, atol=1e-7
        )

    def test_a_smooth_volume_comes_back(self):
        """What the LR grid can hold survives acquisition and interpolation, but for the blur's small attenuation."""
        x = np.cos(2 * np.pi * (np.arange(60) + 0.5) / 30)[:, None] * np.ones((1, 8))
        lr = apply(acquisition_operator((60, 8), (20, 8)), x)
        back = apply(interpolation_operator((20, 8), (60, 8)), lr)
        attenuation = np.exp(-0.5 * (2 * np.pi / 30) ** 2)
        np.testing.assert_allclose(back[9:-9], attenuation * x[9:-9], rtol=0, atol=2e-3)


class TestGeometry:
    """A point in mm stays where it is, for any affine and factor."""

    SHAPE = (40, 36, 44)
    CENTRE = (18.3, 18.9, 22.4)

    @staticmethod
    def centre_of_mass(x, affine):
        marginals = [x.sum(tuple(b for b in range(3) if b != a)) for a in range(3)]
        index = np.array([(m * np.arange(len(m))).sum() / m.sum() for m in marginals])
        return affine[:3, :3] @ index + affine[:3, 3]

    @pytest.mark.parametrize("factor", FACTORS, ids=IDS)
    @pytest.mark.parametrize(
        "orientation",
        [
            {"angles": (0, 0, 0), "flips": (1, 1, 1), "spacing": (1, 1, 1)},
            {},
            {"axes": (2, 0, 1), "flips": (-1, 1, -1)},
            {"shear": True},
        ],
        ids=["plain", "oblique", "permuted and flipped", "sheared"],
    )
    def test_centre_of_mass(self, oblique, orientation, factor):
        options = dict(orientation)
        shear = np.eye(4) + (0.2 * np.eye(4, k=1) * [[1], [1], [0], [0]] if options.pop("shear", False) else 0)
        affine = oblique(**options) @ shear
        axes = [np.exp(-0.5 * ((np.arange(n) - c) / 3) ** 2) for n, c in zip(self.SHAPE, self.CENTRE, strict=True)]
        hr = np.einsum("i,j,k->ijk", *axes)
        shape = lr_shape(self.SHAPE, factor)
        lr = apply(acquisition_operator(self.SHAPE, shape), hr)
        lr_affine = rescaled_affine(torch.from_numpy(affine), self.SHAPE, shape)
        new = target_shape(shape, (1, 1, 1), scale_factor=factor)
        sr = apply(interpolation_operator(shape, new), lr)
        sr_affine = rescaled_affine(lr_affine, shape, new)
        truth = affine[:3, :3] @ self.CENTRE + affine[:3, 3]
        for image, matrix in ((hr, affine), (lr, lr_affine.numpy()), (sr, sr_affine.numpy())):
            assert np.linalg.norm(self.centre_of_mass(image, matrix) - truth) < 0.01

    def test_corner_alignment_does_move_it(self):
        """The published protocol changes the extent: the check above can fail."""
        axis = np.exp(-0.5 * ((np.arange(60) - 20) / 4) ** 2)
        lr = apply(acquisition_operator((60, 4), (30, 4), "gaussian_spline_corner"), axis[:, None] * np.ones((1, 4)))[
            :, 0
        ]
        assert abs((lr * np.arange(30)).sum() / lr.sum() * 2 + 0.5 - 20) > 0.1


class TestErrors:
    @pytest.mark.parametrize(
        ("kwargs", "match"),
        [
            ({"blur": "median"}, "blur must be gaussian, box or none, got 'median'"),
            ({"alignment": "left"}, "alignment must be centre or corner, got 'left'"),
            ({"blur": "box"}, "a box blur needs a thickness, got None"),
        ],
    )
    def test_protocol(self, kwargs, match):
        with pytest.raises(ValueError, match=match):
            Protocol(**kwargs)

    @pytest.mark.parametrize(
        ("args", "match"),
        [
            (((8, 8), (4, 4), "mean"), "protocol must be one of .*got 'mean'"),
            (((8, 8), (9, 4)), r"at most \(8, 8\), got \(9, 4\)"),
            (((8, 8), (0, 4)), r"at least 1 .*got \(0, 4\)"),
            (((8, 8), (4, 4, 4)), r"got \(4, 4, 4\)"),
            (((8, 8), (4, 4), "box", None, (2, 2)), "needs the HR spacing in mm, got None"),
            (((8, 8), (4, 4), "box", (1, 1), (2,)), "one thickness and one spacing per axis, got 1 and 2"),
            (((8, 8), (4, 4), "slice_profile", (1, 1), (0, 2)), "must be positive, got 0"),
            (((8, 8), (4, 4), "bicubic", (1, 1), (2, 2)), "a thickness needs a Gaussian or a box blur, got none"),
        ],
    )
    def test_acquisition_operator(self, args, match):
        with pytest.raises(ValueError, match=match):
            acquisition_operator(*args)

    def test_interpolation_operator(self):
        with pytest.raises(ValueError, match=r"a shape of 2 axes, got \(8,\)"):
            interpolation_operator((4, 4), (8,))
        with pytest.raises(ValueError, match="alignment must be centre or corner, got 'left'"):
            interpolation_operator((4, 4), (8, 8), alignment="left")
