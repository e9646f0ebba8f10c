"""Perceptual losses against features written with torch.nn.functional, on weights made here; the true ones are not needed."""

from __future__ import annotations

import copy
import sys
import types
from urllib.error import URLError

import pytest
import torch
from torch import nn
from torch.nn import functional

from custom_components.losses import CompositeLoss, FeatureLoss, VGGPerceptualLoss
from custom_components.networks import EDSR, VGG19
from custom_components.pretrained import vgg19, with_weights

PLACES = [0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34]  # of VGG19's convolutions in torchvision's list
POOLS = [4, 9, 18, 27]
WIDTHS = [2, 3, 3, 4, 4, 5, 4, 3, 4, 4, 5, 3, 4, 3, 4, 5]


@pytest.fixture(autouse=True)
def _seed():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture
def state():
    """A VGG19 of few channels, with torchvision's names."""
    made, channels = {"classifier.0.weight": torch.zeros(2, 2)}, 3
    for place, width in zip(PLACES, WIDTHS, strict=True):
        made[f"features.{place}.weight"] = torch.randn(width, channels, 3, 3) * (2 / (9 * channels)) ** 0.5
        made[f"features.{place}.bias"] = 0.1 * torch.randn(width)
        channels = width
    return made


@pytest.fixture
def file(state, tmp_path):
    torch.save(state, tmp_path / "vgg.pth")
    return str(tmp_path / "vgg.pth")


def vgg(state, image, last):
    """Features of grey images `(B, 1, X, Y)` at a place of torchvision's list."""
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x = torch.cat([(image - m) / s for m, s in zip(mean, std, strict=True)], 1)
    for place in range(last + 1):
        if place in PLACES:
            x = functional.conv2d(x, state[f"features.{place}.weight"], state[f"features.{place}.bias"], padding=1)
        elif place in POOLS:
            x = functional.max_pool2d(x, 2)
        else:
            x = x.clamp(min=0)
    return x


def images(*shape, dtype=torch.float32):
    return torch.rand(shape, dtype=dtype), torch.rand(shape, dtype=dtype)


