import itertools
import math

import numpy as np
import pytest
import torch

from custom_components.acquisition import centred_positions, corner_positions, rescaled_affine, slice_axis, target_shape

SHEAR = np.array([[1, 0.1, 0, 0], [0, 1, -0.2, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
ORIENTATIONS = {
    "plain": {"angles": (0, 0, 0), "flips": (1, 1, 1), "origin": (0, 0, 0)},
    "oblique": {},
    "flipped": {"flips": (-1, -1, 1)},
    "permuted": {"axes": (2, 0, 1), "flips": (1, -1, -1)},
}


def borders(shape):
    """The 8 outer corners of the field of view in voxel indices, `(4, 8)`."""
    corners = itertools.product(*((-0.5, n - 0.5) for n in shape))
    return torch.tensor([[*c, 1.0] for c in corners], dtype=torch.float64).T


class TestPositions:
    @pytest.mark.parametrize(("n", "m"), [(6, 3), (3, 6), (7, 5), (5, 12), (1, 4), (4, 1)])
    def test_centred_voxels_tile_the_extent(self, n, m):
        x = centred_positions(n, m)
        half = n / m / 2
        assert x.dtype == torch.float64
        assert x[0] - half == pytest.approx(-0.5)
        assert x[-1] + half == pytest.approx(n - 0.5)
        torch.testing.assert_close(x.diff(), torch.full((m - 1,), n / m, dtype=torch.float64))

    @pytest.mark.parametrize(("n", "m"), [(6, 3), (3, 6), (7, 5)])
    def test_corner_positions_go_from_first_to_last_centre(self, n, m):
        np.testing.assert_allclose(corner_positions(n, m), np.linspace(0, n - 1, m))


class TestTargetShape:
    @pytest.mark.parametrize(
        ("factor", "expected"),
        [
            (2, (20, 24, 10)),
            (3.0, (30, 36, 15)),
            ((2, 2, 3), (20, 24, 15)),
            (2.5, (25, 30, 12)),  # 12.5 goes to the even neighbour, as round does
            ((1, 1, 3.3), (10, 12, 16)),
            ([1, 1, 1], (10, 12, 5)),
        ],
    )
    def test_scale_factor(self, factor, expected):
        assert target_shape((10, 12, 5), (1, 1, 3), scale_factor=factor) == expected

    @pytest.mark.parametrize(
        ("spacing", "wished", "expected"),
        [
            ((1, 1, 3), 1.0, (10, 12, 15)),
            ((2, 2, 3.3), (1, 1, 1), (20, 24, 16)),  # 16.5 mm
            ((0.9, 0.9, 4), (0, 0, 1), (10, 12, 20)),
            ((1.0000001, 1, 0.9999999), 1, (10, 12, 5)),
            ((0.98, 1, 3), 1.0, (10, 12, 15)),  # 0.98 mm of 10 voxels round to 10 voxels of 1 mm
        ],
    )
    def test_target_spacing(self, spacing, wished, expected):
        assert target_shape((10, 12, 5), spacing, target_spacing=wished) == expected

    def test_two_dimensions(self):
        assert target_shape((10, 12), (1, 2), target_spacing=0.5) == (20, 48)

    def test_resulting_spacing_is_extent_over_shape(self):
        shape, spacing = (11, 13, 7), (1.1, 0.7, 3.3)
        new = target_shape(shape, spacing, target_spacing=0.6)
        affine = rescaled_affine(torch.diag(torch.tensor([*spacing, 1.0], dtype=torch.float64)), shape, new)
        got = affine[:3, :3].norm(dim=0)
        for n, s, m, result in zip(shape, spacing, new, got, strict=True):
            assert float(result) == pytest.approx(n * s / m, rel=1e-12)
            assert abs(float(result) - 0.6) < 0.6 * 0.5 / (m - 0.5)  # off by the rounding of the shape only

    @pytest.mark.parametrize(
        ("kwargs", "match"),
        [
            ({}, "either target_spacing or scale_factor, got neither"),
            ({"target_spacing": 1, "scale_factor": 2}, "got both"),
            ({"target_spacing": 1, "scale_factor": 0}, "got both"),
            ({"scale_factor": (2, 2)}, "one number or 3 numbers, got 2"),
            ({"target_spacing": (1, 1, 1, 1)}, "one number or 3 numbers, got 4"),
            ({"target_spacing": ()}, "one number or 3 numbers, got 0"),
            ({"scale_factor": (1, 0.5, 1)}, "scale_factor must be >= 1, got 0.5 on axis 1"),
            ({"scale_factor": 0}, "scale_factor must be >= 1, got 0 on axis 0"),
            ({"target_spacing": (1, 1, 4)}, "at most the scan's 3 mm on axis 2 .*got 4 mm"),
            ({"target_spacing": -1}, "finite and not negative, got -1"),
            ({"target_spacing": math.nan}, "finite and not negative, got nan"),
            ({"scale_factor": math.inf}, "finite and not negative, got inf"),
        ],
    )
    def test_errors(self, kwargs, match):
        with pytest.raises(ValueError, match=match):
            target_shape((10, 12, 5), (1, 1, 3), **kwargs)

    def test_a_single_slice_cannot_get_coarser(self):
        with pytest.raises(ValueError, match="at most the scan's 1 mm on axis 2"):
            target_shape((10, 12, 1), (1, 1, 1), target_spacing=(1, 1, 5))

    @pytest.mark.parametrize(
        "given", [np.array([2, 2, 3]), torch.tensor([2.0, 2.0, 3.0]), (np.float32(2), 2, np.int64(3))]
    )
    def test_arrays_are_numbers_too(self, given):
        assert target_shape((10, 12, 5), (1, 1, 3), scale_factor=given) == (20, 24, 15)


class TestRescaledAffine:
    @pytest.mark.parametrize(
        "new_shape", [(22, 26, 14), (33, 39, 21), (22, 26, 21), (28, 32, 18), (11, 13, 23), (5, 4, 2)]
    )
    @pytest.mark.parametrize("shear", [False, True], ids=["orthogonal", "sheared"])
    @pytest.mark.parametrize("name", ORIENTATIONS)
    def test_outer_borders_stay_in_mm(self, oblique, name, shear, new_shape):
        shape = (11, 13, 7)
        affine = torch.from_numpy(oblique(**ORIENTATIONS[name]) @ (SHEAR if shear else np.eye(4)))
        new = rescaled_affine(affine, shape, new_shape)
        torch.testing.assert_close(new @ borders(new_shape), affine @ borders(shape), rtol=0, atol=1e-10)

    def test_matlab_like_numbers(self):
        """A scan of 2 mm, twice as fine: the first voxel centre moves by a quarter of a voxel towards the border."""
        new = rescaled_affine(torch.diag(torch.tensor([2.0, 2, 2, 1])), (4, 4, 4), (8, 8, 8))
        assert new.dtype == torch.float64
        np.testing.assert_array_equal(new, [[1, 0, 0, -0.5], [0, 1, 0, -0.5], [0, 0, 1, -0.5], [0, 0, 0, 1]])

    def test_there_and_back(self, oblique):
        affine = torch.from_numpy(oblique())
        back = rescaled_affine(rescaled_affine(affine, (11, 13, 7), (28, 13, 23)), (28, 13, 23), (11, 13, 7))
        torch.testing.assert_close(back, affine, rtol=0, atol=1e-12)

    def test_two_dimensions_and_input_untouched(self):
        affine = torch.eye(3)
        new = rescaled_affine(affine, (4, 6), (8, 6))
        np.testing.assert_allclose(new, [[0.5, 0, -0.25], [0, 1, 0], [0, 0, 1]])
        assert torch.equal(affine, torch.eye(3))


class TestSliceAxis:
    @pytest.mark.parametrize("name", ORIENTATIONS)
    @pytest.mark.parametrize("axis", [0, 1, 2])
    def test_thick_slices(self, oblique, axis, name):
        """Wherever they lie in the head, and whether there are many or few."""
        spacing = [0.9, 1.0, 0.8]
        spacing[axis] = 4.0
        affine = torch.from_numpy(oblique(spacing, **ORIENTATIONS[name]))
        for shape in ((256, 256, 256), (20, 256, 30), (2, 3, 4)):
            assert slice_axis(shape, affine) == axis

    @pytest.mark.parametrize("axis", [0, 1, 2])
    @pytest.mark.parametrize("spacing", [(1, 1, 1), (5, 1, 1), (1, 5, 1), (1, 1, 5)])
    def test_a_single_slice_goes_before_its_thickness(self, oblique, axis, spacing):
        shape = [1 if a == axis else 30 for a in range(3)]
        assert slice_axis(shape, torch.from_numpy(oblique(spacing))) == axis

    @pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
    @pytest.mark.parametrize("flips", [(1, 1, 1), (-1, -1, -1)])
    def test_axial_where_the_voxels_are_isotropic(self, oblique, order, flips):
        """Array axis i runs along the world axis order[i], turned by up to 17 degrees; axis 2 of the world is head-foot."""
        affine = torch.from_numpy(oblique((1, 1, 1), axes=order, flips=flips))
        assert slice_axis((40, 50, 60), affine) == order.index(2)

    @pytest.mark.parametrize(("factor", "axis"), [(1.19, 2), (1.2, 0), (1.21, 0)])
    @pytest.mark.parametrize("angle", [0.0, 0.1, 0.2, 0.3, 0.4])
    def test_the_limit_of_thick_slices(self, oblique, factor, axis, angle):
        """Sagittal slices of 1.2 mm are common; float32 affines have them as 1.1999999 too."""
        affine = torch.from_numpy(oblique((0.9 * factor, 0.9, 0.9), angles=(angle, -angle, angle / 2))).float()
        assert slice_axis((160, 240, 240), affine) == axis

    def test_two_thick_axes_tell_nothing(self):
        assert slice_axis((20, 20, 20), torch.diag(torch.tensor([3.0, 3.0, 1.0, 1.0]))) == 2
        assert slice_axis((20, 20, 20), torch.diag(torch.tensor([1.0, 3.0, 3.0, 1.0]))) == 2

    def test_ties_take_the_first_axis(self):
        affine = torch.eye(4, dtype=torch.float64)
        c = math.sqrt(0.5)
        affine[:3, 1], affine[:3, 2] = torch.tensor([0, c, c]), torch.tensor([0, -c, c])
        assert slice_axis((9, 9, 9), affine) == 1
        assert slice_axis((1, 1, 9), affine) == 0
        assert slice_axis((9, 1, 1), affine) == 1

    @pytest.mark.parametrize("shape", [(4, 5), (4, 5, 6, 7), ()])
    def test_three_axes_are_needed(self, shape):
        with pytest.raises(ValueError, match=f"expected 3 axes, got {len(shape)}"):
            slice_axis(shape, torch.eye(4))
