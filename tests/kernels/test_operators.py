"""Properties of the operators on every backend, beside their results: layouts, dtypes, errors, unchanged inputs."""

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from tests.kernels.common import (
    CONV2D,
    KINDS,
    LINEAR,
    NAMES,
    PERSISTENCES,
    Kind,
    activations,
    apply,
    leaves,
    operands,
    results,
)
from tests.kernels.common import expected as oracle_of
from ttfs_kernels import Neuron


def on(served, kind: Kind, *names: str, **how) -> dict[str, Tensor]:
    return operands(kind, *names, device=served.device, **how)


@KINDS
@PERSISTENCES
def test_passes_repeat_come_in_any_combination_and_write_to_nothing(served, kind, psp_persistence):
    """The gradient of a sum, one number expanded, gives the same results as ones in memory."""
    tensors, options = on(served, kind, *NAMES), {"neuron": Neuron(psp_persistence, surrogate_width=0.5)}
    y, grad = apply(kind, tensors, served, **options), torch.ones(kind.out, device=served.device)
    kept = [*tensors.values(), y, grad]
    copies = [tensor.detach().clone() for tensor in kept]
    complete = torch.autograd.grad(y, list(tensors.values()), grad, retain_graph=True)
    with torch.autocast(served.device.type, torch.float16):  # the dtypes are those of the forward pass
        again = torch.autograd.grad(y, list(tensors.values()), grad)
    assert all(map(torch.equal, (*kept, *complete), (*copies, *again)))
    for chosen in ((0,), (1,), (2,), (3,), (4,), (0, 2), (1, 2, 3)):
        parts = {name: t.detach().requires_grad_(i in chosen) for i, (name, t) in enumerate(tensors.items())}
        found = torch.autograd.grad(apply(kind, parts, served, **options).sum(), [parts[NAMES[i]] for i in chosen])
        assert all(torch.equal(gradient, complete[i]) for i, gradient in zip(chosen, found, strict=True))
    for mode in (torch.inference_mode, torch.no_grad):
        with mode():
            assert torch.equal(apply(kind, tensors, served, **options), y)
    assert not apply(kind, {name: t.detach() for name, t in tensors.items()}, served, **options).requires_grad


