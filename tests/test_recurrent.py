"""Recurrent layers written out are torch's own, in every option; on the tape every step has a closed form."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import gnewton as gn
from gnewton.derivatives.record import record
from gnewton.derivatives.rules.generic import Generic
from gnewton.elementary import Elementary

DTYPE = torch.float64
KINDS = {"LSTM": nn.LSTM, "GRU": nn.GRU, "RNN": nn.RNN}


def sequence(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=DTYPE)


def modules():
    options = {
        "num_layers": [1, 2],
        "bias": [True, False],
        "batch_first": [False, True],
        "bidirectional": [False, True],
    }
    for name, kind in KINDS.items():
        further = {"LSTM": {"proj_size": [0, 2]}, "RNN": {"nonlinearity": ["tanh", "relu"]}}.get(name, {})
        every = options | further | {"dropout": [0.0, 0.3]}
        for values in itertools.product(*every.values()):
            chosen = dict(zip(every, values, strict=True))
            if chosen["dropout"] and chosen["num_layers"] == 1:
                continue  # torch warns that it does nothing
            torch.manual_seed(1)
            yield kind(3, 4, dtype=DTYPE, **chosen)


def values_of(out):
    return out.data if isinstance(out, PackedSequence) else out


def results(module, x, state=None, written_out=False):
    """Outputs, final states and the gradients of both."""
    torch.manual_seed(2)  # dropout
    if written_out:
        with Elementary():
            out, end = module(x, state)
    else:
        out, end = module(x, state)
    values = [values_of(out), *(end if isinstance(end, tuple) else (end,))]
    scalar = sum(v.sin().sum() for v in values)
    return [v.detach() for v in values] + list(torch.autograd.grad(scalar, list(module.parameters())))


def assert_torchs(module, x, state=None):
    expected, got = results(module, x, state), results(module, x, state, written_out=True)
    # Some tens of additions of numbers near 1, in another order.
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)


def test_every_option_is_torchs():
    for module in modules():
        assert_torchs(module, sequence(5, 2, 3))


def test_packed_sequences_are_torchs_in_every_option():
    for module in modules():
        lengths = torch.tensor([2, 5, 1, 4])
        shape = (4, 5, 3) if module.batch_first else (5, 4, 3)
        packed = pack_padded_sequence(sequence(*shape), lengths, module.batch_first, enforce_sorted=False)
        assert_torchs(module, packed)


@pytest.mark.parametrize("kind", KINDS)
def test_given_states_are_torchs(kind):
    module = KINDS[kind](3, 4, num_layers=2, bidirectional=True, dtype=DTYPE)
    start = sequence(4, 2, 4)
    assert_torchs(module, sequence(5, 2, 3), (start, start.cos()) if kind == "LSTM" else start)


def test_the_comparison_can_fail():
    module = nn.GRU(3, 4, dtype=DTYPE)
    expected = results(module, sequence(5, 2, 3))
    with torch.no_grad():
        module.weight_hh_l0[0, 0] += 1e-6
    with pytest.raises(AssertionError):
        torch.testing.assert_close(
            results(module, sequence(5, 2, 3), written_out=True), expected, rtol=1e-9, atol=1e-12
        )


@pytest.mark.parametrize("kind", KINDS)
def test_every_step_has_a_closed_form(kind):
    module = KINDS[kind](3, 4, num_layers=2, bidirectional=True, dtype=DTYPE)
    packed = pack_padded_sequence(sequence(5, 3, 3), torch.tensor([5, 3, 2]))
    for x in (sequence(5, 3, 3), packed):
        tape = record(lambda x=x: values_of(module(x)[0]).square().mean(), gn.Partition.single(module))
        assert tape.missing is None
        assert not [o.name for o in tape.operations if isinstance(o.rule, Generic)]
