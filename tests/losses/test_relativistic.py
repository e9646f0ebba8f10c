"""Adversarial losses against sigmoids and logarithms in NumPy, against each other, and over two processes against one."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from custom_components.losses import DiscriminatorLoss, GeneratorLoss, discriminator_loss, generator_loss
from custom_components.losses.relativistic import KINDS

ROOT = Path(__file__).parents[2]
LOSSES = [DiscriminatorLoss(kind) for kind in KINDS] + [GeneratorLoss(kind) for kind in KINDS]
LOSSES += [GeneratorLoss("relativistic_average", symmetric=False)]


def logits(shape=(5, 1), count=2, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return tuple(2 * torch.randn(shape, generator=generator, dtype=dtype) for _ in range(count))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def by_numpy(loss, real, fake):
    """The formulas, with the sigmoid and the logarithm written out."""
    r, f = real.numpy(), fake.numpy()
    if loss.kind == "relativistic_average":
        of_real, of_fake = sigmoid(r - np.mean(f)), sigmoid(f - np.mean(r))
        lifts_real, lifts_fake = -np.log(of_real).mean(), -np.log(of_fake).mean()
        lowers_real, lowers_fake = -np.log(1 - of_real).mean(), -np.log(1 - of_fake).mean()
        if isinstance(loss, GeneratorLoss):
            return lifts_fake + (lowers_real if loss.symmetric else 0)
        return lifts_real + lowers_fake
    discriminator, generator = {
        "relativistic": lambda: (-np.log(sigmoid(r - f)).mean(), -np.log(sigmoid(f - r)).mean()),
        "standard": lambda: (
            -np.log(sigmoid(r)).mean() - np.log(1 - sigmoid(f)).mean(),
            -np.log(sigmoid(f)).mean(),
        ),
        "least_squares": lambda: (((r - 1) ** 2).mean() / 2 + (f**2).mean() / 2, ((f - 1) ** 2).mean() / 2),
        "wasserstein": lambda: (f.mean() - r.mean(), -f.mean()),
    }[loss.kind]()
    return generator if isinstance(loss, GeneratorLoss) else discriminator


@pytest.mark.parametrize("shape", [(5, 1), (4,), (3, 1, 2, 3), (2, 1, 2, 1, 3)])
@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_formula(loss, shape):
    real, fake = logits(shape)
    assert loss(real, fake).item() == pytest.approx(by_numpy(loss, real, fake), rel=1e-12)


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_gradients_of_both_logits(loss):
    real, fake = logits((3, 1, 2))
    assert torch.autograd.gradcheck(loss, (real.requires_grad_(), fake.requires_grad_()), check_undefined_grad=False)


@pytest.mark.parametrize("kind", KINDS)
def test_function_and_module_agree(kind):
    real, fake = logits()
    assert torch.equal(discriminator_loss(real, fake, kind), DiscriminatorLoss(kind)(real, fake))
    assert torch.equal(generator_loss(real, fake, kind), GeneratorLoss(kind)(real, fake))
    assert torch.equal(generator_loss(real, fake, kind, False), GeneratorLoss(kind, symmetric=False)(real, fake))


def test_defaults_are_those_of_esrgan():
    real, fake = logits()
    assert torch.equal(discriminator_loss(real, fake), discriminator_loss(real, fake, "relativistic_average"))
    assert torch.equal(generator_loss(real, fake), GeneratorLoss("relativistic_average", symmetric=True)(real, fake))


@pytest.mark.parametrize("kind", KINDS)
def test_real_and_fake_exchanged_mirror_the_loss(kind):
    """Of relativistic losses the generator's is the mirror; for the others the discriminator's is two of the generator's."""
    real, fake = logits()
    mirrored = discriminator_loss(fake, real, kind)
    if kind.startswith("relativistic"):
        torch.testing.assert_close(generator_loss(real, fake, kind), mirrored)
    origin = 1.0 if kind == "least_squares" else 0.0  # real is to be 1 and fake 0, or real above 0 and fake below
    torch.testing.assert_close(
        discriminator_loss(origin - fake, origin - real, kind), discriminator_loss(real, fake, kind)
    )
    both = discriminator_loss(real, fake, kind) + mirrored
    lifted, lowered = (generator_loss(*pair, kind) for pair in ((real, fake), (fake, real)))
    if kind == "relativistic_average":
        torch.testing.assert_close(both, lifted + lowered)
    else:
        opposite = [generator_loss(origin - a, origin - b, kind) for a, b in ((real, fake), (fake, real))]
        twice = 0.5 if kind == "relativistic" else 1  # a pair is one term, not two
        torch.testing.assert_close(both, twice * (lifted + lowered + sum(opposite)))


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_a_step_down_moves_the_logits_apart_or_together(loss):
    real, fake = (value.requires_grad_() for value in logits((6, 1)))
    up, down = torch.autograd.grad(loss(real, fake), (real, fake), allow_unused=True)
    if isinstance(loss, GeneratorLoss):
        up, down = down, up
    if loss.kind != "least_squares":  # which holds the logits at 0 and 1
        assert (up < 0).all()
        assert down is None or (down > 0).all()


