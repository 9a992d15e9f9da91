"""Every control of every widget moves the picture, the data behind it and the sentence; errors are seen, not swallowed."""

import ipywidgets
import numpy as np
import pytest
import torch
import torch.nn.functional as F

import gnewton as gn
from gnewton.plots import new_figure
from gnewton.policies import Outcome
from gnewton.teaching import CurvatureTimeline, FigureWidget, QuadraticBowl, StepExplorer, TaylorSlice
from gnewton.teaching.widgets.bowl import STEPS, bowl, descents
from gnewton.teaching.widgets.figure_widget import slider


def network():
    data = gn.datasets.digits(dtype=torch.float64)
    x, y = data.train_x[:100], data.train_y[:100]
    model = gn.models.perceptron([64, 8, 10], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return model, lambda: F.cross_entropy(model(x), y)


def summarized(full_third=True):
    model, loss = network()
    partition = gn.Partition.by_tensor(model)
    u = gn.direction.gradient(loss, partition)
    return model, loss, partition, u, gn.summarize(loss, partition, u, full_third=full_third)


def explorer(**state):
    return StepExplorer(summarized()[-1], **state)


def taylor(**state):
    _, loss, partition, u, summary = summarized()
    return TaylorSlice(loss, partition, u, summary, gn.newton_step(summary).learning_rates, **state)


def timeline(**state):
    model, loss = network()
    optimizer = gn.GroupedNewton(gn.Partition.by_tensor(model), lr=0.3, period=1)
    for _ in range(4):
        optimizer.step(loss)
    return CurvatureTimeline(optimizer.history, optimizer.partition.names, **state)


def drawn(widget):
    """All numbers that the picture is made of: lines, bars, images."""
    numbers = []
    for ax in widget.figure.axes:
        numbers += [np.ravel(line.get_xydata()) for line in ax.get_lines()]
        numbers += [[bar.get_width()] for bar in ax.patches if hasattr(bar, "get_width")]
        numbers += [np.ravel(image.get_array()) for image in ax.get_images()]
    return np.concatenate([np.asarray(n, dtype=float) for n in numbers])


CASES = [
    (QuadraticBowl, "condition", 100),
    (QuadraticBowl, "angle", 75),
    (QuadraticBowl, "start", 300),
    (explorer, "strength", 0.0),
    (explorer, "curvature", "diagonal"),
    (explorer, "curvature", "S = 1"),
    (taylor, "group", "2.weight"),
    (taylor, "reach", 3.0),
    (timeline, "update", 3),
]


@pytest.mark.parametrize(("make", "control", "value"), CASES)
def test_a_control_moves_picture_data_and_sentence(make, control, value):
    widget = make()
    data, picture, sentence = drawn(widget), widget.png, widget.sentence
    getattr(widget, control).value = value
    assert not np.array_equal(drawn(widget), data)
    assert widget.png != picture
    # How far a Taylor slice reaches changes the picture alone: the sentence speaks of t = 1.
    assert widget.sentence != sentence or control == "reach"
    assert widget.png.startswith(b"\x89PNG")


@pytest.mark.parametrize(("make", "control", "value"), CASES)
def test_a_state_given_at_construction_is_the_state_that_the_control_reaches(make, control, value):
    moved, given = make(), make(**{control: value})
    getattr(moved, control).value = value
    np.testing.assert_array_equal(drawn(given), drawn(moved))
    assert repr(given) == repr(moved)
    assert given.figure._repr_png_().startswith(b"\x89PNG")


@pytest.mark.parametrize("make", [QuadraticBowl, explorer, taylor, timeline])
def test_without_a_kernel_the_picture_and_its_sentence_remain(make):
    widget = make()
    bundle = widget._repr_mimebundle_()
    data = bundle[0] if isinstance(bundle, tuple) else bundle
    assert data["image/png"] == widget.png
    assert data["text/plain"] == repr(widget) == f"{type(widget).__name__}: {widget.sentence}"
    assert widget.sentence in widget.children[-2].value
    assert repr(make()) == repr(widget)


def test_every_control_is_shown_and_works_by_keyboard():
    widget = QuadraticBowl()
    controls = widget.children[:-3]
    assert [c.description for c in controls] == ["condition number", "turned by (degrees)", "start at (degrees)"]
    assert not any(isinstance(child, ipywidgets.Output) for child in widget.children)


class Failing(FigureWidget):
    def __init__(self):
        self.level = slider("level", [1, 0], 1)
        super().__init__(new_figure(), {"level": self.level})

    def draw(self):
        self.figure.axes[0].set_title(f"{1 / self.level.value}")
        return f"Level {self.level.value}."


def test_an_error_in_a_callback_shows_in_the_status_line_and_goes_away():
    widget = Failing()
    widget.level.value = 0
    assert "ZeroDivisionError" in widget.children[-1].value
    assert widget.sentence == "Level 1."
    widget.level.value = 1
    assert widget.children[-1].value == ""


def test_an_error_at_construction_is_raised_in_the_cell():
    with pytest.raises(ValueError, match="empty history"):
        CurvatureTimeline([], ["a"])


def test_the_explorer_shows_the_steps_of_newton_step():
    summary = summarized()[-1]
    widget = StepExplorer(summary, strength=1.0)
    bars = [bar.get_width() for bar in widget.figure.axes[0].patches]
    np.testing.assert_allclose(bars, gn.newton_step(summary, cubic=1.0).learning_rates)
    widget.curvature.value = "S = 1"
    one = gn.newton_step(summary.coarsen([[0, 1, 2, 3]]), cubic=1.0).learning_rates
    np.testing.assert_allclose([bar.get_width() for bar in widget.figure.axes[0].patches], one.expand(4))


def test_the_explorer_says_why_there_is_no_step():
    summary = gn.Summary.from_tensors(gradient=[1.0, 4.0], hessian=[[1.0, 6.0], [6.0, 16.0]], third=[0.0, 0.0])
    assert "no step; UNBOUNDED" in StepExplorer(summary).sentence


def test_the_explorer_offers_one_group_only_where_it_can_merge():
    assert StepExplorer(summarized(full_third=False)[-1]).curvature.options == ("full", "diagonal")


def test_the_taylor_slice_leaves_the_parameters_alone_even_when_the_loss_fails():
    model, loss, partition, u, summary = summarized()
    before = [p.detach().clone() for p in model.parameters()]
    calls = []

    def failing():
        calls.append(1)
        if len(calls) > 60:
            raise RuntimeError("no more")
        return loss()

    widget = TaylorSlice(failing, partition, u, summary, gn.newton_step(summary).learning_rates)
    widget.reach.value = 3.0
    assert "no more" in widget.children[-1].value
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


def test_the_taylor_slice_stays_where_its_summary_was_taken():
    model, loss, partition, u, summary = summarized()
    widget = TaylorSlice(loss, partition, u, summary, gn.newton_step(summary).learning_rates)
    before = drawn(widget)
    trained = [p.detach().add_(0.1).clone() for p in model.parameters()]
    for direction in u.values():
        direction.mul_(2)
    widget.redraw()
    np.testing.assert_array_equal(drawn(widget), before)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), trained, strict=True))


