"""States that 0.1.0.dev0 saved: they load, and the run goes on as it did there."""

import pytest
import torch
from support import saved_runs


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
