"""NIQE against samples of known distributions, plain loops, and images that get worse step by step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage as ndi
import torch
from scipy import optimize, special, stats

from custom_components.handlers import ScanMetric
from custom_components.metrics import NIQE, Blocks, NaturalModel
from custom_components.metrics.natural_statistics import asymmetric_fit, block_features, normalised, symmetric_fit

SCANS = Path(__file__).parents[2] / ".." / "shared" / "data"


def textures(count, size=96, seed=0):
    """Slices `(count, size, size)` in [0, 1]: flat regions with edges, as tissue has, and a little noise."""
    rng = np.random.default_rng(seed)
    fields = ndi.gaussian_filter(rng.standard_normal((count, size, size)), (0, 3, 3), mode="wrap")
    fields = np.round(2 * fields / fields.std(axis=(1, 2), keepdims=True)) / 10 + 0.5
    return torch.from_numpy(np.clip(ndi.gaussian_filter(fields, (0, 0.6, 0.6)), 0.15, 1)) + 0.01 * torch.from_numpy(
        rng.standard_normal(fields.shape)
    )


@pytest.fixture(scope="module")
def model():
    return NaturalModel.fit(textures(12))


# --- the fits ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [0.5, 1.0, 2.0, 5.0])
def test_symmetric_fit_of_samples(shape):
    x = torch.from_numpy(stats.gennorm.rvs(shape, scale=1.7, size=200_000, random_state=1))
    found, scale = symmetric_fit(x.abs().mean(), x.square().mean())
    assert found.item() == pytest.approx(shape, rel=0.03)
    assert scale.item() == pytest.approx(1.7, rel=0.03)


@pytest.mark.parametrize(("shape", "left", "right"), [(0.8, 0.5, 1.5), (2.0, 2.0, 0.7), (1.3, 1.0, 1.0)])
def test_asymmetric_fit_of_samples(shape, left, right):
    """Each side is drawn as often as it is wide, so that the density has no step at 0."""
    n = 400_000
    sides = np.random.default_rng(2).random(n) < left / (left + right)
    x = np.abs(stats.gennorm.rvs(shape, size=n, random_state=3)) * np.where(sides, -left, right)
    square, t = np.square(x), torch.tensor
    found = asymmetric_fit(
        t(np.abs(x).mean()), t((square * sides).mean()), t((square * ~sides).mean()), t(sides.mean())
    )
    assert [v.item() for v in (found[0], found[2], found[3])] == pytest.approx([shape, left, right], rel=0.03)
    assert found[1].item() == pytest.approx(x.mean(), abs=0.02)


def test_shapes_are_exact_and_bounded():
    """Against scipy's own solution of the moment equation, for moments that no sample has disturbed."""
    shapes = torch.tensor([0.25, 0.9, 1.0, 3.3, 9.5], dtype=torch.float64)
    ratio = (2 * torch.lgamma(2 / shapes) - torch.lgamma(1 / shapes) - torch.lgamma(3 / shapes)).exp()
    found, scale = symmetric_fit(ratio.sqrt(), torch.ones_like(ratio))
    torch.testing.assert_close(found, shapes, rtol=1e-5, atol=0)
    expected = [np.sqrt(special.gamma(1 / a) / special.gamma(3 / a)) for a in shapes.tolist()]
    np.testing.assert_allclose(scale.numpy(), expected, rtol=1e-5)
    limits, _ = symmetric_fit(torch.tensor([1e-3, 1.0], dtype=torch.float64), torch.ones(2, dtype=torch.float64))
    assert limits.tolist() == pytest.approx([0.2, 10])


def test_one_sided_values():
    one, zero = torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for left_square, right_square, share in ((zero, 2 * one, zero), (2 * one, zero, one)):
        shape, mean, left, right = asymmetric_fit(one, left_square, right_square, share)
        assert shape.item() == pytest.approx(symmetric_fit(one, 2 * one)[0].item())
        assert (left == 0) == (left_square == 0) and (right == 0) == (right_square == 0)
        assert mean.sign() == right.sign() - left.sign()


# --- the features -----------------------------------------------------------------------------------------------------


