"""Complex parameters split in two: the module computes the same, and its summary is that of reals written by hand."""

import pytest
import torch
from torch import Tensor, nn

import gnewton as gn

Z = torch.complex128


class Filter(nn.Module):
    """irfft(w rfft(x)), with a complex w."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.w = nn.Parameter(torch.randn(4, dtype=Z))
        self.bias = nn.Parameter(torch.randn((), dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.irfft(torch.fft.rfft(x) * self.w, n=6).tanh() + self.bias


X = torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_the_module_computes_what_it_did() -> None:
    model = Filter()
    before, gradient = model(X).detach(), torch.autograd.grad(model(X).sum(), model.w)[0]
    assert gn.split_complex(model) is model
    real, imaginary = model.parametrizations.w.original0, model.parametrizations.w.original1
    assert torch.equal(model(X).detach(), before)
    parts = torch.autograd.grad(model(X).sum(), (real, imaginary))
    torch.testing.assert_close(torch.complex(*parts), gradient, rtol=1e-14, atol=1e-14)


def test_the_summary_is_that_of_the_real_and_the_imaginary_part() -> None:
    model, other = gn.split_complex(Filter()), Filter()
    partition = gn.Partition.by_tensor(model)
    u = {name: torch.randn_like(p) for name, p in partition.parameters.items()}
    got = gn.summarize(lambda: model(X).square().sum(), partition, u, engine="tape", full_third=True)
    a, b = (part.detach().clone().requires_grad_() for part in (other.w.real, other.w.imag))
    by_hand = gn.Partition.from_groups({"bias": {"bias": other.bias}, "a": {"a": a}, "b": {"b": b}})

    def loss() -> Tensor:
        # The transform and its product as sums of cosines and sines.
        angles = torch.arange(4)[:, None] * torch.arange(6) * (2 * torch.pi / 6)
        real, imaginary = X @ angles.cos().T.double(), -X @ angles.sin().T.double()
        re, im = real * a - imaginary * b, real * b + imaginary * a
        twice = torch.tensor([1.0, 2, 2, 1], dtype=torch.float64)
        out = ((re * twice) @ angles.cos().double() - (im * twice) @ angles.sin().double()) / 6
        return (out.tanh() + other.bias).square().sum()

    names = dict(zip(by_hand.parameters, partition.parameters, strict=True))
    assert list(names.values()) == ["bias", "parametrizations.w.original0", "parametrizations.w.original1"]
    expected = gn.summarize(loss, by_hand, {name: u[names[name]] for name in names}, engine="nested", full_third=True)
    # Angles are float32 numbers times pi: their cosines are right to 1e-6.
    for one, two in zip(got.tensors(), expected.tensors(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5 * float(two.abs().max()))


def test_frozen_parts_stay_frozen_and_a_module_of_reals_is_as_it_was() -> None:
    model = Filter()
    model.w.requires_grad_(False)
    gn.split_complex(model)
    assert not any(p.requires_grad for p in model.parametrizations.parameters())
    layer = nn.Linear(2, 2)
    assert list(gn.split_complex(layer).state_dict()) == ["weight", "bias"]


def test_a_complex_parameter_is_refused_with_the_line_to_write() -> None:
    with pytest.raises(TypeError, match=r"gnewton\.split_complex\(model\)"):
        gn.Partition.by_tensor(Filter())


def test_shared_complex_parameters_are_refused_and_nothing_changes() -> None:
    model = nn.ModuleList([Filter(), Filter()])
    model[1].w = model[0].w
    with pytest.raises(ValueError, match="in two"):
        gn.split_complex(model)
    assert [name for name, _ in model.named_parameters()] == ["0.w", "0.bias", "1.bias"]


class Named(nn.Module):
    def __init_subclass__(cls, name: str) -> None:
        super().__init_subclass__()


class Last(Named, name="last"):
    def __init__(self) -> None:
        super().__init__()
        self.z = nn.Parameter(torch.ones(2, dtype=Z))


def test_a_class_that_takes_no_subclass_is_refused_by_name_and_nothing_changes() -> None:
    model = nn.ModuleList([Filter(), Last()])
    with pytest.raises(ValueError, match="Last, which holds z"):
        gn.split_complex(model)
    assert [name for name, _ in model.named_parameters()] == ["0.w", "0.bias", "1.z"]


def test_an_optimizer_steps_on_the_parts() -> None:
    model = gn.split_complex(Filter())
    optimizer = gn.GroupedNewton(gn.Partition.by_tensor(model))
    before = model(X).square().sum().item()
    for _ in range(3):
        optimizer.step(lambda: model(X).square().sum())
    assert model(X).square().sum().item() < before
