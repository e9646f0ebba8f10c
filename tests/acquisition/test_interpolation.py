import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates, zoom

from custom_components.acquisition import centred_positions, corner_positions, interpolation_matrix
from custom_components.acquisition.interpolation import fold

ORDERS = {"nearest": 0, "linear": 1, "bspline": 3}
SIZES = [(12, 24), (12, 36), (11, 27), (24, 12), (23, 9), (7, 23), (5, 17), (2, 5), (80, 200)]


def signal(n, seed=0):
    return np.random.default_rng(seed).normal(size=n)


def keys_cubic(values, x, a=-0.5):
    """Keys 1981, equations 15 and 16, with edge voxels repeated: written as the sum over four neighbours."""
    total = 0.0
    for k in range(int(np.floor(x)) - 1, int(np.floor(x)) + 3):
        s = abs(x - k)
        near, far = (a + 2) * s**3 - (a + 3) * s**2 + 1, a * s**3 - 5 * a * s**2 + 8 * a * s - 4 * a
        u = near if s < 1 else far
        total += values[min(max(k, 0), len(values) - 1)] * u
    return total


class TestAgainstScipy:
    @pytest.mark.parametrize("boundary", ["nearest", "reflect", "mirror"])
    @pytest.mark.parametrize("kind", ORDERS)
    @pytest.mark.parametrize(("n", "m"), SIZES)
    def test_centre_alignment_is_zoom_in_grid_mode(self, n, m, kind, boundary):
        x = signal(n)
        expected = zoom(x, m / n, order=ORDERS[kind], mode=boundary, grid_mode=True)
        got = interpolation_matrix(n, centred_positions(n, m), kind, boundary).numpy() @ x
        assert got.shape == expected.shape
        # scipy's prefilter is not exact for two: it repeats 12 edge voxels (pole^12), or cuts off a sum (pole^(2 n))
        atol = {("bspline", "nearest"): 1e-6, ("bspline", "reflect"): 0.268 ** (2 * n)}.get((kind, boundary), 0)
        np.testing.assert_allclose(got, expected, rtol=0, atol=max(atol, 1e-10))

    @pytest.mark.parametrize("kind", ORDERS)
    @pytest.mark.parametrize(("n", "m"), [(12, 24), (12, 36), (11, 27), (24, 12), (23, 9), (80, 200)])
    def test_corner_alignment_is_zoom_by_default(self, n, m, kind):
        x = signal(n)
        expected = zoom(x, m / n, order=ORDERS[kind])  # its prefilter mirrors at the outer voxel centre
        got = interpolation_matrix(n, corner_positions(n, m), kind, "mirror").numpy() @ x
        ties = np.isclose(corner_positions(n, m).numpy() % 1, 0.5) if kind == "nearest" else np.zeros(m, bool)
        np.testing.assert_allclose(got[~ties], expected[~ties], rtol=0, atol=1e-10)

    @pytest.mark.parametrize("boundary", ["nearest", "reflect", "mirror"])
    @pytest.mark.parametrize("kind", ORDERS)
    def test_points_far_outside(self, kind, boundary):
        x, positions = signal(9), np.linspace(-7.3, 15.2, 41)
        expected = map_coordinates(x, positions[None], order=ORDERS[kind], mode=boundary)
        got = interpolation_matrix(9, torch.from_numpy(positions), kind, boundary).numpy() @ x
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6)


