import pytest
import torch

from custom_components.acquisition import (
    SeparableOperator,
    acquisition_operator,
    gaussian_matrix,
    interpolation_operator,
)

double = torch.float64


def random(*shape, dtype=double, seed=0):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def inner(a, b):
    return float((a * b).sum())


OPERATORS = {
    "random": SeparableOperator([random(3, 7), random(6, 5, seed=1), random(4, 4, seed=2)]),
    "axis kept": SeparableOperator([random(3, 7), None, random(4, 4, seed=2)]),
    "acquire x2": acquisition_operator((8, 10, 6), (4, 5, 3)),
    "acquire x2.5": acquisition_operator((10, 15, 7), (4, 6, 3)),
    "acquire 1x1x3.3": acquisition_operator((6, 7, 66), (6, 7, 20)),
    "interpolate x3": interpolation_operator((4, 5, 6), (12, 15, 18)),
    "interpolate 2x2x3": interpolation_operator((4, 5, 6), (8, 10, 18)),
    "cubic antialiased": acquisition_operator((70, 9, 8), (28, 3, 4), "bicubic"),
    "long axes": interpolation_operator((70, 3, 90), (150, 4, 40)),
}


@pytest.fixture(params=OPERATORS, ids=str)
def operator(request):
    return OPERATORS[request.param]


def sizes(operator, x):
    n_in = [s if m is None else m.shape[1] for m, s in zip(operator.matrices, x, strict=True)]
    n_out = [s if m is None else m.shape[0] for m, s in zip(operator.matrices, x, strict=True)]
    return n_in, n_out


def dense(operator, x):
    """The same by one product with whole matrices per axis."""
    for axis, m in enumerate(operator.matrices):
        if m is not None:
            x = torch.movedim(torch.tensordot(m, x, dims=([1], [axis + 2])), 0, axis + 2)
    return x


def test_banded_blocks_equal_the_dense_product(operator):
    n_in, n_out = sizes(operator, (6, 7, 8))
    x = random(2, 3, *n_in)
    y = operator(x)
    assert list(y.shape) == [2, 3, *n_out]
    torch.testing.assert_close(y, dense(operator, x), rtol=0, atol=1e-12)


def test_adjoint(operator):
    n_in, n_out = sizes(operator, (6, 7, 8))
    x, y = random(1, 2, *n_in), random(1, 2, *n_out, seed=5)
    assert inner(operator(x), y) == pytest.approx(inner(x, operator.adjoint(y)), rel=1e-12, abs=1e-12)
    assert operator.T.T is operator
    torch.testing.assert_close(operator.T(y), operator.adjoint(y), rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["nearest", "linear", "cubic", "bspline"])
@pytest.mark.parametrize("dims", [2, 3])
def test_adjoint_of_acquisition_after_interpolation(dims, kind):
    back = interpolation_operator((5, 6, 4)[:dims], (11, 18, 13)[:dims], kind)
    operator = acquisition_operator((11, 18, 13)[:dims], (5, 6, 4)[:dims]) @ back
    x, y = random(1, 1, *(5, 6, 4)[:dims]), random(1, 1, *(5, 6, 4)[:dims], seed=3)
    assert inner(operator(x), y) == pytest.approx(inner(x, operator.adjoint(y)), rel=1e-12)


def test_dropped_tails_are_negligible():
    """Of a B-spline's endless tail what is below 1e-9 of the peak is left out: the product must not show it."""
    whole = torch.linalg.inv(gaussian_matrix(200, 0.6))
    x = random(1, 1, 200, 1)
    difference = SeparableOperator([whole, None])(x) - torch.einsum("ij,abjk->abik", whole, x)
    assert 0 < difference.abs().max() < 1e-7


def test_identity():
    x = random(2, 1, 3, 4, 5)
    assert torch.equal(SeparableOperator([None, None, None])(x), x)
    assert torch.equal(SeparableOperator([torch.eye(3), None, torch.eye(5)])(x), x)


def test_impulse_response_is_the_outer_product_of_columns():
    operator = acquisition_operator((10, 12, 9), (5, 4, 6))
    x = torch.zeros(1, 1, 10, 12, 9, dtype=double)
    x[0, 0, 4, 7, 5] = 1
    a, b, c = (m[:, i] for m, i in zip(operator.matrices, (4, 7, 5), strict=True))
    torch.testing.assert_close(operator(x)[0, 0], torch.einsum("i,j,k->ijk", a, b, c), rtol=0, atol=1e-15)


