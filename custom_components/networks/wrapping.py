"""Networks in the wrappers that torch puts around them."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel


def unwrapped(network: Any) -> Any:
    """A network without the wrappers for several GPUs and of `torch.compile`, in any order; anything else as it is.

    The state dict of the bare network has the same names in all runs: a wrapper puts its own before them.
    """
    while True:
        if isinstance(network, (DataParallel, DistributedDataParallel)):
            network = network.module
        elif isinstance(network, nn.Module) and hasattr(network, "_orig_mod"):  # the class of torch.compile is private
            network = network._orig_mod
        else:
            return network
