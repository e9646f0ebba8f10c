from __future__ import annotations

import logging
import struct

import pytest
import torch
from ignite.engine import Engine
from torch import nn

from custom_components.errors import ScanError
from custom_components.handlers import WeightsLoader, load_weights


def network(seed=0, width=2):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(width, 2), nn.Linear(2, 1))


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"network": s, "epoch": 3}, lambda s: {"model": s}])
@pytest.mark.parametrize("parallel", [False, True])
def test_flat_and_nested_state_dicts(tmp_path, wrap, parallel):
    saved, other = network(1), network(2)
    torch.save(wrap(saved.state_dict()), tmp_path / "w.pt")
    load_weights(nn.DataParallel(other) if parallel else other, tmp_path / "w.pt")
    assert all(torch.equal(a, b) for a, b in zip(saved.parameters(), other.parameters(), strict=True))


def test_tensors_that_are_new_may_be_missing(tmp_path):
    saved, other, before = network(1), network(2), network(2)
    torch.save({k: v for k, v in saved.state_dict().items() if k.startswith("0.")}, tmp_path / "w.pt")
    load_weights(other, tmp_path / "w.pt", new=r"^1\.")
    got = other.state_dict()
    for name, expected in {**before.state_dict(), **torch.load(tmp_path / "w.pt")}.items():
        assert torch.equal(got[name], expected), name
    with pytest.raises(ScanError, match=r"got tensors 1 missing \(say 1\.weight\)$"):
        load_weights(other, tmp_path / "w.pt", new=r"bias")
    torch.save(saved.state_dict(), tmp_path / "w.pt")
    load_weights(other, tmp_path / "w.pt", new=r"^1\.")  # what the file does have is taken
    assert all(torch.equal(a, b) for a, b in zip(saved.parameters(), other.parameters(), strict=True))


class Evil:
    def __reduce__(self):
        return (print, ("this must not run",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            None,
            r"w\.pt: expected the weights of the network, got no such file \(train first, or give --checkpoint FILE\)",
        ),
        (b"no checkpoint at all", r"w\.pt: expected a checkpoint of tensors, got a file that torch\.load refuses"),
        (b"", r"expected a checkpoint of tensors"),
        (Evil(), r"expected a checkpoint of tensors"),
        ([torch.zeros(1)], r"expected a state dict, got list"),
        ({}, r"expected the weights of Sequential, got tensors 4 missing \(say 0\.weight\)$"),
        (network(width=3).state_dict(), r"got tensors 1 of another shape \(say 0\.weight\)$"),
        ({**network().state_dict(), "2.bias": torch.zeros(1)}, r"got tensors 1 foreign \(say 2\.bias\)$"),
        (nn.Conv3d(1, 1, 3).state_dict(), r"4 missing \(say 0\.weight\), 2 foreign \(say weight\)$"),
    ],
)
def test_what_does_not_belong_is_refused_and_changes_nothing(tmp_path, capsys, content, message):
    path = tmp_path / "w.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    net, before = network(5), network(5)
    with pytest.raises(ScanError, match=message) as info:
        load_weights(net, path)
    assert "\n" not in str(info.value)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), before.parameters(), strict=True))
    assert capsys.readouterr().out == ""


def caffe_model(*shapes):
    """A Caffe model of one linear layer; all its values are 0.5."""

    def part(field, content):
        return struct.pack("<BBB", 8 * field % 128 + 2 + 128, field // 16, len(content)) + content

    blobs = [
        part(5, struct.pack("<f", 0.5) * torch.Size(shape).numel()) + part(7, part(1, bytes(shape))) for shape in shapes
    ]
    return part(100, part(1, b"ip") + part(2, b"InnerProduct") + b"".join(part(7, b) for b in blobs))


@pytest.mark.parametrize("name", ["w.caffemodel", "W.CAFFEMODEL"])
@pytest.mark.parametrize("parallel", [False, True])
def test_a_caffe_model_is_known_by_its_name(tmp_path, name, parallel):
    (tmp_path / name).write_bytes(caffe_model((1, 3), (1,)))
    net = nn.Linear(3, 1).double()
    load_weights(nn.DataParallel(net) if parallel else net, str(tmp_path / name))
    assert net.weight.tolist() == [[0.5] * 3] and net.bias.tolist() == [0.5]
    assert net.weight.dtype == torch.float64


@pytest.mark.parametrize(
    ("net", "name", "message"),
    [
        (
            nn.Linear(4, 1),
            "w.caffemodel",
            r"expected InnerProduct \(1, 4\) and \(1,\) for Linear, got .* in layer 'ip'",
        ),
        (nn.Linear(3, 1), "w.pt", "expected a checkpoint of tensors, got a file that torch.load refuses"),
        (nn.Linear(3, 1), "gone.caffemodel", "expected the weights of the network, got no such file"),
        (
            nn.Sequential(nn.Linear(3, 1), nn.BatchNorm1d(1)),  # what the file does not fill
            "w.caffemodel",
            r"expected the weights of Sequential, got tensors 5 missing \(say 1\.weight\)$",
        ),
    ],
)
def test_a_caffe_model_that_does_not_belong_changes_nothing(tmp_path, net, name, message):
    for file in ("w.caffemodel", "w.pt"):
        (tmp_path / file).write_bytes(caffe_model((1, 3), (1,)))
    before = {key: value.clone() for key, value in net.state_dict().items()}
    with pytest.raises(ScanError, match=message) as info:
        load_weights(net, tmp_path / name)
    assert "\n" not in str(info.value)
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())


def test_handler_loads_when_the_engine_starts(tmp_path, caplog):
    saved, other = network(1), network(2)
    engine = Engine(lambda *_: torch.equal(saved[0].weight, other[0].weight))
    WeightsLoader(other, tmp_path / "w.pt").attach(engine)
    torch.save(saved.state_dict(), tmp_path / "w.pt")
    with caplog.at_level(logging.INFO, "custom_components"):
        assert engine.run([0]).output is True
    assert f"weights from {tmp_path / 'w.pt'}" in caplog.text