def test_the_symmetric_term_is_that_of_each_real_logit():
    """Equation 7 knows the mean of the real logits alone; the second term knows how they lie about it."""
    real, fake = logits()
    spread = real + torch.tensor([[1.0], [-1.0], [0], [2], [-2]], dtype=real.dtype)
    one_sided = GeneratorLoss(symmetric=False)
    torch.testing.assert_close(one_sided(spread, fake), one_sided(real, fake))
    assert (GeneratorLoss()(spread, fake) - GeneratorLoss()(real, fake)).abs() > 0.1


@pytest.mark.parametrize("size", [1e4, -1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_large_logits_have_a_finite_loss_and_finite_gradients(loss, dtype, size):
    real, fake = (torch.full((3, 1), sign * size, dtype=dtype, requires_grad=True) for sign in (1, -1))
    value = loss(real, fake)
    assert value.dtype == torch.float32
    assert value.isfinite()
    for gradient in torch.autograd.grad(value, (real, fake), allow_unused=True):
        assert gradient is None or gradient.isfinite().all()


def test_a_certain_discriminator_costs_what_it_is_off():
    """softplus(20000) is 20000 and softplus(-20000) is 0, where log(sigmoid) is -inf."""
    real, fake = torch.full((2, 1), -1e4), torch.full((2, 1), 1e4)
    assert DiscriminatorLoss()(real, fake).item() == 4e4
    assert DiscriminatorLoss()(fake, real).item() == 0
    assert GeneratorLoss()(fake, real).item() == 4e4
    real.requires_grad_()
    assert torch.autograd.grad(DiscriminatorLoss("standard")(real, fake), real)[0].tolist() == [[-0.5], [-0.5]]


def test_undecided():
    zero = torch.zeros(3, 1)
    assert DiscriminatorLoss()(zero, zero).item() == pytest.approx(2 * math.log(2))
    assert GeneratorLoss(symmetric=False)(zero, zero).item() == pytest.approx(math.log(2))
    assert DiscriminatorLoss("relativistic")(zero, zero).item() == pytest.approx(math.log(2))


def test_more_fake_than_real_logits():
    real, fake = logits((2, 1))[0], logits((7, 1))[1]
    for loss in LOSSES:
        if loss.kind != "relativistic":
            assert loss(real, fake).item() == pytest.approx(by_numpy(loss, real, fake), rel=1e-12)


@pytest.mark.parametrize("module", [DiscriminatorLoss, GeneratorLoss])
def test_bad_arguments(module):
    with pytest.raises(ValueError, match=r"kind must be one of \('relativistic_average', .*, got 'hinge'"):
        module("hinge")
    function = {DiscriminatorLoss: discriminator_loss, GeneratorLoss: generator_loss}[module]
    with pytest.raises(ValueError, match=r"kind must be one of .*, got 'hinge'"):
        function(*logits(), "hinge")
    with pytest.raises(ValueError, match=r"expected as many .*, got the shapes \(\d, 1\) and \(\d, 1\)"):
        module("relativistic")(torch.zeros(2, 1), torch.zeros(3, 1))
    with pytest.raises(ValueError, match=r"not empty, in floating point, got .*\(0, 1\) of torch.float32"):
        module()(torch.zeros(0, 1), torch.zeros(3, 1))
    with pytest.raises(ValueError, match=r"in floating point, got .* of torch.int64"):
        module()(torch.zeros(2, 1), torch.zeros(2, 1, dtype=torch.int64))


# Several processes

PROCESS = """
import sys, torch
from custom_components.losses.relativistic import KINDS, DiscriminatorLoss, GeneratorLoss
from custom_components.processes import leave_process_group
rank, folder = int(sys.argv[1]), sys.argv[2]
torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
whole = torch.load(f"{folder}/logits.pt")
found = {}
for kind in KINDS:
    for loss in (DiscriminatorLoss(kind), GeneratorLoss(kind), GeneratorLoss(kind, symmetric=False)):
        mine = [part[:3] if rank == 0 else part[3:] for part in whole]
        mine = [part.clone().requires_grad_() for part in mine]
        value = loss(*mine)
        found[repr(loss)] = [value.detach(), *torch.autograd.grad(value, mine, allow_unused=True)]
torch.save(found, f"{folder}/rank{rank}.pt")
leave_process_group()
"""


@pytest.mark.slow
def test_two_processes_have_the_loss_and_the_gradients_of_one(tmp_path):
    """With 3 and 5 items; the mean of the gradients, as DistributedDataParallel takes it, is that of the whole batch."""
    whole = logits((8, 1))
    torch.save(whole, tmp_path / "logits.pt")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-W", "ignore", "-c", PROCESS]
    processes = [subprocess.Popen([*command, str(rank), str(tmp_path)], cwd=ROOT, env=environment) for rank in range(2)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    ranks = [torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2)]
    for kind in KINDS:
        for loss in (DiscriminatorLoss(kind), GeneratorLoss(kind), GeneratorLoss(kind, symmetric=False)):
            real, fake = (value.clone().requires_grad_() for value in whole)
            expected = loss(real, fake)
            gradients = torch.autograd.grad(expected, (real, fake), allow_unused=True)
            (one, *parts), (other, *other_parts) = (rank[repr(loss)] for rank in ranks)
            assert one.item() == other.item() == pytest.approx(expected.item(), rel=1e-12)
            for gradient, mine, theirs in zip(gradients, parts, other_parts, strict=True):
                if gradient is None:
                    assert mine is None and theirs is None
                else:
                    torch.testing.assert_close(torch.cat([mine, theirs]) / 2, gradient)