class TestVGG:
    @pytest.mark.parametrize(
        ("layer", "place"), [("conv5_4", 34), ("relu5_4", 35), ("conv1_1", 0), ("conv2_2", 7), ("relu3_4", 17)]
    )
    def test_is_the_distance_of_features(self, file, state, layer, place):
        pred, target = images(2, 1, 35, 32)
        error = vgg(state, pred, place) - vgg(state, target, place)
        torch.testing.assert_close(VGGPerceptualLoss(vgg19(file, layer), layer)(pred, target), error.abs().mean())
        torch.testing.assert_close(VGGPerceptualLoss(vgg19(file, layer), layer, "mse")(pred, target), (error**2).mean())

    def test_default_is_before_the_last_activation(self, file, state):
        pred, target = images(1, 1, 32, 32)
        loss = VGGPerceptualLoss(vgg19(file))
        torch.testing.assert_close(loss(pred, target), VGGPerceptualLoss(vgg19(file), "conv5_4", "l1")(pred, target))
        assert loss.features(pred).shape == (1, 5, 2, 2)
        assert loss.features(pred).min() < 0

    def test_three_channels_are_colours(self, file):
        grey, target = images(2, 1, 16, 16)
        loss = VGGPerceptualLoss(vgg19(file))
        colour = [image.repeat(1, 3, 1, 1) for image in (grey, target)]
        torch.testing.assert_close(loss(*colour), loss(grey, target))
        other = colour[0] * torch.tensor([1, 0.5, 0])[:, None, None]
        assert (loss(other, colour[1]) - loss(*colour)).abs() > 1e-4

    @pytest.mark.parametrize("axis", range(-3, 3))
    def test_volumes_are_cut_into_slices(self, file, axis):
        pred, target = images(2, 1, 16, 17, 18)
        loss = VGGPerceptualLoss(vgg19(file), slice_axis=axis)
        slices = [loss(p, t) for p, t in zip(pred.unbind(axis % 3 + 2), target.unbind(axis % 3 + 2), strict=True)]
        torch.testing.assert_close(loss(pred, target), torch.stack(slices).mean())

    def test_full_width(self, tmp_path):
        """What torchvision's file holds: 20 024 384 numbers."""
        widths = [64, 64, 128, 128, *[256] * 4, *[512] * 8]
        channels, made = 3, {}
        for place, width in zip(PLACES, widths, strict=True):
            made[f"features.{place}.weight"] = torch.zeros(1).expand(width, channels, 3, 3)
            made[f"features.{place}.bias"] = torch.zeros(1).expand(width)
            channels = width
        assert sum(value.numel() for value in made.values()) == 20_024_384
        torch.save(made, tmp_path / "full.pth")  # the file is small: one number for each tensor
        loss = VGGPerceptualLoss(vgg19(tmp_path / "full.pth"))
        assert sum(p.numel() for p in loss.network.parameters()) == 20_024_384
        with torch.device("meta"):
            network = VGG19()
        assert {name: value.shape for name, value in network.state_dict().items()} == {
            name: value.shape for name, value in made.items()
        }

    @pytest.mark.parametrize(
        ("shape", "match"),
        [
            ((1, 2, 32, 32), r"of 1 or 3 channels, got the shape \(1, 2, 32, 32\)"),
            ((1, 32, 32), r"got the shape \(1, 32, 32\)"),
            ((1, 1, 32, 15), r"at least 16 pixels per axis of a slice, got \(32, 15\)"),
            ((1, 1, 32, 15, 32), r"at least 16 pixels per axis of a slice, got \(32, 15\)"),
        ],
    )
    def test_bad_images(self, file, shape, match):
        with pytest.raises(ValueError, match=match):
            VGGPerceptualLoss(vgg19(file))(torch.rand(shape), torch.rand(shape))

    def test_least_size_is_that_of_the_layer(self, file):
        loss = VGGPerceptualLoss(vgg19(file), "conv2_1")
        assert loss(*images(1, 1, 2, 2)).isfinite()
        with pytest.raises(ValueError, match=r"at least 2 pixels per axis of a slice, got \(1, 2\)"):
            loss(*images(1, 1, 1, 2))

    @pytest.mark.parametrize(
        ("kwargs", "match"),
        [
            ({"layer": "conv5_5"}, "layer must be conv1_1 to conv5_4 or relu1_1 to relu5_4, got 'conv5_5'"),
            ({"layer": "34"}, "got '34'"),
            ({"distance": "l2"}, r"distance must be one of \('l1', 'mse'\), got 'l2'"),
            ({"slice_axis": 3}, "slice_axis must be from -3 to 2, got 3"),
        ],
    )
    def test_bad_arguments(self, file, kwargs, match):
        with pytest.raises(ValueError, match=match):
            VGGPerceptualLoss(vgg19(file), **kwargs)