@pytest.mark.parametrize("group", ["all groups", "0.bias"])
def test_no_label_of_the_taylor_slice_leaves_the_picture(group):
    widget = taylor()
    widget.group.value = group
    boxes = [ax.get_tightbbox() for ax in widget.figure.axes]
    assert all(box.x0 >= 0 and box.y0 >= 0 for box in boxes)


def test_the_timeline_shows_flat_and_steep_updates_on_one_scale():
    history = [make_update(step, size) for step, size in enumerate([1e-3, 1e4, 0.0])]
    for step, marks in [(0, 4), (1, 4), (2, 0)]:
        heat = CurvatureTimeline(history, ["a", "b"], update=step).figure.axes[0]
        assert sum(len(line.get_xdata()) for line in heat.get_lines()) == marks
        norm = heat.get_images()[0].norm
        assert (norm.vmin, norm.vmax) == (-1e4, 1e4)


def make_update(step, size):
    fields = dict.fromkeys(
        ("gradient", "metric", "lr", "predicted_decrease", "actual_decrease", "cubic", "rho", "evaluations")
    )
    hessian = size * torch.tensor([[1.0, -0.5], [-0.5, 1.0]], dtype=torch.float64)
    rates = torch.zeros(2, dtype=torch.float64)
    return Outcome(step=step, value=1.0, hessian=hessian, learning_rates=rates, status="CONVERGED", **fields)


def test_a_step_without_an_update_is_refused():
    with pytest.raises(ValueError, match="expected a step with an update"):
        timeline(update=99)


def test_the_taylor_slice_draws_the_loss_and_models_that_touch_it():
    _, loss, partition, u, summary = summarized()
    eta = gn.newton_step(summary).learning_rates
    widget = TaylorSlice(loss, partition, u, summary, eta)
    widget.reach.value = 0.25  # close to the start each order must be better than the one below
    lines = {line.get_label(): line.get_xydata() for line in widget.figure.axes[0].get_lines()}
    t, truth = lines["true loss"].T
    with torch.no_grad():
        for name, change in partition.scale(u, float(t[-1]) * eta).items():
            partition.parameters[name].sub_(change)
    assert loss().item() == pytest.approx(truth[-1], rel=1e-10)
    near = np.abs(t).argmin() + 2
    errors = [abs(lines[f"order {d}"][near, 1] - truth[near]) for d in (1, 2, 3)]
    assert errors[0] > errors[1] > errors[2]


@pytest.mark.parametrize(("name", "factory"), [("S = 1 (Cauchy)", "single"), ("S = 2 (Newton)", "by_scalar")])
def test_the_bowls_paths_are_those_of_grouped_newton(name, factory):
    start = [1.3, -0.7]
    matrix = bowl(20.0, 0.5)
    model = gn.models.Quadratic([1.0, 20.0], angle=0.5, start=start, dtype=torch.float64)
    np.testing.assert_allclose(model.A, matrix, atol=1e-12)
    optimizer = gn.GroupedNewton(getattr(gn.Partition, factory)(model), lr=1.0, cubic=0.0, period=1)
    path = [model.theta.detach().numpy().copy()]
    for _ in range(8):
        optimizer.step(model)
        path.append(model.theta.detach().numpy().copy())
    # Errors of one step pass through the next ones; the paths live on a scale of 1.
    np.testing.assert_allclose(descents(matrix, np.array(start))[name][:9], path, atol=1e-8)
    assert len(descents(matrix, np.array(start))[name]) == STEPS + 1
