"""Run a network that cannot be streamed on tiles with halos; running it also tells its reach and its memory."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .nodes import Extent, around, cropped
from .receptive_field import Footprint, footprint

_PROBE = 24  # voxels per axis of the tile on which the memory is measured


@dataclass(frozen=True)
class Opaque:
    """What is known of a network from running it."""

    footprint: Footprint
    channels: int  # of its output
    voxel_bytes: float  # at most held while a tile is computed, per voxel of the tile

    @property
    def factor(self) -> tuple[int, ...]:
        """Voxels of the output per voxel of the input, per axis."""
        return self.footprint.factor

    def run(
        self,
        network: Callable[..., Any],
        volume: Tensor,
        output: Tensor,
        window: Sequence[Extent],
        dtype: torch.dtype,
        low_precision: torch.dtype | None = None,
        device: torch.device | None = None,
    ) -> None:
        """Compute `output` inside a window by one call of the network on a tile with a halo.

        Args:
            network: the one that was measured.
            volume: input `(1, C, *spatial)`.
            output: `(1, C', *(factor * spatial))`, written inside the window.
            window: extent per spatial axis, on the input's grid.
            dtype: of the tile, as the network's parameters.
            low_precision: of autocast, where it is wanted.
            device: of the network; the tile is brought to it.
        """
        halo, factor, sizes = self.footprint.halo, self.footprint.factor, volume.shape[2:]
        seen = around(window, halo, sizes)
        tile = cropped(volume, [slice(*e) for e in seen]).to(device=device, dtype=dtype)
        with torch.autocast(tile.device.type, enabled=low_precision is not None, dtype=low_precision):
            result = network(_channels_last(tile))
        inner = [slice((lo - a) * f, (hi - a) * f) for (lo, hi), (a, _), f in zip(window, seen, factor, strict=True)]
        outer = [slice(lo * f, hi * f) for (lo, hi), f in zip(window, factor, strict=True)]
        cropped(output, outer).copy_(cropped(result, inner))


class LiveBytes(TorchDispatchMode):
    """Peak of the bytes in tensors made under it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                storage = leaf.untyped_storage()
                reference = StorageWeakRef(storage)
                self._live[reference.cdata] = (reference, storage.nbytes())
        gone = [key for key, (kept, _) in self._live.items() if kept.expired()]
        for key in gone:
            del self._live[key]
        self.peak = max(self.peak, sum(size for _, size in self._live.values()))
        return result


_MEASURED: weakref.WeakKeyDictionary[nn.Module, tuple[object, Opaque]] = weakref.WeakKeyDictionary()


def measure(
    network: Callable[..., Any], spatial_dims: int, in_channels: int, device: torch.device, dtype: torch.dtype
) -> Opaque:
    """Run a network on small volumes; what is found is kept per network and layer layout.

    Raises:
        ValueError: as `receptive_field`.
    """
    layout: object = None
    if isinstance(network, nn.Module):
        parameters = [(name, tuple(p.shape), p.dtype) for name, p in network.named_parameters()]
        layout = (repr(network), parameters, network.training, device, spatial_dims, in_channels)
        if network in _MEASURED and _MEASURED[network][0] == layout:
            return _MEASURED[network][1]
    seen = footprint(network, spatial_dims, in_channels)
    probe = torch.zeros(1, in_channels, *(_PROBE,) * spatial_dims, dtype=dtype, device=device)
    with LiveBytes() as live:
        result = network(_channels_last(probe))
    found = Opaque(seen, result.shape[1], 1.1 * (live.peak + probe.nbytes) / probe[0, 0].numel())
    if isinstance(network, nn.Module):
        _MEASURED[network] = (layout, found)
    return found


def _channels_last(tensor: Tensor) -> Tensor:
    """A copy with strides that make convolutions run channels-last, also where one channel leaves them ambiguous."""
    last = torch.channels_last if tensor.ndim == 4 else torch.channels_last_3d
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device, memory_format=last).copy_(tensor)
