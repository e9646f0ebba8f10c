"""`Muon` against the singular value decomposition, torch's Adam and, on matrices, torch's Muon."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from custom_components.optimizers import Muon, orthogonalized


def network():
    return nn.Sequential(nn.Conv3d(1, 6, 3), nn.ReLU(), nn.Conv3d(6, 2, 3), nn.Flatten(), nn.Linear(16, 3))


def stepped(model, optimizer, x, count=3):
    for _ in range(count):
        optimizer.zero_grad()
        (model(x) - 1).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("shape", [(6, 27), (27, 6), (8, 8), (1, 5)])
def test_orthogonalized_keeps_the_singular_vectors_and_sets_the_values_to_about_1(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    values = u.T @ orthogonalized(matrix).double() @ vh.T
    assert values.diagonal().min() > 0.65 and values.diagonal().max() < 1.25
    assert (values - values.diagonal().diag()).abs().max() < 1e-4
    torch.testing.assert_close(orthogonalized(1e-4 * matrix), orthogonalized(matrix), rtol=0, atol=1e-4)


def test_a_kernel_without_gradient_information_stays():
    assert orthogonalized(torch.zeros(3, 5)).eq(0).all()


def test_all_but_hidden_kernels_are_stepped_as_by_adam():
    torch.manual_seed(0)
    ours = network()
    theirs = copy.deepcopy(ours)
    adam = torch.optim.Adam(theirs.parameters(), lr=0.008, betas=(0.9, 0.99))
    muon = Muon(ours.named_parameters(), "2.", lr=0.016, adam_share=0.5)
    for _ in range(5):  # from the same gradients
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        muon.step()
        adam.step()
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6) == (name != "2.weight"), name


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch before 2.9 has no Muon")
@pytest.mark.parametrize("shape", [(4, 3, 2, 2, 2), (64, 3, 2, 2, 2)])
def test_a_kernel_is_stepped_as_torch_steps_its_matrix(shape):
    torch.manual_seed(0)
    kernel = nn.Parameter(torch.randn(shape))
    matrix = nn.Parameter(kernel.detach().flatten(1).clone())
    start = matrix.detach().clone()
    ours, theirs = Muon([("layers", kernel)], lr=0.1), torch.optim.Muon([matrix], lr=0.1, weight_decay=0.0)
    for _ in range(3):
        gradient = torch.randn(shape)
        kernel.grad, matrix.grad = gradient, gradient.flatten(1)
        ours.step()
        theirs.step()
    moved = (kernel.flatten(1) - start).norm()
    assert (kernel.flatten(1) - matrix).norm() < 0.03 * moved  # torch iterates in bfloat16


def test_it_goes_on_from_its_state_as_if_it_had_not_stopped():
    torch.manual_seed(0)
    x = torch.randn(2, 1, 6, 6, 6)
    whole = network()
    optimizer = Muon(whole.named_parameters(), "2.")
    stepped(whole, optimizer, x, 2)
    resumed = copy.deepcopy(whole)
    other = Muon(resumed.named_parameters(), "2.")
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    stepped(whole, optimizer, x)
    stepped(resumed, other, x)
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_scheduler_moves_kernels_and_others_alike():
    torch.manual_seed(0)
    model = network()
    optimizer = Muon(model.named_parameters(), "2.")
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0)
    before = copy.deepcopy(model)
    stepped(model, optimizer, torch.randn(1, 1, 6, 6, 6))
    for a, b in zip(model.parameters(), before.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    "given", [{"lr": -1.0}, {"adam_share": -1.0}, {"momentum": 1.0}, {"betas": (0.9, 1.0)}, {"eps": -1.0}]
)
def test_arguments_out_of_range_are_named(given):
    with pytest.raises(ValueError, match=r"must be"):
        Muon(network().named_parameters(), "2.", **given)


def test_a_name_that_no_kernel_has_is_told():
    with pytest.raises(ValueError, match=r"expected kernels with 'layers' in their names, got \['0.weight', "):
        Muon(network().named_parameters())


def test_a_closure_is_evaluated():
    model = network()
    x = torch.randn(1, 1, 6, 6, 6)

    def closure():
        loss = (model(x) - 1).square().mean()
        loss.backward()
        return loss

    before = closure()
    model.zero_grad()
    assert Muon(model.named_parameters(), "2.").step(closure) == before
    assert closure() < before