def slow_normalised(image):
    offsets = np.arange(-3, 4)
    window = np.exp(-(offsets[:, None] ** 2 + offsets**2) / (2 * (7 / 6) ** 2))
    window /= window.sum()
    padded = np.pad(image, 3, mode="edge")
    out = np.empty((3, *image.shape))
    for i in range(image.shape[0]):
        for j in range(image.shape[1]):
            patch = padded[i : i + 7, j : j + 7]
            mean = (window * patch).sum()
            deviation = np.sqrt((window * (patch - mean) ** 2).sum())
            out[:, i, j] = (image[i, j] - mean) / (deviation + 1 / 255), mean, deviation
    return out


def slow_shape(ratio):
    def excess(a):
        return special.gamma(2 / a) ** 2 / (special.gamma(1 / a) * special.gamma(3 / a)) - ratio

    return optimize.brentq(excess, 0.2, 10)


def slow_features(x, rows, columns):
    """The 18 features of a block given by its rows and columns, with the formulas of the paper as they stand there."""
    values = x[np.ix_(rows, columns)]
    shape = slow_shape(np.mean(np.abs(values)) ** 2 / np.mean(values**2))
    features = [shape, np.sqrt(np.mean(values**2) * special.gamma(1 / shape) / special.gamma(3 / shape))]
    for down, along in ((0, 1), (1, 0), (1, 1), (1, -1)):
        neighbour = x[np.ix_((rows + down) % x.shape[0], (columns + along) % x.shape[1])]
        p = (values * neighbour).ravel()
        left, right = np.sqrt(np.mean(p[p < 0] ** 2)), np.sqrt(np.mean(p[p >= 0] ** 2))
        gamma = left / right
        ratio = np.mean(np.abs(p)) ** 2 / np.mean(p**2) * (gamma**3 + 1) * (gamma + 1) / (gamma**2 + 1) ** 2
        shape = slow_shape(ratio)
        unit = np.sqrt(special.gamma(1 / shape) / special.gamma(3 / shape))
        mean = (right - left) * unit * special.gamma(2 / shape) / special.gamma(1 / shape)
        features += [shape, mean, left * unit, right * unit]
    return features


def test_normalised_against_a_loop():
    image = textures(1, 21)[0, :, :17]
    found = normalised(image[None])
    np.testing.assert_allclose(torch.cat(found).numpy(), slow_normalised(image.numpy()), atol=1e-9)


def test_features_against_a_loop():
    slices = textures(2, 41)[:, :, :35]  # odd: the last row and column are left out
    found = block_features(slices, 16, 8)
    assert found.features.shape == (2, 4, 3, 36)
    image = slices[1, :40, :34].numpy()
    half = torch.nn.functional.interpolate(slices[1:, None, :40, :34], (20, 17), mode="bicubic", antialias=True)[0, 0]
    full = slow_normalised(image)
    small = slow_normalised(half.numpy())[0]
    for r, c in ((0, 0), (3, 2), (1, 1)):
        rows, columns = 8 * r + np.arange(16), 8 * c + np.arange(16)
        expected = slow_features(full[0], rows, columns)
        np.testing.assert_allclose(found.features[1, r, c, :18], expected, rtol=1e-4)
        assert found.sharpness[1, r, c].item() == pytest.approx(full[2][np.ix_(rows, columns)].mean())
        # Near the edge of a slice the two ways to halve it differ in how they go on beyond it.
        if (r, c) == (1, 1):
            expected = slow_features(small, 4 * r + np.arange(8), 4 * c + np.arange(8))
            np.testing.assert_allclose(found.features[1, r, c, 18:], expected, rtol=2e-3)


def test_share_of_the_foreground():
    slices = torch.zeros(1, 32, 32, dtype=torch.float64)
    slices[:, :, 16:] = textures(1, 32)[:, :, 16:]
    share = block_features(slices, 16, 16).share
    assert share[0, :, 1].tolist() == [1, 1]
    assert max(share[0, :, 0].tolist()) < 0.2


def test_background_and_flat_blocks_are_left_out():
    slices = textures(2, 64)
    assert Blocks().features(slices).shape == (18, 36)
    slices[0, :32] = 0.0  # a third of the blocks, and those of the second row are foreground by half alone
    assert len(Blocks().features(slices)) == 12
    slices[0] = 0.5 + 1e-9 * slices[1]  # uniform but for rounding: no distribution to fit
    assert len(Blocks().features(slices)) == 9
    assert len(Blocks().features(torch.zeros(3, 64, 64))) == 0