def test_composition_applies_the_right_one_first():
    first = interpolation_operator((5, 6, 4), (10, 6, 12))
    second = acquisition_operator((10, 6, 12), (4, 6, 12))
    x = random(1, 1, 5, 6, 4)
    both = second @ first
    torch.testing.assert_close(both(x), second(first(x)), rtol=0, atol=1e-8)
    assert [None if m is None else tuple(m.shape) for m in both.matrices] == [(4, 5), None, (12, 4)]


@pytest.mark.parametrize("name", ["random", "acquire x2.5"])
def test_gradient(name):
    operator = OPERATORS[name]
    n_in, n_out = sizes(operator, (0, 0, 0))
    x = random(1, 1, *n_in).requires_grad_()
    operator(x).mul(weight := random(1, 1, *n_out, seed=7)).sum().backward()
    torch.testing.assert_close(x.grad, operator.adjoint(weight), rtol=0, atol=1e-12)


def test_gradcheck():
    operator = acquisition_operator((5, 4), (2, 2))
    assert torch.autograd.gradcheck(operator, random(1, 2, 5, 4).requires_grad_())
    assert torch.autograd.gradgradcheck(lambda x: operator(x) ** 2, random(1, 1, 5, 4).requires_grad_())


def test_float32_agrees_with_float64(operator):
    n_in, _ = sizes(operator, (6, 7, 8))
    x = random(1, 1, *n_in)
    y = operator(x.float())
    assert y.dtype == torch.float32
    exact = operator(x)
    torch.testing.assert_close(y.double(), exact, rtol=0, atol=2e-6 * float(exact.abs().max()))


def test_batch_and_channels_are_independent(operator):
    n_in, _ = sizes(operator, (6, 7, 8))
    x = random(2, 3, *n_in)
    y = operator(x)
    for b in range(2):
        for c in range(3):
            torch.testing.assert_close(y[b, c], operator(x[b : b + 1, c : c + 1])[0, 0], rtol=0, atol=1e-13)


def test_non_contiguous_input_and_input_untouched(operator):
    n_in, _ = sizes(operator, (6, 7, 8))
    x = random(1, 2, *n_in[::-1]).permute(0, 1, 4, 3, 2)
    assert not x.is_contiguous()
    before = x.clone()
    torch.testing.assert_close(operator(x), operator(x.contiguous()), rtol=0, atol=1e-13)
    strided = random(2, 4, *n_in)[::2, 1::2]
    torch.testing.assert_close(operator(strided), operator(strided.clone()), rtol=0, atol=1e-13)
    assert torch.equal(x, before)


def test_two_dimensions():
    a, b = random(3, 7), random(6, 5, seed=1)
    x = random(2, 1, 7, 5)
    torch.testing.assert_close(SeparableOperator([a, b])(x), a @ x @ b.T, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", [(1, 6, 8), (6, 1, 8), (6, 8, 1), (1, 1, 1)])
def test_axes_of_one_voxel(shape):
    new = tuple(3 if n == 1 else 2 * n for n in shape)
    x = random(1, 1, *shape)
    operator = interpolation_operator(shape, new)
    y = operator(x)
    torch.testing.assert_close(y, dense(operator, x), rtol=0, atol=1e-13)
    for axis, n in enumerate(shape):
        if n == 1:  # nothing to interpolate between: repeated
            assert float(y.diff(dim=axis + 2).abs().max()) < 1e-13


def test_matrix_of_zeros():
    assert not SeparableOperator([torch.zeros(80, 5)])(random(1, 1, 5)).any()


class TestErrors:
    operator = SeparableOperator([torch.ones(2, 4), None])

    @pytest.mark.parametrize("shape", [(1, 1, 5, 3), (1, 4, 3), (4, 3), (1, 1, 4, 3, 1)])
    def test_sizes(self, shape):
        with pytest.raises(ValueError, match=r"expected an input \(B, C, .*got \(" + ", ".join(map(str, shape))):
            self.operator(torch.zeros(shape))

    @pytest.mark.parametrize("dtype", [torch.int16, torch.bool, torch.complex64])
    def test_a_dtype_that_would_lose_the_weights(self, dtype):
        with pytest.raises(TypeError, match=f"floating point, got {dtype}"):
            self.operator(torch.zeros(1, 1, 4, 3, dtype=dtype))

    def test_matrix_dimensions(self):
        with pytest.raises(ValueError, match="2 dimensions, got 1"):
            SeparableOperator([torch.ones(3)])

    def test_composition_of_unlike_operators(self):
        with pytest.raises(ValueError, match="equal dimension, got 2 and 1"):
            self.operator @ SeparableOperator([None])
