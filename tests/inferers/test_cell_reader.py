"""Blocks of values read off one by one against `AnyScaleSR.decode` of the whole."""

from __future__ import annotations

import itertools

import pytest
import torch

from custom_components.inferers.cell_reader import CellReader
from custom_components.inferers.tiling import LiveBytes
from custom_components.networks import AnyScaleSR

LR = (7, 5, 6)
EDGES = ((0, 3, 4, 7), (0, 5), (0, 1, 6))


def reader_of(shape, degree=3):
    network = AnyScaleSR(2, 1, degree)
    reader = CellReader(LR, shape, network.divisions(LR, shape), degree)
    return network, reader, torch.randn(reader.count, *LR)


@pytest.mark.parametrize("shape", [(14, 10, 12), (7, 5, 6), (9, 7, 8), (7, 20, 31), (28, 13, 24)])
@pytest.mark.parametrize("degree", [0, 3])
def test_blocks_in_any_order_sum_to_the_whole(shape, degree):
    network, reader, values = reader_of(shape, degree)
    before = torch.randn(shape)
    expected = before + network.decode(values[None], shape)[0, 0]
    blocks = list(itertools.product(*(itertools.pairwise(edges) for edges in EDGES)))
    for axis, memory in ((0, 2**20), (1, 1), (2, 100_000)):
        result = before.clone()
        for block in reversed(blocks):
            part = values[(slice(None), *(slice(*extent) for extent in block))]
            reader.add_(result, part, block, axis, memory)
        torch.testing.assert_close(result, expected, rtol=0, atol=2e-6)


def test_values_in_low_precision_are_added_in_float32():
    network, reader, values = reader_of((9, 7, 8))
    result = torch.zeros(9, 7, 8)
    reader.add_(result, values.bfloat16(), [(0, n) for n in LR])
    torch.testing.assert_close(result, network.decode(values.bfloat16()[None], (9, 7, 8))[0, 0], rtol=0, atol=2e-6)


@pytest.mark.parametrize("shape", [(18, 96, 96), (23, 70, 71)])
def test_little_is_held(shape):
    """Of 64 values per voxel of a block, those of the slices that the memory allows for."""
    lr = (9, 48, 48)
    reader = CellReader(lr, shape, AnyScaleSR(2, 1).divisions(lr, shape), 3)
    values = torch.randn(reader.count, *lr, dtype=torch.bfloat16)
    result, memory = torch.zeros(shape), 2 * values[:, :1].numel() * 4 * 4
    operators = sum(8 * m.numel() for m in reader.matrices if m is not None)
    with LiveBytes() as live:
        reader.add_(result, values, [(0, n) for n in lr], 0, memory)
    assert live.peak <= values.nbytes + result.nbytes + memory + 6 * operators + 2**16
    assert memory < values.nbytes * 8 / 9 * 4
