"""Operations taken apart one by one, by torch.func, add up to what the library's sweep computes by other rules."""

import pytest
import torch
from support.problems import PROBLEMS, build
from support.widgets import marked, random_direction

import gnewton as gn
from gnewton.teaching import TapeViewer
from gnewton.teaching.widgets.tape_viewer import dissect


def viewer(**state):
    return TapeViewer(*random_direction(), **state)


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("partition", [gn.Partition.by_tensor, gn.Partition.by_row, gn.Partition.single])
def test_the_shares_add_up_to_h_bar(name, partition):
    case = build(name)
    groups = partition(case.model)
    u = case.direction(groups)
    parts, summary = dissect(case.loss, groups, u), gn.summarize(case.loss, groups, u, order=2)
    torch.testing.assert_close(sum(part.share for part in parts), summary.hessian)
    torch.testing.assert_close(parts[-1].tangents, summary.gradient)
    assert parts[-1].adjoint == 1


def test_adjoint_and_tangent_pair_to_the_gradient_at_every_cut_of_a_chain():
    # Where the whole loss passes through one value, lambda . x_s is g-bar for all groups upstream of it.
    loss, groups, u = random_direction()
    summary = gn.summarize(loss, groups, u, order=1)
    for part, upstream in zip(dissect(loss, groups, u), (2, 2, 4, 4, 4), strict=True):
        paired = (part.tangents * part.adjoint).reshape(len(groups), -1).sum(1)
        torch.testing.assert_close(paired[:upstream], summary.gradient[:upstream])
        assert (part.tangents[upstream:] == 0).all()


def test_a_linear_operation_whose_input_does_not_move_adds_nothing():
    first = dissect(*random_direction())[0]
    assert first.name == "linear"
    assert (first.share == 0).all()


def known(widget, column):
    return [row[column] != "" for row in marked(widget)["cells"]["text"]]


def test_adjoints_come_up_and_tangents_go_down():
    widget = viewer()
    assert widget.last == 10
    assert known(widget, 0) == [True] * 5
    assert known(widget, 1) == [False] * 5
    widget.stage.value = 2
    assert known(widget, 1) == [False] * 3 + [True] * 2
    widget.stage.value = 7
    assert known(widget, 1) == [True] * 5
    assert known(widget, 2) == [True] * 2 + [False] * 3
    widget.stage.value = widget.last
    assert known(widget, 5) == [True] * 5


def test_the_bars_of_the_last_stage_add_up_to_the_entry():
    loss, groups, u = random_direction()
    hessian = gn.summarize(loss, groups, u, order=2).hessian
    widget = viewer(stage=10)
    for s, t in [(0, 0), (0, 2), (1, 3)]:
        widget.entry.value = (s, t)
        assert sum(marked(widget)["bars"]["values"]) == pytest.approx(hessian[s, t].item())
        assert f"= {hessian[s, t]:.3g}, complete" in widget.sentence


def test_a_group_that_does_not_reach_is_a_dash():
    widget = viewer(stage=10)
    assert [marked(widget)["cells"]["text"][row][4] == "-" for row in range(5)] == [True, True, False, False, False]


def test_a_loss_without_a_complete_record_is_refused():
    class Double(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return 2 * x

        @staticmethod
        def backward(ctx, g):
            return 2 * g

    model = gn.models.Rosenbrock(2, dtype=torch.float64)
    partition = gn.Partition.by_scalar(model)
    with pytest.raises(ValueError, match="expected a loss that can be recorded"):
        dissect(lambda: Double.apply(model()), partition, {"theta": torch.ones(2, dtype=torch.float64)})


def test_an_operation_of_several_outputs_is_refused():
    theta = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    partition = gn.Partition.from_groups({"theta": {"theta": theta}})

    def loss():
        a, b = torch.split(theta, 1)
        return (a * b).sum()

    with pytest.raises(ValueError, match="several from split"):
        dissect(loss, partition, {"theta": torch.ones(2, dtype=torch.float64)})
