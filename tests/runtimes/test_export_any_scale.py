from __future__ import annotations

import os
import re

import numpy as np
import pytest
import torch

from custom_components.errors import ScanError
from custom_components.networks.any_scale import AnyScaleSR, acquisition_condition
from custom_components.runtimes import export_any_scale as command
from custom_components.runtimes.export_any_scale import export_any_scale, network_of

onnx = pytest.importorskip("onnx", reason="needs the extra test")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra test")
pytest.importorskip("onnxscript", reason="needs the extra test")


@pytest.fixture(scope="module")
def network():
    return made_of(layers=4)


def made_of(layers):
    torch.manual_seed(0)
    made = AnyScaleSR(6, layers, degree=2, num_features=8)
    with torch.no_grad():
        for parameter in made.parameters():  # those that begin at zero too
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made.eval()


@pytest.fixture(scope="module")
def file(network, tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / "net.onnx"
    export_any_scale(network, path)
    return path


def session(path):
    return onnxruntime.InferenceSession(os.fspath(path), providers=["CPUExecutionProvider"])


CONDITION = acquisition_condition((2, 1.5, 3), (1, 0.8, 3), (None, 1.0, 0.8), noise_std=0.02)


@pytest.mark.parametrize("shape", [(7, 9, 8), (1, 1, 1), (5, 12, 3)])
def test_outputs_are_the_values_on_the_lr_grid(file, network, shape):
    """Against what the network gives folded for one acquisition, by which the bundle runs it."""
    image = torch.rand(1, 1, *shape, generator=torch.Generator().manual_seed(1))
    lr, hr = shape, tuple(5 * n for n in shape)  # beyond degree + 1: coefficients stay as they are
    with torch.inference_mode():
        wanted = network.folded(CONDITION, lr, hr)(image).numpy()
    given = {"image": image.numpy(), "condition": CONDITION[None].numpy()}
    detail, noise, error = session(file).run(["detail", "noise", "error"], given)
    assert detail.shape == (1, 27, *shape)
    np.testing.assert_allclose(np.concatenate([detail, noise, error], 1), wanted, rtol=0, atol=1e-5)


def test_decoded_they_are_the_network_itself(file, network):
    image, hr = (
        torch.rand(1, 1, 6, 7, 5),
        (13, 16, 35),
    )  # no whole factor up to degree + 1, which would be decoded otherwise
    given = {"image": image.numpy(), "condition": CONDITION[None].numpy()}
    (detail,) = session(file).run(["detail"], given)
    with torch.inference_mode():
        whole = network(image, hr, CONDITION[None])[:, :1]
        spline = AnyScaleSR(6, 4)(image, hr, CONDITION[None])[:, :1]  # a new network adds nothing
        found = network.decode(torch.from_numpy(detail), hr)
    torch.testing.assert_close(spline + found, whole, rtol=0, atol=1e-5)
    assert found.abs().max() > 0.05


def test_the_halo_is_as_far_as_a_voxel_is_seen(file):
    run = session(file)
    (halo,) = run.run(
        ["halo"], {"image": np.zeros((1, 1, 1, 1, 1), np.float32), "condition": np.zeros((1, 14), np.float32)}
    )
    assert halo == 6  # of size 3: the head, four layers, the last one
    images = np.full((2, 1, 1, 40, 3, 3), 0.5, np.float32)
    images[1, :, :, 20] = 9.0
    outputs = [
        np.concatenate(
            run.run(["detail", "noise", "error"], {"image": i, "condition": np.zeros((1, 14), np.float32)}), 1
        )
        for i in images
    ]
    differs = np.abs(outputs[0] - outputs[1]).max(axis=(0, 1, 3, 4)) > 0
    assert np.flatnonzero(differs).tolist() == list(range(20 - int(halo), 21 + int(halo)))


def test_the_file_holds_weights_and_little_else(tmp_path):
    network, file = made_of(layers=2), tmp_path / "net.onnx"  # each layer adds a few hundred bytes of graph
    export_any_scale(network, file)
    weights = sum(p.numel() for p in network.parameters()) * 4
    assert file.stat().st_size < weights + 10_000
    assert not re.search(rb"custom_components|\.py", file.read_bytes())


def test_sizes_are_found_in_the_weights(network):
    found = network_of(network.state_dict())
    assert {k: v.shape for k, v in found.state_dict().items()} == {k: v.shape for k, v in network.state_dict().items()}
    assert found.degree == 2
    for state in ({}, {"head.weight": torch.zeros(3)}, torch.zeros(3)):
        with pytest.raises(ScanError, match="expected the weights of an AnyScaleSR, got"):
            network_of(state)


def test_the_command(network, tmp_path, capsys):
    with pytest.raises(ScanError, match=r"none\.pt: expected the weights of an AnyScaleSR, got no such file"):
        command.main(["--checkpoint", str(tmp_path / "none.pt")])
    torch.save(network.state_dict(), tmp_path / "tiny.pt")
    command.main(["--checkpoint", str(tmp_path / "tiny.pt")])
    file = tmp_path / "tiny.onnx"
    assert capsys.readouterr().out == f"{file}: {file.stat().st_size / 1e6:.2f} MB\n"
    onnx.checker.check_model(onnx.load(file))


def test_a_network_in_training_mode_is_refused(tmp_path):
    with pytest.raises(ValueError, match="evaluation mode, got one in training mode"):
        export_any_scale(AnyScaleSR(2, 1), tmp_path / "net.onnx")
