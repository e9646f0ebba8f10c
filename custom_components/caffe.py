"""Weights of Caffe models without Caffe: a `.caffemodel` is a NetParameter message of protocol buffers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from .errors import ScanError, one_line
from .files import PathLike

LARGEST = 2**31 - 1  # bytes; protocol buffers allow no larger message
MOST_AXES = 32  # of a Caffe blob

# Field numbers of caffe.proto. Layers in NetParameter -> name, type and blobs in the layer; field 2 holds layers of the old form.
_LAYERS = {100: (1, 2, 7), 2: (4, 5, 6)}
_OLD_TYPES = {4: "Convolution", 14: "InnerProduct"}
_FLOATS, _SHAPE, _DOUBLES, _OLD_SHAPE = 5, 7, 8, (1, 2, 3, 4)
# The wire format.
_VARINT, _BYTES, _FIXED = 0, 2, {1: 8, 5: 4}
_LONGEST_VARINT = 10  # bytes of 64 bits


class _Layer(NamedTuple):
    name: str
    kind: str
    blobs: list[torch.Tensor]


def read_caffemodel(path: PathLike) -> dict[str, list[torch.Tensor]]:
    """Read the weights of a Caffe model.

    Protocol buffers carry neither length nor check sum: a file that was cut just between two layers is a model of fewer layers.

    Args:
        path: a `.caffemodel`, old or new: packed values or not, float or double, BlobShape or num, channels, height, width.

    Returns:
        Name -> blobs of each layer that has any, in the order of the file, float32 on the CPU. Of a convolution the first has the
        shape `(out, in, *kernel)`; the second are its biases.

    Raises:
        ScanError: when the file cannot be read, is no Caffe model, or one without weights.

    Example:
        >>> read_caffemodel("SRCNN3D_iter_470000.caffemodel")["conv1"][0].shape  # doctest: +SKIP
        torch.Size([64, 1, 9, 9, 9])

    Reference:
        Y. Jia et al., Caffe: convolutional architecture for fast feature embedding, 2014, doi:10.1145/2647868.2654889, and its
        caffe.proto. The wire format: https://protobuf.dev/programming-guides/encoding/.
    """
    return {layer.name: layer.blobs for layer in _read(path)}


def caffe_state_dict(network: nn.Module, path: PathLike) -> dict[str, torch.Tensor]:
    """The weights and biases of a Caffe model under the names that they have in a network.

    The network's convolutions and linear layers take those of the file in order. Caffe's convolution is a cross-correlation as
    torch's is, so values stay. Only types and shapes can be compared: padding, activations and residual are the network's own.

    Args:
        network: its convolutions and linear layers stand in it in the order in which they are applied.
        path: see `read_caffemodel`.

    Raises:
        ScanError: as `read_caffemodel`, and when the layers of the file are not those of the network.
    """
    own = [(name, module, kind) for name, module in network.named_modules() if (kind := _kind(module))]
    layers = _read(path)
    if len(layers) != len(own):
        raise ScanError(
            f"{path}: expected {len(own)} layers with weights for {type(network).__name__}, got {len(layers)}"
        )
    state = {}
    for (name, module, kind), layer in zip(own, layers, strict=True):
        parameters = {key: tuple(value.shape) for key, value in module.named_parameters()}
        shapes = [tuple(blob.shape) for blob in layer.blobs]
        fit = len(shapes) == len(parameters) and all(map(_fits, shapes, parameters.values()))
        if layer.kind != kind or not fit:
            expected = f"{kind} {_listed(parameters.values())} for {name or type(network).__name__}"
            got = f"{layer.kind:.80} {_listed(shapes)}"
            raise ScanError(f"{path}: expected {expected}, got {got} in layer {layer.name!r:.80}")
        for (key, shape), blob in zip(parameters.items(), layer.blobs, strict=True):
            state[f"{name}.{key}" if name else key] = blob.reshape(shape)
    return state


def _kind(module: nn.Module) -> str | None:
    if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        return "Convolution"
    return "InnerProduct" if isinstance(module, nn.Linear) else None


def _fits(shape: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    """Whether the shapes agree but for leading axes of 1, with which old files fill up to four."""
    extra = max(len(shape) - len(expected), 0)
    return shape == (1,) * extra + expected


def _listed(shapes: Iterable[tuple[int, ...]]) -> str:
    return " and ".join(map(str, shapes)) or "without weights"


def _read(path: PathLike) -> list[_Layer]:
    path = Path(path)
    try:
        if not path.is_file():
            raise ScanError(f"{path}: expected a Caffe model, got no such file")
        if (size := path.stat().st_size) > LARGEST:
            raise ScanError(f"{path}: expected a Caffe model of at most {LARGEST} bytes, got {size}")
        content = memoryview(path.read_bytes())
    except OSError as error:
        raise ScanError(f"{path}: expected a Caffe model, got: {one_line(error)}") from error
    layers: dict[str, _Layer] = {}
    try:
        for layer in (
            _layer(_message(value), *_LAYERS[field]) for field, value in _fields(content) if field in _LAYERS
        ):
            if layer.blobs and layer.name in layers:
                raise ValueError(f"two layers {layer.name!r:.80} that have weights")
            if layer.blobs:
                layers[layer.name] = layer
    except ValueError as error:
        raise ScanError(f"{path}: expected a Caffe model, got {error}") from error
    if not layers:
        raise ScanError(f"{path}: expected a Caffe model, got a file without a layer that has weights")
    return list(layers.values())


def _layer(message: memoryview, name_field: int, type_field: int, blobs_field: int) -> _Layer:
    name, kind, blobs = "", "a layer of no type", []
    for field, value in _fields(message):
        if field == name_field:
            name = _text(value)
        elif field == type_field:
            kind = _OLD_TYPES.get(value, f"type {value}") if isinstance(value, int) else _text(value)
        elif field == blobs_field:
            blobs.append(_blob(_message(value)))
    return _Layer(name, kind, blobs)


def _blob(message: memoryview) -> torch.Tensor:
    floats, doubles = bytearray(), bytearray()
    shape: list[int] = []
    old: dict[int, int] = {}
    for field, value in _fields(message):
        if field == _FLOATS:
            floats += _message(value)  # a packed run, or one value
        elif field == _DOUBLES:
            doubles += _message(value)
        elif field == _SHAPE:
            shape += islice(_sizes(_message(value)), MOST_AXES + 1)
        elif field in _OLD_SHAPE and isinstance(value, int):
            old[field] = value
    if old:
        shape = [old.get(field, 0) for field in _OLD_SHAPE]
    data, kind = (doubles, np.dtype("<f8")) if doubles else (floats, np.dtype("<f4"))
    if len(shape) > MOST_AXES:
        raise ValueError(f"a blob of more than {MOST_AXES} axes")
    if not data or len(data) != kind.itemsize * math.prod(shape):
        raise ValueError(f"a blob of shape {tuple(shape)} with {len(data)} bytes of {kind.name} data")
    return torch.from_numpy(np.frombuffer(data, kind).astype(np.float32).reshape(shape))


def _sizes(message: memoryview) -> Iterator[int]:
    """The sizes in a BlobShape, packed or not."""
    for field, value in _fields(message):
        if field == 1 and isinstance(value, int):
            yield value
        elif field == 1:
            packed, at = _message(value), 0
            while at < len(packed):
                size, at = _varint(packed, at)
                yield size


def _message(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise ValueError("a file with a number in place of a message")
    return value


def _text(value: int | memoryview) -> str:
    try:
        return bytes(_message(value)).decode()
    except UnicodeDecodeError as error:
        raise ValueError("a file with a name that is no text") from error


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Number and value of each field: an int for a varint, the bytes of anything else."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        field, wire = key >> 3, key & 7
        if field == 0 or wire not in (_VARINT, _BYTES, *_FIXED):
            raise ValueError("a file that is no message of protocol buffers")
        size, at = (_FIXED[wire], at) if wire in _FIXED else _varint(message, at)
        if wire == _VARINT:
            yield field, size
            continue
        if size > len(message) - at:
            raise ValueError(f"a file that ends early: {size} bytes expected, {len(message) - at} left")
        yield field, message[at : at + size]
        at += size


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """A number of 7 bits per byte, the lowest first, and where it ends."""
    value = 0
    for i, byte in enumerate(message[at : at + _LONGEST_VARINT]):
        value |= (byte & 127) << 7 * i
        if byte < 128:
            return value, at + i + 1
    raise ValueError("a file that ends early or is no message of protocol buffers")
