"""Averages of summaries: they are the weighted means that they claim to be, and blind to the length of u."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from support.problems import build

import gnewton as gn
from gnewton.average import Exponential, Windows
from gnewton.direction import normalize

S = 3


def summaries(n, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    return [gn.Summary.from_tensors(draw(S), draw(S, S), draw(S), value=draw()) for _ in range(n)]


def means(average, given):
    averages, memory = [], None
    for one in given:
        mean, memory = average(memory, one)
        averages.append(mean)
    return averages


def same(got, expected):
    # Sums of a dozen float64 numbers of size 1, in another order.
    for a, b in zip(got.tensors(), expected.tensors(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-13)


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9])
def test_exponential_is_the_mean_with_weights_beta_to_the_age(beta):
    given = summaries(12)
    for n, mean in enumerate(means(Exponential(beta), given), 1):
        weights = [beta ** (n - 1 - k) for k in range(n)]
        same(mean, sum(w * s for w, s in zip(weights, given[:n], strict=True)) * (1 / sum(weights)))


@pytest.mark.parametrize(("period", "warmup"), [(1, 0), (3, 3), (5, 2), (10, 5)])
def test_windows_are_plain_means_of_the_last_summaries(period, warmup):
    given = summaries(4 * period + 3)
    for n, mean in enumerate(means(Windows(period, warmup), given), 1):
        assert (mean is None) == (n <= warmup)
        # All up to the second time that a window is full, then the full one and what came since.
        held = n if n < period else period + n % period
        assert held <= n
        if mean is not None:
            same(mean, sum(given[n - held : n]) * (1 / held))


def test_what_an_average_remembers_is_not_changed_by_going_on():
    first, second = summaries(2)
    for average in (Exponential(0.5), Windows(2, 0)):
        _, memory = average(None, first)
        once, again = average(memory, second)[0], average(memory, second)[0]
        same(once, again)


def test_normalized_has_norm_one_in_each_group_at_any_scale():
    case = build("perceptron")
    partition = gn.Partition.by_row(case.model)
    u = case.direction(partition)
    part = partition.restrict(u, 0)
    u = {name: value - part[name] for name, value in u.items()}
    one = normalize(u, partition)
    norms = partition.sums({name: part**2 for name, part in one.items()})
    dead = partition.sums({name: (part != 0).to(part.dtype) for name, part in u.items()}) == 0
    assert dead.any()
    torch.testing.assert_close(norms, (~dead).to(norms.dtype), rtol=0, atol=1e-12)
    for factor in (1e-200, 1e200):
        for a, b in zip(
            normalize({k: v * factor for k, v in u.items()}, partition).values(), one.values(), strict=True
        ):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    "make", [lambda: Exponential(1.0), lambda: Windows(0), lambda: Windows(3, -1), lambda: Windows(2.5)]
)
def test_settings_out_of_range_are_refused(make):
    with pytest.raises(ValueError, match="expected"):
        make()


def test_what_is_no_number_is_refused():
    with pytest.raises(TypeError, match=r"expected a number for beta, got '0\.9'"):
        Exponential("0.9")


@pytest.mark.parametrize("beta", [np.float32(0.5), Fraction(1, 2), torch.tensor(0.5)])
def test_numbers_of_other_libraries_are_numbers(beta):
    one = gn.Summary.from_tensors(gradient=[1.0])
    _, memory = Exponential(beta)(None, one)
    assert Exponential(beta)(memory, one * 4)[0].gradient.item() == 3