# --- model and metric -------------------------------------------------------------------------------------------------


def slow_distance(model, features):
    f = features.numpy()
    apart = f.mean(0) - model.mean.numpy()
    return np.sqrt(apart @ np.linalg.inv((model.covariance.numpy() + np.cov(f.T)) / 2) @ apart)


def test_distance_against_numpy(model):
    image = textures(3, seed=5)
    expected = slow_distance(model, model.blocks.features(image))
    assert NIQE(model, axis=0)(image[None, None]).item() == pytest.approx(expected, rel=1e-4)


def test_model_against_numpy():
    slices = textures(12)
    f = Blocks().features(slices).numpy()
    model = NaturalModel.fit(slices, sharpness=0, shrinkage=0.25)
    covariance = np.cov(f.T)
    np.testing.assert_allclose(model.mean, f.mean(0))
    np.testing.assert_allclose(model.covariance, np.where(np.eye(36) > 0, covariance, 0.75 * covariance), rtol=1e-9)
    assert model.count == len(f) == 12 * 25


def test_only_sharp_blocks_make_the_model():
    slices = textures(12)
    slices[:, :, :48] = torch.from_numpy(ndi.gaussian_filter(slices[:, :, :48].numpy(), (0, 3, 3)))
    sharp = NaturalModel.fit(slices)
    found = block_features(slices, 32, 16)
    usable = found.sharpness > 0.75 * found.sharpness.amax((1, 2), keepdim=True)
    assert not usable[:, :, :2].any() and usable[:, :, 3:].sum() > 72
    np.testing.assert_allclose(sharp.mean, found.features[usable].mean(0))


def test_several_stacks_are_one_set_and_chunks_do_not_matter():
    slices = textures(20)
    whole, parts = (NaturalModel.fit(s) for s in (slices, [slices[:3], slices[3:18], slices[18:]]))
    torch.testing.assert_close(whole.mean, parts.mean)
    torch.testing.assert_close(whole.covariance, parts.covariance)


@pytest.mark.parametrize("kind", ["blur", "noise"])
def test_worse_images_have_larger_values(model, kind):
    clean = textures(4, seed=9)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values = []
    for amount in (0, 1, 2, 3):
        blurred = torch.from_numpy(ndi.gaussian_filter(clean.numpy(), (0, 0.6 * amount, 0.6 * amount)))
        image = blurred if kind == "blur" else clean + 0.03 * amount * noise
        values.append(NIQE(model, axis=0)(image[None, None]).item())
    assert values == sorted(values)
    assert values[0] < 0.5 * values[1]


def test_unit_of_the_intensities(model):
    """In grey levels, with the model of that range, the value is the same."""
    image = textures(3, seed=5)
    other = NaturalModel.fit(255 * textures(12), Blocks(data_range=255))
    values = [NIQE(m, axis=0)(i[None, None]).item() for m, i in ((model, image), (other, 255 * image))]
    assert values[0] == pytest.approx(values[1], rel=1e-6)


def test_axes_batches_and_channels(model):
    volume = textures(40, 44, seed=3)  # 40 x 44 x 44
    along = [NIQE(model, axis=axis)(volume[None, None]).item() for axis in (0, 1, 2)]
    assert len({round(v, 3) for v in along}) == 3
    assert NIQE(model)(volume.movedim(0, -1)[None, None]).item() == pytest.approx(along[0])
    pooled = torch.cat([model.blocks.features(volume.movedim(axis, 0)) for axis in range(3)])
    assert NIQE(model, axis=None)(volume[None, None]).item() == pytest.approx(model.distance(pooled))
    images = textures(4, seed=4).unflatten(0, (2, 2))
    values = NIQE(model)(images)  # (B, C, H, W)
    assert values.shape == (2, 2)
    assert values[1, 0].item() == pytest.approx(model.distance(model.blocks.features(images[1, :1])), rel=1e-6)


