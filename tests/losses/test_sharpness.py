"""The sharpness prior against scipy's Laplacian, the gradients of the paper's appendix in float64, and its bounds."""

from __future__ import annotations

import math
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from custom_components.losses import (
    LearnableSharpness,
    SharpnessFilterLoss,
    SharpnessLoss,
    laplacian_filter,
    response_variance,
    sharpness_filter_term,
    sharpness_loss,
)

SHAPES = [(3, 2, 9), (3, 1, 7, 5), (2, 2, 5, 4, 6)]
SCIPY_MODE = {"valid": "constant", "zeros": "constant", "replicate": "nearest"}
PAPERS = [[0, -1, 0], [-1, 4, -1], [0, -1, 0]]


def image(shape=(3, 1, 7, 5), seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gradient(loss, x):
    x = x.clone().requires_grad_()
    (result,) = torch.autograd.grad(loss(x), x)
    return result


def responses(x, kernel, border):
    """Correlation of one NumPy image with a filter, by scipy."""
    p = ndimage.correlate(x, kernel, mode=SCIPY_MODE[border])
    rim = kernel.shape[0] // 2
    return p[(slice(rim, -rim),) * x.ndim] if border == "valid" else p


def kernel_of(dims):
    """The Laplacian as minus the second differences of scipy, from its response to an impulse."""
    impulse = np.zeros((3,) * dims)
    impulse[(1,) * dims] = 1
    return -sum(ndimage.correlate1d(impulse, [1, -2, 1], axis=axis, mode="constant") for axis in range(dims))


def filters(count=3, size=3, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((count, size, size)))


class TestLaplacian:
    @pytest.mark.parametrize("dims", [1, 2, 3])
    def test_is_minus_second_differences(self, dims):
        np.testing.assert_array_equal(laplacian_filter(dims).numpy(), kernel_of(dims))
        np.testing.assert_allclose(laplacian_filter(dims, True).numpy(), kernel_of(dims) / (2 * dims), rtol=1e-6)

    def test_is_the_papers(self):
        assert laplacian_filter(2).tolist() == PAPERS
        larger = laplacian_filter(2, kernel_size=5)
        assert larger[1:-1, 1:-1].tolist() == PAPERS
        assert larger.abs().sum() == 8


class TestValue:
    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize("border", ["valid", "zeros", "replicate"])
    @pytest.mark.parametrize("normalised", [False, True])
    def test_scipy(self, shape, border, normalised):
        x, dims = image(shape), len(shape) - 2
        kernel = kernel_of(dims) / (2 * dims if normalised else 1)
        expected = [[responses(c, kernel, border).var(ddof=1) for c in item] for item in x.numpy()]
        got = response_variance(x, laplacian_filter(dims, normalised)[None], border)
        np.testing.assert_allclose(got.numpy(), expected, rtol=1e-6)
        loss = SharpnessLoss(border, normalised)(x)
        assert loss.item() == pytest.approx(-np.mean(expected), rel=1e-6)

    def test_equation_21_of_an_impulse(self):
        """An impulse in the middle of N x N: 4 once, -1 four times, 0 elsewhere; the sum is 0, so V = 20 / (N^2 - 1)."""
        x = torch.zeros(1, 1, 7, 7, dtype=torch.float64)
        x[..., 3, 3] = 1
        assert SharpnessLoss("zeros")(x).item() == pytest.approx(-20 / 48, rel=1e-12)
        assert SharpnessLoss("zeros", normalised=True)(x).item() == pytest.approx(-20 / 16 / 48, rel=1e-12)
        assert SharpnessLoss("valid")(x).item() == pytest.approx(-20 / 24, rel=1e-12)

    def test_figure_3_falls_with_blur(self):
        x = image((1, 1, 33, 33)).numpy()
        values = [
            SharpnessLoss()(torch.from_numpy(ndimage.gaussian_filter(x, (0, 0, s, s)))).item()
            for s in (0, 0.5, 1, 1.5, 2)
        ]
        assert values == sorted(values) and values[0] < 2 * values[1] < 0

    def test_default_is_the_papers_filter_on_whole_neighbourhoods(self):
        x = image((1, 1, 7, 5))
        expected = responses(x[0, 0].numpy(), np.array(PAPERS, float), "valid").var(ddof=1)
        assert SharpnessLoss()(x).item() == pytest.approx(-expected, rel=1e-6)

    @pytest.mark.parametrize("border", ["valid", "replicate"])
    def test_a_bright_rim_is_an_edge_only_with_zeros(self, border):
        x = torch.full((1, 1, 8, 8), 0.7, dtype=torch.float64)
        assert SharpnessLoss(border)(x).item() == pytest.approx(0, abs=1e-20)
        assert SharpnessLoss("zeros")(x).item() < -0.1

    @pytest.mark.parametrize("cap", [None, 0.5])
    def test_function_is_module(self, cap):
        x, z = image(), image(seed=1)
        for border in ("valid", "zeros", "replicate"):
            assert torch.equal(sharpness_loss(x, z, border, True, cap), SharpnessLoss(border, True, cap)(x, z))

    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize("cap", [None, 1.0])
    def test_batch_equals_stacked_items(self, shape, cap):
        x, z = image(shape), image(shape, seed=1)
        loss = SharpnessLoss(cap=cap)
        items = [loss(a, b) for a, b in zip(x.split(1), z.split(1), strict=True)]
        torch.testing.assert_close(loss(x, z), torch.stack(items).mean())

    def test_equation_8_in_numpy(self):
        x, w = image((2, 1, 7, 6)), filters(4)
        expected = [np.mean([responses(i[0], k, "zeros").var(ddof=1) for k in w.numpy()]) for i in x.numpy()]
        np.testing.assert_allclose(response_variance(x, w, "zeros")[:, 0].numpy(), expected, rtol=1e-10)
        module = LearnableSharpness(num_filters=4, border="zeros", fixed_norm=False).double()
        with torch.no_grad():
            module.weight.copy_(w)
        assert module(x).item() == pytest.approx(-np.mean(expected), rel=1e-10)


def d_of(p):
    """d of equation 19 as it is printed; its last sum is that of the deviations from the mean."""
    n2 = p.size
    return 2 / (n2 * (n2 - 1)) * (n2 * p - p.sum() - (p - p.sum() / n2).sum())


def shifted(x, k, m):
    """`x[i + k, j + m]`, zeros beyond the border."""
    padded = np.pad(x, 1)
    return padded[1 + k : 1 + k + x.shape[0], 1 + m : 1 + m + x.shape[1]]


class TestGradientsOfTheAppendix:
    """For N x N images with zeros around, as the paper has them."""

    def test_equations_19_and_24(self):
        y = image((1, 1, 8, 8))
        x = y[0, 0].numpy()
        p = x - (shifted(x, -1, 0) + shifted(x, 1, 0) + shifted(x, 0, -1) + shifted(x, 0, 1)) / 4
        d = d_of(p)
        v = d - (shifted(d, -1, 0) + shifted(d, 1, 0) + shifted(d, 0, -1) + shifted(d, 0, 1)) / 4
        got = gradient(SharpnessLoss("zeros", normalised=True), y)
        np.testing.assert_allclose(-got[0, 0].numpy(), v, rtol=1e-10, atol=1e-14)

    def test_equations_12_and_27(self):
        y, w = image((1, 1, 8, 8)), filters()
        x = y[0, 0].numpy()
        offsets = [(k, m) for k in (-1, 0, 1) for m in (-1, 0, 1)]
        v = np.zeros_like(x)
        for weights in w.numpy():
            p = sum(weights[k + 1, m + 1] * shifted(x, k, m) for k, m in offsets)
            d = d_of(p)
            v += sum(weights[k + 1, m + 1] * shifted(d, -k, -m) for k, m in offsets) / len(w)
        got = gradient(lambda t: response_variance(t, w, "zeros").sum(), y)
        np.testing.assert_allclose(got[0, 0].numpy(), v, rtol=1e-10, atol=1e-14)

    def test_equation_30_with_the_d_of_equation_27_in_place_of_v(self):
        """As printed, with DV_mod, it is not the derivative of equation 8; the chain rule asks for d^l / N_L."""
        y, w = image((1, 1, 8, 8)), filters()
        x = y[0, 0].numpy()
        got = gradient(lambda t: response_variance(y, t, "zeros").sum(), w).numpy()
        v = gradient(lambda t: response_variance(t, w, "zeros").sum(), y)[0, 0].numpy()
        offsets = [(k, m) for k in (-1, 0, 1) for m in (-1, 0, 1)]
        for weights, slope in zip(w.numpy(), got, strict=True):
            d = d_of(sum(weights[k + 1, m + 1] * shifted(x, k, m) for k, m in offsets))
            expected = [(d * shifted(x, k, m)).sum() / len(w) for k, m in offsets]
            np.testing.assert_allclose(slope.ravel(), expected, rtol=1e-9, atol=1e-12)
            printed = [(v * shifted(x, k, m)).sum() for k, m in offsets]
            assert not np.allclose(slope.ravel(), printed, rtol=0.1)

    def test_equations_14_and_29(self):
        w, smooth, sharp = filters(), image((4, 1, 6, 6), 1), image((3, 1, 6, 6), 2)
        got = gradient(lambda t: sharpness_filter_term(t, sharp, smooth, "zeros"), w).numpy()
        offsets = [(k, m) for k in (-1, 0, 1) for m in (-1, 0, 1)]
        for weights, slope in zip(w.numpy(), got, strict=True):
            expected = np.zeros(9)
            for sign, patches in ((2, smooth), (-2, sharp)):
                for s in patches[:, 0].numpy():
                    p = sum(weights[k + 1, m + 1] * shifted(s, k, m) for k, m in offsets)
                    expected += [sign * (p * shifted(s, k, m)).sum() for k, m in offsets]
            np.testing.assert_allclose(slope.ravel(), expected, rtol=1e-9, atol=1e-10)


class TestGradient:
    @pytest.mark.parametrize("shape", [(2, 1, 5), (2, 1, 4, 5), (1, 1, 4, 5, 4)])
    @pytest.mark.parametrize("border", ["valid", "zeros", "replicate"])
    def test_gradcheck(self, shape, border):
        x = image(shape).requires_grad_()
        assert torch.autograd.gradcheck(SharpnessLoss(border), (x,))

    @pytest.mark.parametrize("fixed_norm", [False, True])
    def test_gradcheck_of_the_filters(self, fixed_norm):
        torch.manual_seed(0)
        module = LearnableSharpness(num_filters=2, fixed_norm=fixed_norm).double()

        def loss(weight, x):
            return torch.func.functional_call(module, {"weight": weight}, (x,))

        weight = module.weight.detach().clone().requires_grad_()
        assert torch.autograd.gradcheck(loss, (weight, image((2, 1, 4, 5)).requires_grad_()))

    def test_minimising_sharpens(self):
        x = torch.from_numpy(ndimage.gaussian_filter(image((1, 1, 17, 17)).numpy(), (0, 0, 1, 1)))
        step = x - 0.1 * gradient(SharpnessLoss(), x)
        assert responses(step[0, 0].numpy(), kernel_of(2), "valid").var() > 1.01 * (
            responses(x[0, 0].numpy(), kernel_of(2), "valid").var()
        )

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("value", [0.0, 0.7])
    @pytest.mark.parametrize("module", [SharpnessLoss(), SharpnessLoss(cap=1.0), LearnableSharpness()])
    def test_constant_image(self, module, dtype, value):
        x = torch.full((2, 1, 7, 5), value, dtype=dtype)
        got = gradient(lambda t: module(t, x), x)
        assert module(x, x).item() == pytest.approx(0, abs=1e-10)
        assert got.abs().max() < 1e-6

    def test_filters_of_zero(self):
        module = LearnableSharpness()
        nn.init.zeros_(module.weight)
        module(image().float()).backward()
        assert torch.isfinite(module.weight.grad).all()


class TestCap:
    def test_counts_up_to_the_targets_sharpness(self):
        z = image((2, 1, 9, 9))
        v = response_variance(z, laplacian_filter(2)[None])[:, 0].numpy()
        scale = torch.tensor([0.5, 3.0], dtype=torch.float64).view(2, 1, 1, 1)
        for cap, expected in {0.1: (0.1, 0.1), 1.0: (0.25, 1), 2.0: (0.25, 2), 100.0: (0.25, 9)}.items():
            loss = SharpnessLoss(cap=cap)(z * scale, z)
            assert loss.item() == pytest.approx(-np.mean(v * expected), rel=1e-9)

    def test_gradient_is_0_beyond(self):
        z = image((2, 1, 9, 9))
        scale = torch.tensor([0.5, 3.0], dtype=torch.float64).view(2, 1, 1, 1)
        got = gradient(lambda t: SharpnessLoss(cap=1.0)(t, z), z * scale)
        assert got[0].abs().max() > 0.01
        assert torch.equal(got[1], torch.zeros_like(got[1]))

    @pytest.mark.parametrize("error", [nn.L1Loss(), nn.MSELoss()])
    def test_keeps_training_bounded_that_runs_away_without(self, error):
        """Weight 0.1: above the 1/64 of the squared error, and nothing is small enough beside the absolute one."""
        z = image((1, 1, 12, 12))
        sharpness = {}
        for cap in (None, 1.2):
            y = (0.9 * z).requires_grad_()
            optimizer = torch.optim.SGD([y], lr=5.0)
            for _ in range(150):
                optimizer.zero_grad()
                (error(y, z) + 0.1 * SharpnessLoss(cap=cap)(y, z)).backward()
                optimizer.step()
            sharpness[cap] = (SharpnessLoss()(y) / SharpnessLoss()(z)).item()
        assert sharpness[None] > 100
        assert sharpness[1.2] < 3

    def test_the_condition_for_a_minimum_beside_the_squared_error(self):
        """Largest curvature of V: 2 * 64 / (n - 1) at the most, and nearly so for a chequered image."""
        n = 16
        x = image((1, 1, n, n)).requires_grad_()
        hessian = torch.autograd.functional.hessian(SharpnessLoss("zeros"), x).reshape(n * n, n * n)
        largest = -torch.linalg.eigvalsh(hessian).min().item()
        assert 0.9 * 128 / (n * n - 1) < largest < 128 / (n * n - 1)

    def test_needs_the_target(self):
        with pytest.raises(ValueError, match="cap needs the target, got none"):
            SharpnessLoss(cap=1.0)(image())
        with pytest.raises(ValueError, match=r"expected a target of shape \(3, 1, 7, 5\), got \(1, 1, 7, 5\)"):
            SharpnessLoss(cap=1.0)(image(), image()[:1])


class TestLearnableSharpness:
    def test_starts_from_the_laplacian_with_noise_of_the_variance(self):
        torch.manual_seed(0)
        module = LearnableSharpness(num_filters=2000, fixed_norm=False)
        noise = module.weight.detach() - torch.tensor(PAPERS)
        assert noise.var().item() == pytest.approx(1e-4, rel=0.05)
        assert noise.mean().item() == pytest.approx(0, abs=3e-4)
        assert LearnableSharpness().weight.shape == (8, 3, 3)
        assert LearnableSharpness(3, 4, 5).weight.shape == (4, 5, 5, 5)

    @pytest.mark.parametrize("fixed_norm", [False, True])
    def test_without_noise_it_is_the_fixed_one(self, fixed_norm):
        for shape in SHAPES:
            module = LearnableSharpness(len(shape) - 2, noise_variance=0, fixed_norm=fixed_norm)
            assert module(image(shape)).item() == pytest.approx(SharpnessLoss()(image(shape)).item(), rel=1e-6)

    def test_fixed_norm_is_that_of_the_laplacian(self):
        module = LearnableSharpness()
        with torch.no_grad():
            module.weight.mul_(torch.linspace(0.1, 50, 8).view(-1, 1, 1))
        torch.testing.assert_close(module.filters.flatten(1).norm(dim=1), torch.full((8,), math.sqrt(20)))
        cosine = nn.functional.cosine_similarity(module.filters.flatten(1), module.weight.flatten(1))
        torch.testing.assert_close(cosine, torch.ones(8))

    def test_filters_grow_without_the_guard_and_stay_bounded_with_it(self):
        """A filter bank alone, trained on -V and the filter term."""
        y, smooth = image((4, 1, 12, 12)), 0.1 * image((4, 1, 12, 12), seed=1)
        losses = {}
        for fixed_norm in (False, True):
            torch.manual_seed(0)
            module = LearnableSharpness(fixed_norm=fixed_norm).double()
            optimizer, curve = torch.optim.SGD(module.parameters(), lr=10.0), []
            for _ in range(60):
                optimizer.zero_grad()
                loss = module(y) + 0.1 * sharpness_filter_term(module.filters, y, smooth, reduction="mean")
                loss.backward()
                optimizer.step()
                curve.append(loss.item())
            losses[fixed_norm] = curve
            norm = module.filters.detach().flatten(1).norm(dim=1)
            assert (norm > 1000).all() if not fixed_norm else norm.numpy() == pytest.approx(math.sqrt(20))
        assert losses[False][-1] < 1e4 * losses[False][0]
        # a filter of norm c has a response of c |patch| at the most, so its mean square is below 20 * 9 for voxels in [0, 1]
        assert losses[True][0] > losses[True][-1] > -1.1 * 20 * 9
        assert abs(losses[True][-1] - losses[True][-2]) < 0.01 * abs(losses[True][-1])

    def test_cap_leaves_the_filters_alone_where_it_is_reached(self):
        z = image((2, 1, 9, 9)).float()
        module = LearnableSharpness(cap=1.0)
        module(3 * z, z).backward()
        assert torch.equal(module.weight.grad, torch.zeros_like(module.weight))
        module(0.5 * z, z).backward()
        assert module.weight.grad.abs().max() > 0

    def test_state_dict_round_trip(self):
        one, other = LearnableSharpness(), LearnableSharpness()
        x = image().float()
        assert not torch.equal(one(x), other(x))
        other.load_state_dict(one.state_dict())
        assert torch.equal(one(x), other(x))

    def test_under_autocast_and_in_half_precision(self):
        x = image().float()
        module = LearnableSharpness()
        expected = module(x)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(module(x), expected)
        half = module(x.half())
        assert half.dtype == torch.float32
        assert half.item() == pytest.approx(module(x.half().float()).item(), rel=1e-6)


class TestFilterTerm:
    def test_equation_9_in_numpy(self):
        w, sharp, smooth = filters(4), image((3, 1, 7, 6), 1), image((5, 1, 7, 6), 2)
        for border in ("valid", "zeros", "replicate"):
            low, high = (
                [[(responses(s, k, border) ** 2).sum() for k in w.numpy()] for s in patches[:, 0].numpy()]
                for patches in (smooth, sharp)
            )
            expected = {"sum": np.sum(low) - np.sum(high)}
            voxels = responses(sharp[0, 0].numpy(), w[0].numpy(), border).size
            expected["mean"] = (np.mean(low) - np.mean(high)) / voxels
            for reduction, value in expected.items():
                got = sharpness_filter_term(w, sharp, smooth, border, reduction)
                assert got.item() == pytest.approx(value, rel=1e-9)

    def test_mirrors_when_sharp_and_smooth_are_swapped(self):
        w, sharp, smooth = filters(), image(seed=1), image(seed=2)
        there, back = sharpness_filter_term(w, sharp, smooth), sharpness_filter_term(w, smooth, sharp)
        assert there.item() == pytest.approx(-back.item(), rel=1e-12) != 0
        assert sharpness_filter_term(w, sharp, sharp).item() == 0

    def test_loss_takes_the_extremes_of_the_batch(self):
        """Patches of one noise at five contrasts, out of order: the faintest two are smooth, the strongest two sharp."""
        noise = image((1, 1, 9, 9))
        batch = torch.cat([0.3 + c * noise for c in (0.5, 0.1, 1.0, 0.2, 0.8)])
        module = LearnableSharpness().double()
        got = SharpnessFilterLoss(module, count=2)(torch.zeros_like(batch), batch)
        expected = sharpness_filter_term(module.filters, batch[[2, 4]], batch[[1, 3]])
        assert got.item() == pytest.approx(expected.item(), rel=1e-12)
        assert SharpnessFilterLoss(module, count=99)(batch, batch).item() == pytest.approx(expected.item(), rel=1e-12)
        mean = SharpnessFilterLoss(module, count=2, reduction="mean")(batch, batch).item()
        assert mean == pytest.approx(expected.item() / (8 * 2 * 49), rel=1e-12)

    def test_loss_moves_the_filters_and_nothing_else(self):
        module = LearnableSharpness()
        loss = SharpnessFilterLoss(module)
        pred, target = (image((4, 2, 7, 7), seed).float().requires_grad_() for seed in (1, 2))
        loss(pred, target).backward()
        assert pred.grad is None and target.grad is None
        assert module.weight.grad.abs().max() > 0
        assert [p is module.weight for p in loss.parameters()] == [True]

    def test_given_patches_in_place_of_the_batch(self):
        sharp, smooth = image((3, 1, 8, 7), 1), image((5, 1, 8, 7), 2)
        module = LearnableSharpness(num_filters=4).double()
        for reduction in ("sum", "mean"):
            loss = SharpnessFilterLoss(module, SimpleNamespace(sharp=sharp, smooth=smooth), reduction=reduction)
            expected = sharpness_filter_term(module.filters, sharp, smooth, reduction=reduction)
            for batch in (image((1, 1, 5, 5)), image((6, 2, 9, 9))):
                assert loss(batch, batch).item() == pytest.approx(expected.item(), rel=1e-12)
        assert "patches=(3, 1, 8, 7), reduction=mean" in repr(loss)

    def test_given_patches_are_no_part_of_the_state(self):
        module = LearnableSharpness()
        patches = SimpleNamespace(sharp=image((2, 1, 8, 8)), smooth=image((2, 1, 8, 8), 1))
        loss = SharpnessFilterLoss(module, patches)
        assert list(loss.state_dict()) == ["sharpness.weight"]
        assert {name for name, _ in loss.named_buffers()} == {"sharp", "smooth"}
        SharpnessFilterLoss(module).load_state_dict(loss.state_dict())
        loss.load_state_dict(SharpnessFilterLoss(module).state_dict())
        x = image((4, 1, 9, 9)).float().requires_grad_()
        loss(x, x).backward()
        assert x.grad is None and module.weight.grad.abs().max() > 0

    @pytest.mark.parametrize("device", ["meta", "cuda"])
    def test_follows_the_device_of_the_images(self, device, monkeypatch):
        if device == "cuda" and not torch.cuda.is_available():
            pytest.skip("needs a GPU")
        if device == "meta":
            monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # which does not know this device
        module, x = LearnableSharpness(cap=1.0), image((4, 1, 9, 9)).float().to(device)
        patches = SimpleNamespace(sharp=image((2, 1, 8, 8)).float(), smooth=image((2, 1, 8, 8), 1).float())
        given, batches = SharpnessFilterLoss(module, patches), SharpnessFilterLoss(module)
        with OneDevice():
            with pytest.raises(RuntimeError, match=r"expected tensors on one device, got .*cpu.* in aten\.convolution"):
                nn.functional.conv2d(x, module.weight[:, None])
            there = [module(x, x), given(x, x), batches(x, x)]
        assert {value.device.type for value in there} == {device}
        assert given.sharp.device.type == given.smooth.device.type == device
        moved = given.sharp
        given(x, x)
        assert given.sharp is moved, "copied once, not in each step"
        assert module.weight.device.type == "cpu"
        if device == "meta":  # has no values
            return
        sum(there).backward()
        gradient_there, module.weight.grad = module.weight.grad, None
        here = [module(x.cpu(), x.cpu()), given(x.cpu(), x.cpu()), batches(x.cpu(), x.cpu())]
        sum(here).backward()
        torch.testing.assert_close(torch.stack(there).cpu(), torch.stack(here), rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(gradient_there, module.weight.grad, rtol=1e-2, atol=1e-2)


class OneDevice(TorchDispatchMode):
    """Refuses what a GPU refuses and the meta device does not: tensors of two devices in one operation that is no copy."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        devices = {t.device.type for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor) and t.ndim}
        if len(devices) > 1 and func not in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default):
            raise RuntimeError(f"expected tensors on one device, got {sorted(devices)} in {func}")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: SharpnessLoss("same"), r"border must be one of \('valid', 'zeros', 'replicate'\), got 'same'"),
        (lambda: SharpnessLoss(cap=0), "cap must be > 0, got 0"),
        (lambda: SharpnessLoss(cap=math.nan), "cap must be > 0, got nan"),
        (lambda: sharpness_loss(image(), image(), cap=-1), "cap must be > 0, got -1"),
        (lambda: sharpness_loss(image(), border="x"), "border must be one of .*, got 'x'"),
        (lambda: sharpness_loss(torch.rand(4, 4)), "spatial_dims must be 1, 2 or 3, got 0"),
        (lambda: LearnableSharpness(num_filters=0), "num_filters must be >= 1, got 0"),
        (lambda: LearnableSharpness(kernel_size=4), "kernel_size must be odd and >= 3, got 4"),
        (lambda: LearnableSharpness(kernel_size=1), "kernel_size must be odd and >= 3, got 1"),
        (lambda: LearnableSharpness(noise_variance=-1), "noise_variance must be >= 0, got -1"),
        (lambda: LearnableSharpness(spatial_dims=4), "spatial_dims must be 1, 2 or 3, got 4"),
        (lambda: LearnableSharpness(border="same"), "border must be one of .*, got 'same'"),
        (lambda: LearnableSharpness(cap=0), "cap must be > 0, got 0"),
        (
            lambda: LearnableSharpness(2)(image((1, 1, 5, 5, 5)).float()),
            "expected images with 2 spatial axes .*5, 5, 5",
        ),
        (lambda: SharpnessLoss()(image((1, 1, 3, 9))), r"at least 4 voxels along each axis, got \(3, 9\)"),
        (lambda: SharpnessLoss("zeros")(image((1, 1, 1, 9))), r"at least 2 voxels along each axis, got \(1, 9\)"),
        (lambda: SharpnessFilterLoss(LearnableSharpness(), count=0), "count must be >= 1, got 0"),
        (
            lambda: SharpnessFilterLoss(LearnableSharpness(), reduction="none"),
            "reduction must be one of .*, got 'none'",
        ),
        (
            lambda: SharpnessFilterLoss(LearnableSharpness())(image()[:1], image()[:1]),
            "expected at least 2 patches to tell sharp from smooth, got 1",
        ),
        (
            lambda: SharpnessFilterLoss(LearnableSharpness(3), SimpleNamespace(sharp=image(), smooth=image())),
            r"sharp patches \(N, C, \*spatial\) with 3 spatial axes, got \(3, 1, 7, 5\)",
        ),
        (
            lambda: SharpnessFilterLoss(LearnableSharpness(), SimpleNamespace(sharp=image(), smooth=image()[:0])),
            r"expected smooth patches .* got \(0, 1, 7, 5\)",
        ),
        (lambda: response_variance(image(), filters(), "x"), "border must be one of .*, got 'x'"),
    ],
)
def test_bad_arguments(make, match):
    with pytest.raises(ValueError, match=match):
        make()


def test_repr_says_what_it_is():
    assert repr(SharpnessLoss(cap=1.5)) == "SharpnessLoss(border=valid, normalised=False, cap=1.5)"
    module = LearnableSharpness(num_filters=4)
    assert repr(module) == "LearnableSharpness(filters=(4, 3, 3), border=valid, cap=None, fixed_norm=True)"
    assert "count=8, reduction=sum" in repr(SharpnessFilterLoss(module))
