from __future__ import annotations

import logging

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


def test_handler_loads_when_the_engine_starts(tmp_path, caplog):
    saved, other = network(1), network(2)
    engine = Engine(lambda *_: torch.equal(saved[0].weight, other[0].weight))
    WeightsLoader(other, tmp_path / "w.pt").attach(engine)
    torch.save(saved.state_dict(), tmp_path / "w.pt")
    with caplog.at_level(logging.INFO, "custom_components"):
        assert engine.run([0]).output is True
    assert f"weights from {tmp_path / 'w.pt'}" in caplog.text