class TestWeightsOfVGG:
    @pytest.mark.parametrize(
        ("change", "match"),
        [
            ({"features.34.weight": None}, r"features.34.weight of shape \(\*, 4, 3, 3\) .*, got None and \(5,\)"),
            ({"features.16.bias": None}, r"features.16.weight .*, got \(3, 4, 3, 3\) and None"),
            ({"features.5.weight": torch.zeros(3, 3, 1, 1)}, r"features.5.weight .*, got \(3, 3, 1, 1\)"),
            ({"features.2.bias": torch.zeros(4)}, r"features.2.weight .*, got \(3, 2, 3, 3\) and \(4,\)"),
        ],
    )
    def test_of_another_network(self, state, tmp_path, change, match):
        state = {name: value for name, value in {**state, **change}.items() if value is not None}
        torch.save(state, tmp_path / "other.pth")
        with pytest.raises(ValueError, match=rf"other.pth: expected torchvision's weights of VGG19 .*{match}"):
            vgg19(str(tmp_path / "other.pth"))

    def test_torchvision_s_own_network_serves_too(self, state, file):
        """It has further layers behind the one that is asked for, and others than `features`."""
        network = nn.Module()
        network.features = nn.Sequential(*vgg19(file, "relu5_4").features, nn.MaxPool2d(2))
        network.classifier = nn.Linear(2, 2)
        pred, target = images(1, 1, 32, 32)
        loss = VGGPerceptualLoss(network, "conv4_4")
        assert len(loss.network) == 26
        torch.testing.assert_close(loss(pred, target), (vgg(state, pred, 25) - vgg(state, target, 25)).abs().mean())

    def test_network_without_the_layer(self, file):
        with pytest.raises(ValueError, match="a VGG19 up to conv5_4, 35 layers in `features`, got 2"):
            VGGPerceptualLoss(vgg19(file, "relu1_1"))
        with pytest.raises(ValueError, match="in `features`, got none"):
            VGGPerceptualLoss(small())
        with pytest.raises(ValueError, match="expected 3 widths up to relu2_1, got 2"):
            VGG19("relu2_1", [4, 4])

    def test_only_the_layers_in_use_are_needed(self, state, tmp_path):
        torch.save({name: state[name] for name in ("features.0.weight", "features.0.bias")}, tmp_path / "first.pth")
        assert VGGPerceptualLoss(vgg19(str(tmp_path / "first.pth"), "relu1_1"), "relu1_1")(*images(1, 1, 4, 4)) > 0

    def test_no_such_file(self, tmp_path):
        with pytest.raises(ValueError, match=r"none.pth: expected the weights .*, got no such file"):
            vgg19(str(tmp_path / "none.pth"))

    @pytest.mark.parametrize("content", [b"", b"no checkpoint"])
    def test_no_checkpoint(self, tmp_path, content):
        (tmp_path / "bad.pth").write_bytes(content)
        with pytest.raises(ValueError, match=r"bad.pth: expected a checkpoint of tensors, got a file that torch.load"):
            vgg19(str(tmp_path / "bad.pth"))

    @pytest.mark.parametrize("content", [[torch.zeros(1)], {"features.0.weight": 3}])
    def test_no_state_dict(self, tmp_path, content):
        torch.save(content, tmp_path / "bad.pth")
        with pytest.raises(ValueError, match=r"bad.pth: expected a state dict of tensors, got (list|dict)"):
            vgg19(str(tmp_path / "bad.pth"))

    @staticmethod
    def torchvision(monkeypatch, get_state_dict):
        models = types.ModuleType("torchvision.models")
        version = types.SimpleNamespace(get_state_dict=get_state_dict)
        models.VGG19_Weights = types.SimpleNamespace(IMAGENET1K_V1=version)
        monkeypatch.setitem(sys.modules, "torchvision", types.ModuleType("torchvision"))
        monkeypatch.setitem(sys.modules, "torchvision.models", models)

    def test_from_torchvision(self, monkeypatch, state, file):
        self.torchvision(monkeypatch, lambda progress=True: state)
        pred, target = images(1, 1, 16, 16)
        assert torch.equal(VGGPerceptualLoss(vgg19())(pred, target), VGGPerceptualLoss(vgg19(file))(pred, target))

    @pytest.mark.parametrize(
        ("error", "match"),
        [
            (URLError("no route to host"), "URLError: .*no route to host>"),
            (RuntimeError("operator torchvision::nms does not exist"), "RuntimeError: operator .* does not exist"),
        ],
    )
    def test_offline(self, monkeypatch, error, match):
        def fail(progress=True):
            raise error

        self.torchvision(monkeypatch, fail)
        with pytest.raises(ValueError, match=rf"{match}. Without them: download https://.*vgg19.* give weights=FILE"):
            vgg19()

    def test_without_torchvision(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "torchvision", None)
        monkeypatch.setitem(sys.modules, "torchvision.models", None)
        match = r"expected torchvision and a network connection .*, got ModuleNotFoundError: .* give weights=FILE"
        with pytest.raises(ValueError, match=match):
            vgg19()


def small(in_channels=1):
    """A network whose rectifiers work in place."""
    return nn.Sequential(
        nn.Conv2d(in_channels, 4, 3, padding=1), nn.ReLU(inplace=True), nn.BatchNorm2d(4), nn.Conv2d(4, 1, 3)
    )