class TestKeysCubic:
    @pytest.mark.parametrize(("n", "m"), SIZES)
    def test_against_the_published_formula(self, n, m):
        x, positions = signal(n), centred_positions(n, m)
        got = interpolation_matrix(n, positions, "cubic").numpy() @ x
        np.testing.assert_allclose(got, [keys_cubic(x, float(p)) for p in positions], rtol=0, atol=1e-12)

    def test_antialiased_weights_at_half_size_are_matlabs(self):
        """imresize(..., 0.5): h(x) = f(x / 2) / 2 at distances 1/2, 3/2, 5/2, 7/2."""
        row = interpolation_matrix(16, centred_positions(16, 8), "cubic", "reflect", stretch=2)[4]
        weights = [-0.01171875, -0.03515625, 0.11328125, 0.43359375]
        np.testing.assert_allclose(row, [0] * 5 + weights + weights[::-1] + [0] * 3, rtol=0, atol=1e-15)

    @pytest.mark.parametrize(("n", "m"), [(60, 30), (60, 20), (60, 24), (99, 30)])
    def test_antialiased_equals_torch_in_the_interior(self, n, m):
        """torch's antialiased bicubic has a = -1/2 and renormalises at the ends, where Matlab reflects."""
        x = torch.from_numpy(signal(n))
        expected = torch.nn.functional.interpolate(
            x.repeat(1, 1, 4, 1), size=(4, m), mode="bicubic", antialias=True, align_corners=False
        )[0, 0, 0]
        got = interpolation_matrix(n, centred_positions(n, m), "cubic", "reflect", stretch=n / m) @ x
        torch.testing.assert_close(got[3:-3], expected[3:-3], rtol=0, atol=1e-12)
        assert not torch.allclose(got, interpolation_matrix(n, centred_positions(n, m), "cubic", "reflect") @ x)

    @pytest.mark.parametrize("factor", [2, 3, 2.5, 3.3])
    def test_antialiasing_suppresses_the_highest_frequency(self, factor):
        n = 66
        x = torch.cos(torch.pi * torch.arange(n, dtype=torch.float64))
        positions = centred_positions(n, round(n / factor))[3:-3]
        plain = interpolation_matrix(n, positions + 0.13, "cubic") @ x
        smooth = interpolation_matrix(n, positions + 0.13, "cubic", stretch=factor) @ x
        assert smooth.abs().max() < 0.2 * plain.abs().max()


class TestProperties:
    @pytest.mark.parametrize("boundary", ["nearest", "reflect", "mirror"])
    @pytest.mark.parametrize("kind", ["nearest", "linear", "cubic", "bspline"])
    @pytest.mark.parametrize(("n", "m"), [*SIZES, (1, 1), (1, 4), (3, 1)])
    def test_partition_of_unity(self, n, m, kind, boundary):
        matrix = interpolation_matrix(n, centred_positions(n, m), kind, boundary)
        assert matrix.shape == (m, n)
        assert matrix.dtype == torch.float64
        torch.testing.assert_close(matrix.sum(1), torch.ones(m, dtype=torch.float64), rtol=0, atol=1e-12)

    @pytest.mark.parametrize("boundary", ["nearest", "reflect", "mirror"])
    @pytest.mark.parametrize("kind", ["nearest", "linear", "cubic", "bspline"])
    @pytest.mark.parametrize("n", [1, 2, 9, 70])
    def test_passes_through_the_voxels(self, n, kind, boundary):
        matrix = interpolation_matrix(n, torch.arange(n), kind, boundary)
        torch.testing.assert_close(matrix, torch.eye(n, dtype=torch.float64), rtol=0, atol=1e-12)

    @pytest.mark.parametrize(("kind", "degree"), [("linear", 1), ("cubic", 2), ("bspline", 3)])
    def test_reproduces_polynomials_in_the_interior_and_no_higher(self, kind, degree):
        grid = torch.arange(60, dtype=torch.float64)
        points = torch.linspace(25, 35, 37, dtype=torch.float64)
        matrix = interpolation_matrix(60, points, kind)
        for power in range(degree + 2):
            error = (matrix @ ((grid - 30) / 10) ** power - ((points - 30) / 10) ** power).abs().max()
            assert (error < 1e-6) == (power <= degree), (power, error)

    @pytest.mark.parametrize("kind", ["nearest", "linear", "cubic", "bspline"])
    def test_mirrored_signal_gives_mirrored_result(self, kind):
        matrix = interpolation_matrix(11, centred_positions(11, 27), kind)
        torch.testing.assert_close(matrix.flip(0).flip(1), matrix, rtol=0, atol=1e-12)

    @pytest.mark.parametrize(
        ("boundary", "mode"), [("nearest", "edge"), ("reflect", "symmetric"), ("mirror", "reflect")]
    )
    @pytest.mark.parametrize("n", [1, 2, 5])
    def test_fold_is_numpys_pad(self, n, boundary, mode):
        got = fold(torch.arange(-7, n + 7), n, boundary)
        np.testing.assert_array_equal(got, np.pad(np.arange(n), 7, mode=mode))

    @pytest.mark.parametrize(
        ("kwargs", "match"),
        [
            ({"kind": "sinc"}, "kind must be one of .*got 'sinc'"),
            ({"boundary": "wrap"}, "boundary must be one of .*got 'wrap'"),
            ({"kind": "linear", "stretch": 0.5}, "stretch must be 1, or above 1 for linear and cubic, got 0.5"),
            ({"kind": "bspline", "stretch": 2}, "got 2 for bspline"),
        ],
    )
    def test_errors(self, kwargs, match):
        with pytest.raises(ValueError, match=match):
            interpolation_matrix(5, torch.arange(3), **kwargs)
