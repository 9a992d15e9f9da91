"""The shares of the derivation are all needed, and add up to what the library's own sweep computes."""

import pytest
import torch
import torch.nn.functional as F

import gnewton as gn
from gnewton.teaching.derivations.tangents_adjoints import Tape


def test_every_share_is_needed():
    # A derivation whose sum held without one of its terms would have checked nothing.
    tape = Tape(0)
    for share in tape.shares:
        assert not torch.allclose(sum(tape.shares) - share, tape.h_bar, rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_the_shares_add_up_to_the_librarys_summary(seed):
    tape = Tape(seed)
    model = gn.models.perceptron([3, 4, 2], dtype=torch.float64)
    names, sizes = list(dict(model.named_parameters())), tape.sizes
    with torch.no_grad():
        for p, values in zip(model.parameters(), torch.split(tape.theta, sizes), strict=True):
            p.copy_(values.reshape(p.shape))
    u = {n: v.reshape(p.shape) for n, v, p in zip(names, torch.split(tape.u, sizes), model.parameters(), strict=True)}
    summary = gn.summarize(lambda: F.cross_entropy(model(tape.x), tape.y), gn.Partition.by_tensor(model), u, order=2)
    torch.testing.assert_close(sum(tape.shares), summary.hessian)


def test_the_loss_of_the_outputs_adds_no_negative_curvature():
    for seed in range(5):
        share = Tape(seed).shares[2]
        assert torch.linalg.eigvalsh(share)[0] > -1e-14 * share.abs().max()
    assert any(torch.linalg.eigvalsh(Tape(seed).h_bar)[0] < -1e-3 for seed in range(5))