class TestFeatures:
    @pytest.mark.parametrize(("layer", "depth"), [("0", 1), ("1", 2), ("2", 3), ("3", 4)])
    def test_is_the_output_of_the_layer(self, layer, depth):
        """Also before a rectifier that would change it in place, and in evaluation mode."""
        network, (pred, target) = small(), images(2, 1, 9, 8)
        network(10 * torch.rand(4, 1, 9, 9))  # so that running statistics are others than those of the batch
        loss = FeatureLoss(network, layer)
        reference = copy.deepcopy(network).eval()[:depth]
        error = reference(pred) - reference(target)
        torch.testing.assert_close(loss(pred, target), error.abs().mean())
        torch.testing.assert_close(FeatureLoss(network, layer, distance="mse")(pred, target), (error**2).mean())

    @pytest.mark.parametrize(("dims", "shape"), [(2, (7, 6)), (3, (5, 6, 4))])
    def test_body_of_an_edsr(self, dims, shape):
        network = EDSR(dims, num_blocks=1, num_filters=4)
        pred, target = images(2, 1, *shape)
        expected = (network.body(network.head(pred)) - network.body(network.head(target))).abs().mean()
        torch.testing.assert_close(FeatureLoss(network, "body")(pred, target), expected.detach())

    def test_what_follows_the_layer_is_not_run(self):
        class Explosive(nn.Module):
            def forward(self, x):
                raise AssertionError

        network = nn.Sequential(nn.Conv2d(1, 2, 3), Explosive())
        assert FeatureLoss(network, "0")(*images(1, 1, 8, 8)) > 0

    def test_zero_on_equality_alone(self):
        pred, target = images(2, 1, 8, 8)
        loss = FeatureLoss(small(), "3")
        assert loss(target, target.clone()) == 0 and loss(pred, target) > 0

    def test_batch_equals_stacked_items(self):
        pred, target = images(3, 1, 8, 9)
        loss = FeatureLoss(small(), "3")
        items = [loss(p[None], t[None]) for p, t in zip(pred, target, strict=True)]
        torch.testing.assert_close(loss(pred, target), torch.stack(items).mean())

    def test_half_precision_images(self):
        pred, target = images(1, 1, 8, 8)
        loss = FeatureLoss(small(), "3")
        value = loss(pred.half(), target.half())
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, loss(pred.half().float(), target.half().float()))

    def test_autocast_computes_the_features_alone(self):
        pred, target = images(1, 1, 8, 8)
        loss = FeatureLoss(small(), "3")
        with torch.autocast("cpu", torch.bfloat16):
            assert loss.features(pred).dtype == torch.bfloat16
            value = loss(pred, target)
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, loss(pred, target), rtol=0.05, atol=0)


class TestGradient:
    @pytest.mark.parametrize("distance", ["l1", "mse"])
    def test_gradcheck(self, distance):
        pred, target = images(1, 1, 4, 5, dtype=torch.float64)
        loss = FeatureLoss(small().double(), "3", distance=distance)
        assert torch.autograd.gradcheck(lambda x: loss(x, target), pred.requires_grad_())

    def test_of_pred_alone(self, file):
        for loss in (VGGPerceptualLoss(vgg19(file)), FeatureLoss(small(), "3")):
            before = [value.clone() for value in loss.network.state_dict().values()]
            pred, target = (image.requires_grad_() for image in images(2, 1, 16, 16))
            loss(pred, target).backward()
            assert pred.grad.abs().sum() > 0 and pred.grad.isfinite().all()
            assert target.grad is None
            assert all(p.grad is None and not p.requires_grad for p in loss.network.parameters())
            after = loss.network.state_dict().values()
            assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))

    def test_is_zero_on_equality(self, file):
        pred = torch.rand(1, 1, 16, 16, requires_grad=True)
        VGGPerceptualLoss(vgg19(file))(pred, pred.detach().clone()).backward()
        assert not pred.grad.any()

    def test_descent_brings_pred_to_the_target_s_features(self):
        _, target = images(1, 1, 8, 8)
        pred = target.mean() * torch.ones_like(target)
        loss = FeatureLoss(EDSR(2, num_blocks=1, num_filters=8), "body", distance="mse")
        start = loss(pred, target)
        optimizer = torch.optim.Adam([pred.requires_grad_()], lr=0.02)
        for _ in range(100):
            optimizer.zero_grad()
            loss(pred, target).backward()
            optimizer.step()
        assert loss(pred, target) < 0.01 * start


