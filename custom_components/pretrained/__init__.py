"""Networks with their weights from files, for configs: losses and networks read none themselves."""

from .checkpoints import load_steps, with_weights
from .vgg import vgg19

__all__ = ["load_steps", "vgg19", "with_weights"]
