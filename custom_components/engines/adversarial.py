"""Train a super-resolution network against a discriminator that compares its results with real images."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

import torch
from monai.engines import SupervisedTrainer
from monai.engines.utils import IterationEvents
from monai.inferers import Inferer
from monai.utils.enums import AdversarialIterationEvents as Events
from monai.utils.enums import AdversarialKeys
from monai.utils.enums import CommonKeys as Keys
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..losses import DiscriminatorLoss, GeneratorLoss
from ..networks.wrapping import unwrapped

TERMS = ("adversarial", "discriminator")  # put beside the values of the loss's own terms


@contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """Within it a graph is built in which the network's parameters have no gradient."""
    parameters = [p for p in network.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


class RelativisticGANTrainer(SupervisedTrainer):
    r"""A `SupervisedTrainer` whose network, the generator G, also has to convince a discriminator.

    .. math:: L_G = L(G(x), z) + \lambda\, L_{adv}(C(z), C(G(x)))

    for images x and their targets z, with L the loss of the supervised trainer (equation 6: perceptual loss + \eta L1, a
    `CompositeLoss`) and C the discriminator. One iteration is a step of the generator, then `d_steps` steps of the discriminator on
    the targets and on the results that the generator had before its step, all of one batch. Both logits go to both losses, as
    relativistic ones need. The generator's step leaves the parameters of the discriminator without gradient, and the other way
    round. At :math:`\lambda = 0` the discriminator has no part in the generator's step, which is that of a `SupervisedTrainer`;
    `adversarial_weight` may be changed while training.

    `monai.engines.AdversarialTrainer` cannot do this: its real images are the network's inputs, and its generator loss sees the
    logits of the fakes alone.

    `state.output` has `image`, `label`, `pred`, `loss` (L_G), `loss_<term>` for each term of a `CompositeLoss`, and MONAI's
    `AdversarialKeys`: `reals` (the targets), `fakes` (the predictions), `real_logits` and `fake_logits` (of the last step of the
    discriminator), `reconstruction_loss` (L), `generator_loss` (the adversarial one before its weight; none at weight 0) and
    `discriminator_loss`. The two adversarial losses are also put into the `values` of a `CompositeLoss` as `adversarial` and
    `discriminator`: `LossCurve` and `LossTerms` with that loss follow them too. The generator's steps fire the events of a
    `SupervisedTrainer`, and both steps `AdversarialIterationEvents`, to which `train_handlers` may attach.

    With several processes, wrap the generator and the discriminator in DistributedDataParallel, the latter with
    `broadcast_buffers=False`: it has two passes before one backward pass, and the running statistics that the second would get from
    the first process would be written over tensors that the first pass still needs. Batch norm in the discriminator takes its
    statistics from the real or the fake images of one process; the running ones, which training does not use, differ.

    Args are those of `SupervisedTrainer` (`network`, `optimizer`, `loss_function` and `inferer` are the generator's), without `amp`
    (use `AutocastInferer` as inferer), `compile` and `accumulation_steps`, and

    Args:
        d_network: the discriminator, from images `(B, 1, *spatial)` as the targets are to logits `(B, ...)`.
        d_optimizer: its optimiser.
        adversarial_weight: :math:`\lambda`; 0.005 in the paper, beside a perceptual loss of weight 1.
        g_loss_function: L_adv of the logits (real, fake), `GeneratorLoss()` by default.
        d_loss_function: the discriminator's loss of the same, `DiscriminatorLoss()` by default.
        d_inferer: runs the discriminator; by default that of the generator, and so its precision.
        d_steps: steps of the discriminator per iteration.

    Raises:
        ValueError: on a weight < 0, d_steps < 1, optimisers that share parameters, a term of the loss called `adversarial` or
            `discriminator`, an argument that is left out above, and a distributed discriminator that broadcasts its buffers.

    Reference:
        X. Wang et al., ESRGAN: enhanced super-resolution generative adversarial networks, 2018, arXiv:1809.00219.
    """

    def __init__(
        self,
        *args: Any,
        d_network: nn.Module,
        d_optimizer: torch.optim.Optimizer,
        adversarial_weight: float = 5e-3,
        g_loss_function: Callable[..., torch.Tensor] | None = None,
        d_loss_function: Callable[..., torch.Tensor] | None = None,
        d_inferer: Inferer | None = None,
        d_steps: int = 1,
        **kwargs: Any,
    ) -> None:
        for name, only in {"amp": False, "compile": False, "accumulation_steps": 1}.items():
            if kwargs.get(name, only) != only:
                hint = " (give an AutocastInferer as inferer)" if name == "amp" else ""
                raise ValueError(f"{name} must be {only} in adversarial training{hint}, got {kwargs[name]}")
        if not 0 <= adversarial_weight < math.inf:
            raise ValueError(f"adversarial_weight must be >= 0, got {adversarial_weight}")
        if d_steps < 1:
            raise ValueError(f"d_steps must be >= 1, got {d_steps}")
        # in time for the handlers, which super().__init__ attaches
        kwargs["event_names"] = [*(kwargs.get("event_names") or []), Events]
        super().__init__(*args, **kwargs)
        self.d_network, self.d_optimizer = d_network, d_optimizer
        self.adversarial_weight, self.d_steps = adversarial_weight, d_steps
        self.g_loss_function = GeneratorLoss() if g_loss_function is None else g_loss_function
        self.d_loss_function = DiscriminatorLoss() if d_loss_function is None else d_loss_function
        self.d_inferer = self.inferer if d_inferer is None else d_inferer
        self._check()

    def _check(self) -> None:
        both, d_both = (
            {id(p) for group in o.param_groups for p in group["params"]} for o in (self.optimizer, self.d_optimizer)
        )
        if both & d_both:
            raise ValueError(f"expected optimisers of different parameters, got {len(both & d_both)} in both")
        taken = set(TERMS) & set(getattr(self.loss_function, "terms", ()))
        if taken:
            raise ValueError(f"expected terms of the loss with other names than {TERMS}, got {sorted(taken)}")
        wrapped = isinstance(self.d_network, DistributedDataParallel)
        # the buffers would be overwritten between the passes of the real and the fake images
        if wrapped and self.d_network.broadcast_buffers and next(self.d_network.buffers(), None) is not None:
            raise ValueError("expected DistributedDataParallel with broadcast_buffers=False as d_network, got True")

    def _iteration(self, engine: Any, batchdata: Any) -> dict[str, torch.Tensor]:
        if batchdata is None:
            raise ValueError("expected a batch, got None")
        batch = engine.prepare_batch(batchdata, engine.state.device, engine.non_blocking, **engine.to_kwargs)
        inputs, targets, args, kwargs = batch if len(batch) == 4 else (*batch, (), {})
        engine.state.output = {Keys.IMAGE: inputs, Keys.LABEL: targets, AdversarialKeys.REALS: targets}
        self.network.train()
        self.d_network.train()
        self._generator_step(engine, *args, **kwargs)
        for _ in range(self.d_steps):
            self._discriminator_step(engine)
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        output: dict[str, torch.Tensor] = engine.state.output
        return output

    def _generator_step(self, engine: Any, *args: Any, **kwargs: Any) -> None:
        output = engine.state.output
        self.optimizer.zero_grad(set_to_none=self.optim_set_to_none)
        output[Keys.PRED] = output[AdversarialKeys.FAKES] = self.inferer(
            output[Keys.IMAGE], self.network, *args, **kwargs
        )
        engine.fire_event(IterationEvents.FORWARD_COMPLETED)
        engine.fire_event(Events.GENERATOR_FORWARD_COMPLETED)
        content = self.loss_function(output[Keys.PRED], output[Keys.LABEL]).mean()
        output[AdversarialKeys.RECONSTRUCTION_LOSS] = output[Keys.LOSS] = content
        if isinstance(values := getattr(self.loss_function, "values", None), MutableMapping):
            output.update({f"{Keys.LOSS}_{name}": value for name, value in values.items()})
        engine.fire_event(Events.RECONSTRUCTION_LOSS_COMPLETED)
        if self.adversarial_weight != 0:
            adversarial = self._adversarial_loss(engine)
            output[Keys.LOSS] = content + self.adversarial_weight * adversarial
        engine.fire_event(IterationEvents.LOSS_COMPLETED)
        output[Keys.LOSS].backward()
        engine.fire_event(IterationEvents.BACKWARD_COMPLETED)
        engine.fire_event(Events.GENERATOR_BACKWARD_COMPLETED)
        self.optimizer.step()
        engine.fire_event(Events.GENERATOR_MODEL_COMPLETED)

    def _adversarial_loss(self, engine: Any) -> torch.Tensor:
        output = engine.state.output
        network = unwrapped(self.d_network)  # DistributedDataParallel would wait for gradients of its parameters
        with frozen(network):
            with torch.no_grad():
                real = self.d_inferer(output[AdversarialKeys.REALS], network)
            fake = self.d_inferer(output[AdversarialKeys.FAKES], network)
        output[AdversarialKeys.REAL_LOGITS], output[AdversarialKeys.FAKE_LOGITS] = real, fake
        engine.fire_event(Events.GENERATOR_DISCRIMINATOR_FORWARD_COMPLETED)
        loss = self.g_loss_function(real, fake).mean()
        output[AdversarialKeys.GENERATOR_LOSS] = loss
        self._note("adversarial", loss)
        engine.fire_event(Events.GENERATOR_LOSS_COMPLETED)
        return loss

    def _discriminator_step(self, engine: Any) -> None:
        output = engine.state.output
        self.d_optimizer.zero_grad(set_to_none=self.optim_set_to_none)
        real = output[AdversarialKeys.REAL_LOGITS] = self.d_inferer(output[AdversarialKeys.REALS], self.d_network)
        engine.fire_event(Events.DISCRIMINATOR_REALS_FORWARD_COMPLETED)
        fakes = output[AdversarialKeys.FAKES].detach()
        fake = output[AdversarialKeys.FAKE_LOGITS] = self.d_inferer(fakes, self.d_network)
        engine.fire_event(Events.DISCRIMINATOR_FAKES_FORWARD_COMPLETED)
        loss = output[AdversarialKeys.DISCRIMINATOR_LOSS] = self.d_loss_function(real, fake).mean()
        self._note("discriminator", loss)
        engine.fire_event(Events.DISCRIMINATOR_LOSS_COMPLETED)
        loss.backward()
        engine.fire_event(Events.DISCRIMINATOR_BACKWARD_COMPLETED)
        self.d_optimizer.step()
        engine.fire_event(Events.DISCRIMINATOR_MODEL_COMPLETED)

    def _note(self, name: str, value: torch.Tensor) -> None:
        """Put a loss beside the terms that the supervised loss holds."""
        if isinstance(values := getattr(self.loss_function, "values", None), MutableMapping):
            values[name] = value.detach()
