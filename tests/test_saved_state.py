"""States that 0.1.0.dev0 saved: they load, and the run goes on as it did there; states of other shapes do not."""

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from support import saved_runs
from support.problems import build
from torch import nn

import gnewton as gn


@pytest.fixture(scope="module")
def saved():
    return torch.load(saved_runs.FILE, weights_only=True)


@pytest.mark.parametrize("name", saved_runs.RUNS)
def test_a_run_of_the_first_version_goes_on_as_it_did(saved, name):
    then = saved[name]
    model, optimizer, loss = saved_runs.build(name)
    model.load_state_dict(then["model"])
    optimizer.load_state_dict(then["optimizer"])
    assert [outcome.step for outcome in optimizer.history] == [
        record["step"] for record in then["optimizer"]["history"]
    ]
    now = saved_runs.go_on(model, optimizer, loss)
    # Another processor rounds otherwise, 1e-16 a number; five steps amplify that to 1e-13 at
    # most (measured by disturbing the parameters by 1e-16), and a forgotten memory changes the second digit.
    torch.testing.assert_close(
        *(torch.tensor(run["losses"], dtype=torch.float64) for run in (now, then)), rtol=1e-10, atol=0
    )
    for p, q in zip(now["parameters"], then["parameters"], strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", [name for name, (_, settings) in saved_runs.RUNS.items() if settings["period"] > 1])
def test_without_the_saved_memory_the_run_goes_on_otherwise(saved, name):
    then = saved[name]
    model, optimizer, loss = saved_runs.build(name)
    model.load_state_dict(then["model"])
    now = saved_runs.go_on(model, optimizer, loss)
    assert not torch.allclose(
        *(torch.tensor(run["losses"], dtype=torch.float64) for run in (now, then)), rtol=1e-10, atol=0
    )


def stepped(inputs, outputs, named):
    """A GroupedNewton after one step, on a layer of that many inputs and outputs."""
    torch.manual_seed(0)
    model = nn.Linear(inputs, outputs, dtype=torch.float64)
    partition = gn.Partition.by_name(model, named)
    optimizer = gn.GroupedNewton(partition, torch.optim.Adam(model.parameters()))
    x = torch.randn(7, inputs, dtype=torch.float64)
    optimizer.step(lambda: torch.tanh(model(x)).square().mean())
    return optimizer


@pytest.mark.parametrize(
    ("inputs", "outputs", "named", "complaint"),
    [
        (3, 5, {"a": "weight", "b": "bias"}, "number of scalars in group 0 is 15, got 12"),
        (4, 3, {"a": "weight", "b": "bias"}, "number of scalars in group 1 is 3, got 4"),
        (4, 3, {"a": "*"}, "number of scalars in group 0 is 15, got 16"),
    ],
)
def test_a_state_of_other_sizes_is_refused_and_changes_nothing(inputs, outputs, named, complaint):
    other = stepped(inputs, outputs, named)
    before = repr(other.state_dict())
    with pytest.raises(ValueError, match=complaint):
        other.load_state_dict(stepped(3, 4, named).state_dict())
    assert repr(other.state_dict()) == before


def test_a_state_of_transposed_weights_is_refused():
    # As many scalars in each group, in tensors of another shape: the proposer's moments would not fit.
    def transposed(rows, columns):
        weight = nn.Parameter(torch.ones(rows, columns, dtype=torch.float64))
        partition = gn.Partition.from_groups({"all": {"weight": weight}})
        return gn.GroupedNewton(partition, torch.optim.Adam([weight]))

    with pytest.raises(ValueError, match=r"shape of parameter 0 is \[3, 2\], got \[2, 3\]"):
        transposed(3, 2).load_state_dict(transposed(2, 3).state_dict())


def test_a_state_without_sizes_still_loads():
    named = {"a": "weight", "b": "bias"}
    saved, other = stepped(3, 4, named).state_dict(), stepped(3, 4, named)
    without = {key: copy.deepcopy(value) for key, value in saved.items() if key not in ("sizes", "shapes")}
    other.load_state_dict(without)
    assert repr(other.state_dict()) == repr(saved)


# -- damaged states -----------------------------------------------------------------------------------------------------


def _grouped():
    torch.manual_seed(0)
    model = nn.Linear(3, 2).double()
    adam = torch.optim.Adam(model.parameters())
    optimizer = gn.GroupedNewton(gn.Partition.by_tensor(model), adam, average=gn.average.Exponential(0.5))
    return optimizer, lambda: optimizer.step(lambda: model(torch.ones(4, 3).double()).exp().mean())


def _exact():
    model = gn.models.perceptron([3, 4, 2], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    optimizer = gn.exact.ExactNewton(model, F.mse_loss)
    return optimizer, lambda: optimizer.step(torch.ones(4, 3).double(), torch.zeros(4, 2).double())


def _stochastic():
    torch.manual_seed(0)
    model = nn.Linear(3, 2).double()
    optimizer = gn.StochasticNewton(gn.Partition.single(model))
    return optimizer, lambda: optimizer.step(lambda: model(torch.ones(4, 3).double()).exp().mean())


KINDS = {"GroupedNewton": _grouped, "ExactNewton": _exact, "StochasticNewton": _stochastic}


def _without(key):
    return lambda state: {name: part for name, part in state.items() if name != key}


def _without_memory(key, state):
    return state | {"state": {"grouped_newton": _without(key)(state["state"]["grouped_newton"])}}


def _groups(change):
    return lambda state: state | {"param_groups": change(copy.deepcopy(state["param_groups"]))}


DAMAGE = {
    "empty": lambda state: {},
    "torch's Adam": lambda state: adam_state(),
    "no groups": _groups(lambda groups: []),
    "two groups": _groups(lambda groups: groups * 2),
    "a group without settings": _groups(lambda groups: [{"params": groups[0]["params"]}]),
    "a parameter fewer": _groups(lambda groups: [groups[0] | {"params": groups[0]["params"][:-1]}]),
    "a parameter more": _groups(lambda groups: [groups[0] | {"params": [*groups[0]["params"], 99]}]),
}
# States of earlier versions lack sizes and shapes.
NEEDED = {
    "GroupedNewton": ["state", "param_groups", "proposer", "history", "groups", "proposer_kind", "average", "policy"],
    "ExactNewton": ["state", "param_groups", "network", "history"],
    "StochasticNewton": ["state", "param_groups"],
}
DAMAGED = [(kind, name, damage) for kind in KINDS for name, damage in DAMAGE.items()]
DAMAGED += [(kind, f"without {key}", _without(key)) for kind, keys in NEEDED.items() for key in keys]
DAMAGED += [
    ("GroupedNewton", "no proposer", lambda state: state | {"proposer": None}),
    ("GroupedNewton", "an empty proposer", lambda state: state | {"proposer": {}}),
    ("GroupedNewton", "a proposer without state", lambda s: s | {"proposer": _without("state")(s["proposer"])}),
    *((kind, "no history", lambda state: state | {"history": None}) for kind in ("GroupedNewton", "ExactNewton")),
    *((kind, "another history", lambda state: state | {"history": [{}]}) for kind in ("GroupedNewton", "ExactNewton")),
    *(
        ("GroupedNewton", f"a memory without {key}", partial(_without_memory, key))
        for key in ("step", "average", "policy")
    ),
]


def adam_state():
    model = nn.Linear(3, 2).double()
    adam = torch.optim.Adam(model.parameters())
    model(torch.ones(4, 3).double()).sum().backward()
    adam.step()
    return adam.state_dict()


@pytest.mark.parametrize(
    ("kind", "damage"), [pytest.param(kind, do, id=f"{kind}, {name}") for kind, name, do in DAMAGED]
)
def test_a_damaged_state_is_refused_and_changes_nothing(kind, damage):
    optimizer, step = KINDS[kind]()
    step()
    saved = copy.deepcopy(optimizer.state_dict())
    step()
    before = repr(optimizer.state_dict())
    with pytest.raises(ValueError, match=r"expected .*; "):
        optimizer.load_state_dict(damage(saved))
    assert repr(optimizer.state_dict()) == before
    step()
    optimizer.load_state_dict(saved)
    assert repr(optimizer.state_dict()) == repr(saved) != before


def test_a_setting_that_a_state_does_not_know_has_its_default():
    optimizer, step = _grouped()
    step()
    saved = copy.deepcopy(optimizer.state_dict())
    del saved["param_groups"][0]["ridge"]
    optimizer.load_state_dict(saved)
    step()
    assert optimizer.param_groups[0]["ridge"] == 0


@pytest.mark.parametrize(
    "proposer",
    [
        lambda p: torch.optim.Adam(p, amsgrad=True),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        lambda p: torch.optim.RMSprop(p, centered=True, momentum=0.9),
        lambda p: torch.optim.Adadelta(p),
        lambda p: torch.optim.Adagrad(p),
        lambda p: torch.optim.Adamax(p),
        lambda p: gn.CautiousAdam(p),
    ],
    ids=["Adam", "SGD", "RMSprop", "Adadelta", "Adagrad", "Adamax", "CautiousAdam"],
)
def test_a_proposer_of_another_order_is_refused_where_shapes_tell(proposer):
    states = {}
    for turned in (False, True):
        case = build("perceptron")
        held = list(case.model.parameters())
        partition = gn.Partition.single(case.model)
        optimizer = gn.GroupedNewton(partition, proposer(held[::-1] if turned else held), cubic=1.0)
        for _ in range(2):
            optimizer.step(case.loss)
        states[turned] = optimizer.state_dict()
    with pytest.raises(ValueError, match=r"expected a proposer whose parameter \d has the shape"):
        optimizer.load_state_dict(states[False])
    optimizer.load_state_dict(states[True])
