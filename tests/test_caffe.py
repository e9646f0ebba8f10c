"""Caffe models that a small encoder of its own writes, and the ones that the authors of the papers published."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from custom_components.caffe import LARGEST, caffe_state_dict, read_caffemodel
from custom_components.errors import ScanError
from custom_components.handlers import load_weights
from custom_components.networks import SRCNN, ReCNN

PUBLISHED = Path(__file__).parents[1] / ".." / "shared" / "reference_models"


def varint(n):
    return bytes([n]) if n < 128 else bytes([n & 127 | 128]) + varint(n >> 7)


def number(field, n):
    return varint(8 * field) + varint(n)


def message(field, *parts):
    content = b"".join(p.encode() if isinstance(p, str) else p for p in parts)
    return varint(8 * field + 2) + varint(len(content)) + content


def blob(tensor, packed=True, legacy=False, shape=None, double=False):
    """A BlobProto with a `diff` and a field that no version knows; `legacy` fills the shape up to four axes."""
    shape, values = list(tensor.shape if shape is None else shape), tensor.flatten().tolist()
    code, field, wire = ("<d", 8, 1) if double else ("<f", 5, 5)
    if packed:
        data = message(field, *(struct.pack(code, v) for v in values))
    else:
        data = b"".join(varint(8 * field + wire) + struct.pack(code, v) for v in values)
    if legacy:
        sizes = b"".join(number(i, n) for i, n in enumerate([1] * (4 - len(shape)) + shape, start=1))
    elif packed:
        sizes = message(7, message(1, *map(varint, shape)))
    else:
        sizes = message(7, *(number(1, n) for n in shape))
    diff = message(6, struct.pack("<f", 7.0))
    return data + diff + message(99, "?") + sizes if packed else sizes + diff + data


def layer(name, *blobs, kind="Convolution"):
    return message(100, message(1, name), message(2, kind), message(3, "in"), *(message(7, b) for b in blobs))


def old_layer(name, *blobs, kind=4):
    return message(2, message(4, name), number(5, kind), message(2, "in"), *(message(6, b) for b in blobs))


def small_network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(2, 3, bias=False))


def encoded(network, packed=True, legacy=False, double=False, old=False):
    """The network as a Caffe model, with layers that have no weights between."""
    make = old_layer if old else layer
    conv, linear = (
        make(name, *(blob(p.detach(), packed, legacy, double=double) for p in network[i].parameters()), kind=kind)
        for name, i, kind in (
            ("conv1", 0, 4 if old else "Convolution"),
            ("ip é", 3, 14 if old else "InnerProduct"),
        )
    )
    bare = make("flat", kind=8 if old else "Flatten")
    return message(1, "a net") + number(5, 1) + make("in", kind=9 if old else "HDF5Data") + conv + bare + bare + linear


@pytest.fixture
def write(tmp_path):
    def to_file(content):
        (tmp_path / "m.caffemodel").write_bytes(content)
        return tmp_path / "m.caffemodel"

    return to_file


FORMS = {
    "as Caffe writes": {},
    "unpacked": {"packed": False},
    "four axes": {"legacy": True},
    "old": {"old": True, "legacy": True, "packed": False},
    "double": {"double": True},
    "unpacked double": {"double": True, "packed": False, "old": True},
}


@pytest.mark.parametrize("form", FORMS)
def test_all_forms_of_a_model(write, form):
    network = small_network()
    path = write(encoded(network, **FORMS[form]))
    read = read_caffemodel(path)
    assert list(read) == ["conv1", "ip é"]
    parameters = list(network.parameters())
    for got, parameter in zip([*read["conv1"], *read["ip é"]], parameters, strict=True):
        assert got.dtype == torch.float32
        assert torch.equal(got.flatten(), parameter.flatten())
    legacy = FORMS[form].get("legacy", False)
    assert read["conv1"][1].shape == ((1, 1, 1, 2) if legacy else (2,))
    state = caffe_state_dict(network, path)
    assert {key: value.shape for key, value in state.items()} == {k: v.shape for k, v in network.state_dict().items()}
    assert all(torch.equal(state[key], value) for key, value in network.state_dict().items())


def test_bytes_written_by_hand(write):
    """Layer `c`, one blob of shape (2, 1) with the values 1 and -2, byte by byte."""
    path = write(bytes.fromhex("a20615 0a0163 3a10 2a080000803f000000c0 3a040a020201".replace(" ", "")))
    assert list(read_caffemodel(path)) == ["c"]
    assert torch.equal(read_caffemodel(path)["c"][0], torch.tensor([[1.0], [-2.0]]))


def test_values_are_those_of_a_correlation(write):
    """Neither Caffe nor torch turns the kernel round."""
    kernel = torch.tensor([[[[1.0, 2.0, 4.0]]]])
    network = nn.Conv2d(1, 1, (1, 3), bias=False)
    network.load_state_dict(caffe_state_dict(network, write(layer("c", blob(kernel)))))
    assert network(torch.tensor([[[[1.0, 10.0, 100.0]]]])).item() == 421


def outcome(call, *args):
    """What a call returns, or the message of its ScanError."""
    try:
        return call(*args)
    except ScanError as error:
        return str(error)


def is_one_line(message, path):
    return message.startswith(f"{path}: expected ") and "\n" not in message and len(message) < 400


@pytest.mark.parametrize("form", ["as Caffe writes", "old", "unpacked double"])
def test_every_truncation_is_refused_in_one_line(write, form):
    whole, network = encoded(small_network(), **FORMS[form]), small_network()
    leading = []
    for length in range(len(whole)):
        path = write(whole[:length])
        assert is_one_line(outcome(load_weights, network, path), path)
        read = outcome(read_caffemodel, path)
        assert isinstance(read, dict) or is_one_line(read, path)
        leading += [list(read)] if isinstance(read, dict) else []
    # Cut after the first of the two layers, and after each of those without weights: no reader could tell.
    assert leading == [["conv1"]] * 3


def test_no_damaged_byte_gives_another_error(write):
    whole, refused = encoded(small_network()), 0
    for position, byte in enumerate(whole):
        for flip in (1, 4, 255):
            path = write(whole[:position] + bytes([byte ^ flip]) + whole[position + 1 :])
            read = outcome(read_caffemodel, path)
            assert isinstance(read, dict) or is_one_line(read, path)
            refused += isinstance(read, str)
    assert refused > len(whole)


ONE = torch.ones(1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "got a file without a layer that has weights"),
        (b"no Caffe model at all", "got a file that is no message of protocol buffers"),
        (bytes(1000), "got a file that is no message of protocol buffers"),
        (b"\x1f\x8b\x08" + bytes(50), "got a file that is no message"),
        (message(1, "a net") + layer("relu"), "got a file without a layer that has weights"),
        (b"\xff" * 30, "got a file that ends early or is no message of protocol buffers"),
        (b"\x08" + b"\x80" * 10 + b"\x01" + layer("c", blob(ONE)), "or is no message of protocol buffers"),
        (varint(802) + varint(2**62) + b"abc", f"got a file that ends early: {2**62} bytes expected, 3 left"),
        (number(100, 5), "got a file with a number in place of a message"),
        (message(100, message(1, b"\xff")), "got a file with a name that is no text"),
        (layer("c", blob(ONE, shape=[3])), r"got a blob of shape \(3,\) with 4 bytes of float32 data"),
        (layer("c", blob(ONE, shape=[])), None),
        (layer("c", message(7, message(1, b"\x01"))), r"got a blob of shape \(1,\) with 0 bytes"),
        (layer("c", blob(ONE, shape=[2**40, 2**40])), rf"got a blob of shape \({2**40}, {2**40}\) with 4 bytes"),
        (layer("c", blob(ONE, shape=[2**64 - 1])), r"with 4 bytes"),  # -1
        (layer("c", blob(ONE[:0], shape=[0, 2**62])), r"with 0 bytes"),
        (layer("c", message(5, b"abcde") + message(7, message(1, b"\x01"))), r"shape \(1,\) with 5 bytes"),
        (layer("c", blob(ONE, shape=[1] * 33)), "got a blob of more than 32 axes"),
        (layer("c", blob(ONE, shape=[1] * 10**6)), "got a blob of more than 32 axes"),
        (layer("c", number(1, 2) + message(5, bytes(8))), r"got a blob of shape \(2, 0, 0, 0\) with 8 bytes"),
        (layer("c", blob(ONE)) * 2, "got two layers 'c' that have weights"),
        (layer("n\n" * 999, blob(ONE)) * 2, r"got two layers 'n\\nn"),
    ],
)
def test_what_is_no_model_is_refused_in_one_line(write, content, message):
    path = write(content)
    if message is None:
        assert torch.equal(read_caffemodel(path)["c"][0], torch.tensor(1.0))  # of no axes
        return
    with pytest.raises(ScanError, match=message) as info:
        read_caffemodel(path)
    assert str(info.value).startswith(f"{path}: expected a Caffe model, got ")
    assert "\n" not in str(info.value) and len(str(info.value)) < 400


def test_no_file_a_folder_and_a_file_that_is_too_large(tmp_path):
    with pytest.raises(ScanError, match=r"none: expected a Caffe model, got no such file$"):
        read_caffemodel(tmp_path / "none")
    with pytest.raises(ScanError, match="expected a Caffe model, got no such file"):
        read_caffemodel(tmp_path)
    with (tmp_path / "large").open("wb") as file:
        file.truncate(LARGEST + 1)  # takes no place on the disk
    with pytest.raises(ScanError, match=r"a Caffe model of at most 2147483647 bytes, got 2147483648$"):
        read_caffemodel(tmp_path / "large")


def conv2d(bias=True, out=2, kernel=3):
    return nn.Conv2d(1, out, kernel, bias=bias)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (nn.ReLU(), "expected 0 layers with weights for ReLU, got 1"),
        (nn.Sequential(conv2d(), nn.Conv2d(2, 1, 1)), "expected 2 layers with weights for Sequential, got 1"),
        (
            nn.Sequential(conv2d(out=4)),
            r"expected Convolution \(4, 1, 3, 3\) and \(4,\) for 0, got Convolution \(2, 1, 3, 3\) and \(2,\) in layer 'conv1'",
        ),
        (conv2d(kernel=5), r"expected Convolution \(2, 1, 5, 5\) and \(2,\) for Conv2d, got"),
        (conv2d(bias=False), r"expected Convolution \(2, 1, 3, 3\) for Conv2d, got .* and \(2,\) in layer 'conv1'"),
        (nn.Conv3d(1, 2, 3), r"expected Convolution \(2, 1, 3, 3, 3\)"),
        (nn.Conv1d(1, 2, 3), r"expected Convolution \(2, 1, 3\) .*, got Convolution \(2, 1, 3, 3\)"),
        (nn.Linear(9, 2), r"expected InnerProduct \(2, 9\) and \(2,\) for Linear, got Convolution"),
    ],
)
def test_another_network_is_refused(write, network, message):
    path = write(layer("conv1", blob(torch.rand(2, 1, 3, 3)), blob(torch.rand(2))))
    with pytest.raises(ScanError, match=message) as info:
        caffe_state_dict(network, path)
    assert str(info.value).startswith(f"{path}: expected ") and "\n" not in str(info.value)


@pytest.mark.parametrize("make", [layer, old_layer])
def test_layers_of_another_type_are_not_taken_for_convolutions(write, make):
    path = write(make("up", blob(torch.rand(2, 2, 3, 3)), kind=39 if make is old_layer else "Deconvolution"))
    kind = "type 39" if make is old_layer else "Deconvolution"
    with pytest.raises(ScanError, match=rf"expected Convolution .* for Conv2d, got {kind} .* in layer 'up'"):
        caffe_state_dict(nn.Conv2d(2, 2, 3, bias=False), path)


def smooth_volume(size=24):
    torch.manual_seed(0)
    return functional.avg_pool3d(torch.rand(1, 1, *[size + 4] * 3), 5, stride=1)


def published(name):
    path = PUBLISHED / f"{name}.caffemodel"
    if not path.is_file():
        pytest.skip("the authors' weights are not here")
    return path


@pytest.mark.real_data
def test_published_recnn():
    path = published("SRReCNN3D_10Layers_IsoScalex2")
    layers, z = list(read_caffemodel(path).values()), smooth_volume()
    assert [tuple(b.shape) for b in layers[0]] == [(64, 1, 3, 3, 3), (64,)]
    network = ReCNN(3, num_layers=10, num_filters=64)
    load_weights(network, path)
    f = z
    with torch.inference_mode():
        for weight, bias in layers[:-1]:
            f = functional.conv3d(f, weight, bias, padding=1).relu()
        f = functional.conv3d(f, *layers[-1], padding=1)
        torch.testing.assert_close(network(z), z + f, rtol=0, atol=1e-5)
    assert 0.001 < f.std() < 0.1  # a residual of the order of what was blurred away: neither nothing nor rubbish


@pytest.mark.real_data
def test_published_srcnn():
    path = published("SRCNN3D_iter_470000")
    first, second, third = read_caffemodel(path).values()
    z = smooth_volume()
    network = SRCNN(3, edge_padding=True)
    load_weights(network, path)
    with torch.inference_mode():
        f = functional.conv3d(functional.pad(z, [6] * 6, mode="replicate"), *first).relu()
        expected = functional.conv3d(functional.conv3d(f, *second).relu(), *third)
        got = network(z)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
    assert (got - z).std() < 0.1 * z.mean()  # an image alike to what came in


@pytest.mark.real_data
def test_published_weights_of_another_network_are_refused():
    with pytest.raises(ScanError, match=r"\(64, 1, 3, 3, 3\) and \(64,\) for body\.0, got .*\(64, 2, 3, 3, 3\)"):
        load_weights(ReCNN(3, num_layers=10), published("MultiSRReCNN3D_10Layers_IsoScalex2"))