@pytest.mark.parametrize("shape", [(6,), (2, 6), (2, 3, 6), (0, 6), (2, 0, 6)])
def test_linear_keeps_leading_dimensions(served, shape):
    x, late = activations(*shape), activations(*shape[:-1], 5)
    rows = Kind((x.numel() // 6, 6), (5, 6))
    tensors = on(served, rows, *NAMES)
    folded = leaves(tensors | {"x": x.to(served.device), "skip": late.to(served.device)})
    flat = leaves(folded | {name: folded[name].reshape(-1, folded[name].shape[-1]) for name in ("x", "skip")})
    ours, theirs = (results(rows, t, served) for t in (folded, flat))
    assert ours[0].shape == (*shape[:-1], 5)
    assert all(torch.equal(a.reshape(b.shape), b) for a, b in zip(ours, theirs, strict=True))


@KINDS
def test_other_derivatives_are_refused(served, kind):
    """Second ones, forward mode, transforms of torch.func and batches of gradients: never a wrong number."""
    tensors = on(served, kind)
    x, name = tensors["x"], f"dft_{'linear' if kind == LINEAR else 'conv2d'}"

    def layer(x: Tensor) -> Tensor:
        return apply(kind, tensors | {"x": x}, served)

    y = layer(x)
    with pytest.raises(RuntimeError, match=f"{name}: create_graph must be False; got True"):
        torch.autograd.grad(y.sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=f"{name}: is_grads_batched must be False; got True"):
        torch.autograd.grad(y, x, torch.ones(3, *y.shape, device=y.device), is_grads_batched=True)
    reverse = f"{name}: derivatives must be taken in reverse mode; got forward mode or a transform of torch.func"
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match=reverse):
        layer(forward_ad.make_dual(x, torch.ones_like(x)))
    transforms = (
        torch.func.grad(lambda x: layer(x).sum()),
        torch.func.jacrev(layer),
        torch.func.vmap(lambda one: layer(one[None])),
        lambda x: torch.func.jvp(layer, (x,), (x,)),
    )
    for transform in transforms:
        with pytest.raises(RuntimeError, match=reverse):
            transform(x.detach())


@KINDS
@pytest.mark.parametrize(("psp_persistence", "surrogate_width"), [(0.0, 0.0), (1.0, 0.0), (0.25, 0.5)])
def test_nan_reaches_every_result_that_depends_on_it(served, kind, psp_persistence, surrogate_width):
    """A NaN input, seen by all neurons of one row: their activations, and every gradient that they have a part in."""
    tensors = on(served, kind)
    with torch.no_grad():
        tensors["x"][0] = float("nan")
    y = apply(kind, tensors, served, neuron=Neuron(psp_persistence, surrogate_width=surrogate_width))
    grad_x, grad_weight, grad_bias = torch.autograd.grad(y, list(tensors.values()), torch.ones_like(y))
    for by_image in (y, grad_x):
        assert by_image[0].isnan().all()
        assert by_image[1:].isfinite().all()
    assert grad_weight.isnan().all()
    assert grad_bias.isnan().all()


@KINDS
@pytest.mark.parametrize("psp_persistence", [0.0, 0.25])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocasts", [False, True])
def test_16_bit_operands_and_autocast_give_16_bit_results(served, kind, psp_persistence, dtype, autocasts):
    """Gradients have the dtypes of the operands. Triton's interpreter multiplies bfloat16 wrongly."""
    tensors, neuron = on(served, kind), Neuron(psp_persistence)
    given = tensors if autocasts else leaves({name: tensor.to(dtype) for name, tensor in tensors.items()})
    with torch.autocast(served.device.type, dtype, enabled=autocasts):
        if served.name != "torch" and served.device.type == "cpu" and dtype == torch.bfloat16:
            with pytest.raises(RuntimeError, match="Triton's interpreter multiplies bfloat16 wrongly"):
                apply(kind, given, served, neuron=neuron)
            return
        y = apply(kind, given, served, neuron=neuron)
    assert y.dtype == dtype
    expected = apply(kind, tensors, served, neuron=neuron)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(y.float(), expected, rtol=0, atol=8 * eps)
    margin = torch.from_numpy(oracle_of(kind, tensors, torch.zeros(kind.out), neuron).margin).to(y.device)
    kept = margin > 0.05  # rounding to 16 bits changes the case of no such neuron
    ours = torch.autograd.grad(y.float()[kept].sum(), list(given.values()))
    precise = torch.autograd.grad(expected[kept].sum(), list(tensors.values()))
    for operand, gradient, wanted in zip(given.values(), ours, precise, strict=True):
        assert gradient.dtype == operand.dtype
        assert (gradient - wanted).norm() < 16 * eps * wanted.norm()


@KINDS
def test_autocast_leaves_float64_alone_and_admits_mixed_dtypes(kind):
    tensors = operands(kind, *NAMES, dtype=torch.float64)
    expected, mixed = results(kind, tensors), {"x": tensors["x"].float(), "weight": tensors["weight"].half()}
    with torch.autocast("cpu", torch.bfloat16):
        assert all(map(torch.equal, results(kind, tensors), expected))
        with pytest.raises(TypeError, match=r"x and weight must have one dtype; got torch\.float64 and"):
            apply(kind, tensors | {"weight": tensors["weight"].float()})
        assert apply(kind, mixed).dtype == torch.bfloat16
    with pytest.raises(TypeError, match="x and weight must have one dtype"):  # though the same call passed above
        apply(kind, mixed)


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize(
    ("kind", "names", "psp_persistence", "autocast"),
    [
        *((LINEAR, NAMES[:3], 0.0, True), (LINEAR, NAMES, 1.0, False)),
        *((CONV2D, NAMES[:3], 0.0, False), (CONV2D, NAMES, 1.0, True), (CONV2D, (*NAMES, "gamma"), 1.0, False)),
    ],
)
def test_compiles_in_one_graph_for_batches_of_all_sizes(served, kind, names, psp_persistence, autocast):
    """The compiler's sizes are symbols from the second batch on."""
    dtype = torch.bfloat16 if served.name == "torch" else torch.float16

    def layer(tensors):
        with torch.autocast(served.device.type, dtype, enabled=autocast):
            y = apply(kind, tensors, served, neuron=Neuron(psp_persistence, surrogate_width=0.5))
            return (y.activations if "gamma" in names else y).float()

    def all_results(function, tensors):
        y = function(tensors)
        return y, *torch.autograd.grad(y.square().sum(), list(tensors.values()))

    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for batch in (2, 3, 4):
        tensors = on(served, kind._replace(x=(batch, *kind.x[1:])), *names)
        for ours, theirs in zip(all_results(compiled, tensors), all_results(layer, tensors), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
            assert ours.stride() == theirs.stride()
    with torch.no_grad():
        torch.testing.assert_close(compiled(tensors), layer(tensors), rtol=1e-5, atol=1e-5)