class TestNetworkIsKept:
    def test_the_given_network_stays_trainable(self):
        network = small()
        loss = FeatureLoss(network, "3")
        assert network.training and all(p.requires_grad for p in network.parameters())
        pred, target = images(1, 1, 8, 8)
        value = loss(pred, target)
        nn.init.zeros_(network[3].weight)
        assert torch.equal(loss(pred, target), value)

    def test_no_parameters_no_state_and_always_in_evaluation_mode(self):
        loss = CompositeLoss({"features": FeatureLoss(small(), "3")}).train()
        assert list(loss.parameters()) == [] and not loss.state_dict()
        assert not any(module.training for module in loss.terms["features"].network.modules())

    def test_copies(self):
        pred, target = images(1, 1, 8, 8)
        loss = FeatureLoss(small(), "3")
        value = loss(pred, target)
        assert torch.equal(copy.deepcopy(loss)(pred, target), value)
        assert not any(module._forward_hooks for module in loss.network.modules())

    @pytest.mark.parametrize("nested", [None, "network", "model"])
    def test_checkpoint(self, tmp_path, nested):
        trained, fresh = small(), small()
        state = trained.state_dict()
        torch.save(state if nested is None else {nested: state, "epoch": 3}, tmp_path / "model.pt")
        pred, target = images(1, 1, 8, 8)
        expected = FeatureLoss(trained, "3")(pred, target)
        assert not torch.equal(FeatureLoss(fresh, "3")(pred, target), expected)
        assert torch.equal(FeatureLoss(with_weights(fresh, str(tmp_path / "model.pt")), "3")(pred, target), expected)

    def test_checkpoint_of_another_network(self, tmp_path):
        torch.save(small(2).state_dict(), tmp_path / "model.pt")
        with pytest.raises(
            ValueError,
            match=r"model.pt: expected the weights of Sequential, got tensors 1 of another shape \(say 0.weight\)",
        ):
            with_weights(small(), str(tmp_path / "model.pt"))
        with pytest.raises(ValueError, match=r"none.pt: expected the weights .* got no such file"):
            with_weights(small(), str(tmp_path / "none.pt"))


class TestErrors:
    def test_unknown_layer(self):
        with pytest.raises(ValueError, match="layer must be one of 0, 1, 2, 3, got 'body'"):
            FeatureLoss(small(), "body")
        with pytest.raises(ValueError, match=r"layer must be one of .* \.\.\., got ''"):
            FeatureLoss(EDSR(2, num_blocks=8, num_filters=2), "")

    def test_unknown_distance(self):
        with pytest.raises(ValueError, match=r"distance must be one of \('l1', 'mse'\), got 'cosine'"):
            FeatureLoss(small(), "3", distance="cosine")

    def test_unlike_shapes(self):
        with pytest.raises(ValueError, match=r"a target of shape \(1, 1, 8, 8\), got \(1, 1, 8, 9\)"):
            FeatureLoss(small(), "3")(torch.rand(1, 1, 8, 8), torch.rand(1, 1, 8, 9))

    def test_layer_that_is_not_reached(self):
        network = small()
        network.forward = lambda x: x
        with pytest.raises(ValueError, match="a network that comes by its layer '3', got one that does not"):
            FeatureLoss(network, "3")(*images(1, 1, 8, 8))

    def test_layer_that_gives_no_tensor(self):
        with pytest.raises(ValueError, match=r"layer '0' must give a tensor, got .*tuple"):
            FeatureLoss(nn.Sequential(nn.LSTM(4, 3)), "0")(*images(1, 2, 4))