def test_orientations_whose_slices_hold_no_block_are_left_out(model):
    size = model.blocks.size
    volume = torch.rand(2 * size, 2 * size, size // 2, generator=torch.Generator().manual_seed(0))[None, None]
    assert NIQE(model, axis=None)(volume) == pytest.approx(NIQE(model, axis=-1)(volume))


def test_mean_over_images_without_a_truth(model):
    metric = NIQE(model, axis=0)
    values = [metric(textures(2, size, seed=size)[None, None]).item() for size in (64, 80)]
    assert metric.aggregate().item() == pytest.approx(np.mean(values))


def test_truth_is_not_looked_at(model):
    image = textures(2)[None, None]
    assert torch.equal(NIQE(model, 0)(image, torch.zeros(1)), NIQE(model, 0)(image))


def test_in_an_evaluation_without_truths(model):
    """`ScanMetric` hands a pair; with the image itself as its second, a scan needs no truth."""
    metric = ScanMetric(NIQE(model, axis=0), label_key="pred")
    image = textures(2).float()
    metric.reset()
    metric.update((image[None, None], image[None, None]))
    assert metric.compute() == pytest.approx(model.distance(model.blocks.features(image)), rel=1e-6)


def test_image_without_foreground_has_no_value(model):
    assert NIQE(model)(torch.zeros(1, 1, 64, 64)).isnan().all()


def test_saved_and_loaded(model, tmp_path):
    torch.save(model.state_dict(), tmp_path / "niqe.pt")
    assert (tmp_path / "niqe.pt").stat().st_size < 20_000
    state = torch.load(tmp_path / "niqe.pt", weights_only=True)
    image = textures(1, seed=8)[None]
    assert NIQE(state)(image) == NIQE(model)(image)
    other = NaturalModel(model.mean, model.covariance, 99, Blocks(48, 12, 0.2, 0.5, 255.0))
    again = NaturalModel.from_state_dict(other.state_dict())
    assert (again.blocks, again.count) == (other.blocks, 99)


def test_bad_input(model):
    with pytest.raises(ValueError, match="size must be a multiple of 4 and >= 16, got 18"):
        Blocks(18)
    with pytest.raises(ValueError, match="stride must be even and >= 2, got 7"):
        Blocks(stride=7)
    with pytest.raises(ValueError, match=r"min_share must be in \[0, 1\], got 2"):
        Blocks(min_share=2)
    with pytest.raises(ValueError, match="data_range must be positive, got 0"):
        Blocks(data_range=0)
    with pytest.raises(ValueError, match=r"shrinkage must be in \[0, 1\], got -1"):
        NaturalModel.fit(textures(1), shrinkage=-1)
    with pytest.raises(ValueError, match="expected at least 72 sharp foreground blocks to fit to, got 0"):
        NaturalModel.fit([])
    with pytest.raises(ValueError, match=r"at least 32 x 32 voxels, got \(5, 64, 24\)"):
        NIQE(model, axis=0)(torch.zeros(1, 1, 5, 64, 24))
    with pytest.raises(ValueError, match="axis must be from -3 to 2 or None, got 3"):
        NIQE(model, axis=3)
    with pytest.raises(ValueError, match=r"expected a NIQE model with tensors .* got \{'mean': \(3,\)\}"):
        NIQE({"mean": torch.zeros(3)})


@pytest.mark.real_data
def test_blur_and_noise_of_a_real_scan():
    """Fitted to every tenth axial slice of one head, judged on another."""
    import nibabel as nib

    stacks = []
    for name in ("adult_t1/eun_T1w.nii.gz", "adult_t1/vxm-scan_T1w.nii.gz"):
        if not (SCANS / name).is_file():
            pytest.skip("the scans are not here")
        voxels = nib.as_closest_canonical(nib.load(SCANS / name)).get_fdata()[:, :, ::10]
        stacks.append(torch.from_numpy((voxels / np.percentile(voxels, 99.9)).clip(0, 1)).movedim(2, 0))
    model, scan = NaturalModel.fit(stacks[:1]), stacks[1]
    blurred = [torch.from_numpy(ndi.gaussian_filter(scan.numpy(), (0, s, s))) for s in (0, 1, 2)]
    noise = torch.randn(scan.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for images in (blurred, [scan + s * noise for s in (0, 0.05, 0.1)]):
        values = [NIQE(model, axis=0)(image[None, None]).item() for image in images]
        assert values[0] < values[1] < values[2]
