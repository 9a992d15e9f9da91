"""What torch itself puts around a model: autocast, compilation, checkpoints, parametrizations. The summary is the plain model's."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import orthogonal, spectral_norm, weight_norm
from torch.utils.checkpoint import checkpoint

import gnewton as gn

torch.manual_seed(0)
X, Y = torch.randn(6, 4, dtype=torch.float64), torch.randint(0, 3, (6,))


def network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def summary(model: nn.Module, forward=None, engine: str = "tape") -> gn.Summary:
    partition = gn.Partition.by_tensor(model)
    generator = torch.Generator().manual_seed(2)
    u = {n: torch.randn(p.shape, generator=generator, dtype=p.dtype) for n, p in partition.parameters.items()}
    return gn.summarize(lambda: F.cross_entropy((forward or model)(X), Y), partition, u, engine=engine)


def close(computed: gn.Summary, expected: gn.Summary) -> bool:
    pairs = zip(computed.tensors(), expected.tensors(), strict=True)
    return all(torch.allclose(a, b, rtol=1e-9, atol=1e-11) for a, b in pairs)


def test_checkpoints_without_reentrance_are_on_the_tape() -> None:
    model = network()
    assert close(summary(model, lambda x: checkpoint(model, x, use_reentrant=False)), summary(model))


def test_reentrant_checkpoints_are_on_the_tape_too_and_differences_work() -> None:
    model = network()

    def forward(x: Tensor) -> Tensor:
        return model[2:](checkpoint(model[:2], x.clone().requires_grad_(), use_reentrant=True))

    differences, expected = summary(model, forward, engine="differences"), summary(model)
    assert close(summary(model, forward), expected)
    assert torch.allclose(differences.hessian, expected.hessian, atol=1e-5)


@pytest.mark.parametrize("kind", [orthogonal, spectral_norm, weight_norm])
def test_parametrized_weights_are_on_the_tape(kind) -> None:
    model = network()
    kind(model[2])
    model.eval()
    assert close(summary(model), summary(model, engine="nested"))


# The tape does not follow mixed types, and says so.
@pytest.mark.filterwarnings("ignore::gnewton.derivatives.record.IncompleteRecordWarning")
def test_bfloat16_in_the_closure_is_differentiated() -> None:
    model = copy.deepcopy(network()).float()
    x = X.float()

    def loss() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return F.cross_entropy(model(x), Y)

    partition = gn.Partition.by_tensor(model)
    u = gn.direction.gradient(loss, partition)
    low = gn.summarize(loss, partition, u, order=2)
    plain = gn.summarize(lambda: F.cross_entropy(model(x), Y), partition, u, order=2)
    # bfloat16 keeps 8 bits: a few products of them are right to some percent.
    assert torch.allclose(low.hessian, plain.hessian, atol=0.05 * float(plain.hessian.abs().max()))


def test_a_compiled_model_takes_the_steps_of_the_plain_one() -> None:
    model, twin = network(), network()
    compiled = torch.compile(model, backend="eager")
    for which, optimized in ((compiled, model), (twin, twin)):
        optimizer = gn.GroupedNewton(gn.Partition.by_tensor(optimized))
        for _ in range(3):
            optimizer.step(lambda forward=which: F.cross_entropy(forward(X), Y))
    assert torch.equal(model[0].weight, twin[0].weight)


def test_a_gradient_scaler_is_told_to_give_a_closure() -> None:
    model = network()
    optimizer, scaler = gn.GroupedNewton(gn.Partition.by_tensor(model)), torch.amp.GradScaler("cpu")
    scaler.scale(F.cross_entropy(model(X), Y)).backward()
    before = model[0].weight.detach().clone()
    with pytest.raises((TypeError, ValueError), match=r"step\(lambda"):
        scaler.step(optimizer)
    assert torch.equal(model[0].weight, before)
