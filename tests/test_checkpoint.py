"""A checkpoint that does not fit is refused in words, and leaves model and optimizer as they were."""

import pytest
import torch
import torch.nn.functional as F

import gnewton as gn


def run(sizes=(3, 4, 2), proposer=lambda model: torch.optim.Adam(model.parameters())):
    model = gn.models.perceptron(list(sizes), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return model, gn.GroupedNewton(gn.Partition.by_layer(model), proposer(model))


def text(model, optimizer):
    return repr(model.state_dict()) + repr(optimizer.state_dict())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    model, optimizer = run()
    x, y = torch.randn(5, 3, generator=torch.Generator().manual_seed(1)).double(), torch.arange(5) % 2
    optimizer.step(lambda: F.cross_entropy(model(x), y))
    folder = tmp_path_factory.mktemp("run") / "saved"
    gn.save_checkpoint(folder, model, optimizer)
    return folder, text(model, optimizer)


def test_what_fits_is_loaded(folder):
    model, optimizer = run()
    assert text(model, optimizer) != folder[1]
    gn.load_checkpoint(folder[0], model, optimizer)
    assert text(model, optimizer) == folder[1]


MISFITS = {
    "number of scalars in group 0": run((3, 5, 2)),
    r"parameter groups of \[1, 1, 1, 1\]": run(
        proposer=lambda m: torch.optim.Adam([{"params": [p]} for p in m.parameters()])
    ),
    "Size mismatch": run(proposer=lambda m: torch.optim.Adam(list(m.parameters())[::-1])),
    "for model.0.weight": (run((3, 5, 2))[0], run(proposer=lambda m: torch.optim.Adam(list(m.parameters())[::-1]))[1]),
}


@pytest.mark.parametrize("message", MISFITS)
def test_a_misfit_is_a_value_error_and_changes_nothing(folder, message):
    model, optimizer = MISFITS[message]
    before = text(model, optimizer)
    with pytest.raises(ValueError, match=message):
        gn.load_checkpoint(folder[0], model, optimizer)
    assert text(model, optimizer) == before


@pytest.mark.filterwarnings("ignore")
def test_no_checkpoint_and_no_place_for_one_are_told_as_exceptions(tmp_path):
    # torch itself calls a missing file an assertion that failed.
    with pytest.raises((OSError, ValueError), match="expected a checkpoint"):
        gn.load_checkpoint(tmp_path / "nothing", *run())
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"expected a folder to save a checkpoint in, .*file, got: .*; name a new one"):
        gn.save_checkpoint(tmp_path / "file", *run())


def test_other_optimizers_are_refused(folder):
    model, _ = run()
    for call in (gn.save_checkpoint, gn.load_checkpoint):
        with pytest.raises(TypeError, match=r"expected .* a GroupedNewton, got SGD"):
            call(folder[0], model, torch.optim.SGD(model.parameters(), lr=0.1))
