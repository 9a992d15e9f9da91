"""Each plot draws the numbers that it was given, can be read in grey, and keeps nothing alive."""

import gc
import weakref
from itertools import pairwise

import matplotlib.figure
import numpy as np
import pytest
import torch

import gnewton as gn
from gnewton import plots
from gnewton.tuning import Suggestion

RNG = np.random.default_rng(0)


def line_data(ax, label):
    return next(line.get_xydata() for line in ax.get_lines() if line.get_label() == label)


def looks(ax):
    return [
        (line.get_linestyle(), line.get_marker()) for line in ax.get_lines() if not line.get_label().startswith("_")
    ]


def test_heat_map_shows_the_matrix_its_names_and_its_signs():
    hessian = torch.tensor([[4.0, -2.0, 1e-9], [-2.0, 3.0, 0.0], [1e-9, 0.0, 1.0]])
    ax = plots.heat_map(hessian, names=["a", "b", "c"])
    np.testing.assert_array_equal(ax.get_images()[0].get_array(), hessian)
    assert [t.get_text() for t in ax.get_xticklabels()] == ["a", "b", "c"]
    marks = {line.get_marker(): 0 for line in ax.get_lines()}
    for line in ax.get_lines():
        marks[line.get_marker()] += len(line.get_xdata())
    assert marks == {"+": 3, "_": 2}  # entries that are as good as zero carry none


def test_the_colour_scale_is_symmetric_about_zero():
    norm = plots.heat_map([[5.0, 0.0], [0.0, -0.1]]).get_images()[0].norm
    assert (norm.vmin, norm.vmax) == (-5.0, 5.0)
    assert norm(0.0) == pytest.approx(0.5)


def test_two_heat_maps_can_share_one_scale():
    norm = plots.signed_log(np.array([1e-6, 2.0]), decades=8)
    one, other = (plots.heat_map(size * np.eye(2), norm=norm) for size in (1e-6, 2.0))
    assert one.get_images()[0].norm is other.get_images()[0].norm
    assert [len(ax.get_lines()[0].get_xdata()) + len(ax.get_lines()[1].get_xdata()) for ax in (one, other)] == [2, 2]


@pytest.mark.parametrize("size", [1.0, 1e4])
@pytest.mark.parametrize("name", ["{}", "{}.weight", "layers.{}.attention.weight"])
@pytest.mark.parametrize("groups", [2, 22, 60])
def test_no_label_of_a_heat_map_leaves_the_picture(groups, name, size):
    matrix = size * np.random.default_rng(0).normal(size=(groups, groups))
    figure = plots.heat_map(matrix, names=[name.format(s) for s in range(groups)]).figure
    plots.png(figure)
    boxes = [axes.get_tightbbox() for axes in figure.axes]
    assert all(box.x0 >= 0 and box.y0 >= 0 for box in boxes)
    assert all(box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1 for box in boxes)


@pytest.mark.parametrize("groups", [3, 42, 100])
def test_names_of_many_groups_do_not_overlap(groups):
    ax = plots.heat_map(np.eye(groups), names=[f"layer {s}" for s in range(groups)])
    plots.png(ax.figure)
    boxes = [label.get_window_extent() for label in ax.get_yticklabels()]
    assert all(above.y0 >= below.y1 for above, below in pairwise(boxes))


@pytest.mark.parametrize("decades", [1, 3, 10])
def test_the_colour_bar_has_room_for_its_ticks(decades):
    ticks = plots.heat_map(7 * np.eye(2), decades=decades).figure.axes[1].get_yticks()
    assert 3 <= len(ticks) <= 11
    np.testing.assert_allclose(ticks, -ticks[::-1])


NAN, INF = float("nan"), float("inf")
# What a run that diverged leaves behind, in every picture of a run.
LEFT = {"NaN": NAN, "infinity": INF, "minus infinity": -INF, "a number": 2.0}


@pytest.mark.parametrize("rows", [slice(2, 4), slice(0, 4)])
@pytest.mark.parametrize("scale", ["linear", "log", "symlog"])
@pytest.mark.parametrize("left", LEFT)
def test_a_run_that_diverged_is_drawn_as_far_as_it_went(left, scale, rows):
    x, y, other = np.arange(4.0), np.array([1.0, 2.0, 3.0, 4.0]), np.array([4.0, 3.0, 2.0, 1.0])
    y[rows] = LEFT[left]
    if scale != "symlog":
        ax = plots.training_curves({"lost": (x, y), "other": (x, other)}, scale=scale)
        np.testing.assert_array_equal(line_data(ax, "lost")[:, 1], y)
        assert plots.png(ax.figure)
        ax = plots.training_curves({"lost": (x, y)}, scale=scale)
        assert plots.png(ax.figure)
    ax = plots.learning_rates(np.stack([y, other], 1), names=["lost", "other"], scale=scale)
    np.testing.assert_array_equal(line_data(ax, "lost")[:, 1], y)
    assert plots.png(ax.figure)
    assert all(ax.figure.bbox.contains(*text.get_window_extent().get_points()[0]) for text in ax.texts)


@pytest.mark.parametrize("sign", [1.0, -1.0, 0.0])
@pytest.mark.parametrize("scale", ["linear", "log", "symlog"])
def test_a_rate_that_a_logarithmic_axis_does_not_reach_is_named_at_its_foot(scale, sign):
    ax = plots.learning_rates([[0.1, 0.2], [0.3, sign * 0.4]], scale=scale)
    assert plots.png(ax.figure)
    assert all(ax.figure.bbox.contains(*text.get_window_extent().get_points()[0]) for text in ax.texts)
    reached = scale != "log" or sign > 0
    assert (ax.texts[1].xy[1] == sign * 0.4) == reached


@pytest.mark.parametrize("left", LEFT)
def test_the_picture_of_a_line_shows_where_the_loss_is_finite(left):
    t, truth = np.linspace(0, 1, 4), np.array([1.0, 2.0, 3.0, LEFT[left]])
    ax = plots.taylor_models(t, truth, {2: truth})
    assert ax.get_ylim() == pytest.approx((0.5, 3.5))
    assert plots.png(ax.figure)
    low, high = plots.taylor_models(t, np.full(4, LEFT[left]), {}).get_ylim()
    assert high - low == 2


@pytest.mark.parametrize("left", LEFT)
def test_a_path_that_diverged_leaves_the_picture(left):
    bowl = lambda x, y: x**2 + y**2  # noqa: E731
    ax = plots.level_sets(bowl, {"path": [[0.0, 0.0], [1.0, 1.0], [1.0, LEFT[left]]]})
    whole = plots.level_sets(bowl, {"path": [[0.0, 0.0], [1.0, 1.0], [1.0, 2.0 if left == "a number" else 1.0]]})
    assert ax.get_xlim() == whole.get_xlim()
    assert plots.png(ax.figure)
    # So does a function without a value, or with the same everywhere.
    for function in (lambda x, y: np.where(x > 0.5, LEFT[left], x), lambda x, y: np.full(x.shape, LEFT[left])):
        assert plots.png(plots.level_sets(function, extent=(0, 1, 0, 1)).figure)


def test_a_path_without_a_finite_point_asks_for_the_extent():
    with pytest.raises(ValueError, match="a path with a finite point, got none; pass extent="):
        plots.level_sets(lambda x, y: x, {"path": [[NAN, 0.0]]})


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.bool]
)
def test_numbers_of_every_kind_of_tensor_are_drawn(dtype):
    matrix = torch.tensor([[1, 0], [0, 2]]).to(dtype)
    drawn = plots.heat_map(matrix).get_images()[0].get_array()
    assert drawn.tolist() == matrix.to(torch.float64).tolist()


def test_a_zero_matrix_is_drawn():
    assert plots.heat_map(np.zeros((3, 3))).figure._repr_png_().startswith(b"\x89PNG")


@pytest.mark.parametrize("scale", ["linear", "symlog"])
def test_learning_rates_are_named_at_the_end_of_their_lines_and_inside_the_picture(scale):
    rates = RNG.normal(size=(15, 6)) * 10.0 ** np.arange(-3, 3)
    names = [f"group {s}" for s in range(6)]
    ax = plots.learning_rates(rates, range(1, 16), names=names, scale=scale, xlabel="epoch")
    for s, name in enumerate(names):
        np.testing.assert_allclose(line_data(ax, name)[:, 1], rates[:, s])
    assert sorted(t.get_text() for t in ax.texts) == names
    assert ax.get_xlabel() == "epoch"
    plots.png(ax.figure)
    frame = ax.figure.bbox
    boxes = [text.get_window_extent() for text in ax.texts]
    assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1 for box in boxes)
    # Heights are fractions of the axes; a line of text takes about .05.
    assert np.diff(sorted(text.xyann[1] for text in ax.texts)).min() > 0.05


def test_a_failed_update_is_a_gap():
    ax = plots.learning_rates([[0.1, 0.2], [np.nan, np.nan], [0.3, 0.1]])
    assert np.isnan(line_data(ax, "0")[1, 1])


def suggestion(rates, spread=0.5, names=None):
    rates = torch.as_tensor(rates, dtype=torch.float64)
    sizes = {n: torch.zeros(1) for n in names or [f"group {s}" for s in range(len(rates))]}
    partition = gn.Partition.from_groups({n: {n: p} for n, p in sizes.items()})
    return Suggestion(partition, rates, rates - spread * rates.abs(), rates + spread * rates.abs(), 20)


def marked(ax):
    """Label of the legend -> (x, row) of its markers, as drawn."""
    return {
        line.get_label(): line.get_xydata().tolist() for line in ax.get_lines() if not line.get_label().startswith("_")
    }


def test_suggested_rates_tell_negative_and_idle_groups_by_their_markers():
    ax = plots.suggested_rates(suggestion([0.5, -2.0, 0.0, 1e-3]))
    assert marked(ax) == {
        "rate": [[0.5, 0], [1e-3, 3]],
        "negative rate": [[-2.0, 1]],
        "no effect here": [[0.0, 2]],
    }
    dots = [line for line in ax.get_lines() if line.get_linestyle() == "None"]
    assert len({(line.get_marker(), line.get_markerfacecolor()) for line in dots}) == 3
    assert ax.get_ylim()[0] > ax.get_ylim()[1]  # the first group at the top
    (bars,) = ax.collections
    spans = [segment.tolist() for segment in bars.get_segments()]
    assert spans == [[[0.25, 0], [0.75, 0]], [[-3, 1], [-1, 1]], [[0, 2], [0, 2]], [[0.0005, 3], [0.0015, 3]]]


@pytest.mark.parametrize(
    ("rates", "scale"),
    [
        ([0.1, 10.0], "log"),
        ([1.0, 2.0], "linear"),
        ([0.1, -10.0], "symlog"),
        ([0.0], "symlog"),
        ([0.2, -0.3], "symlog"),
    ],
)
def test_the_axis_of_suggested_rates_fits_their_signs_and_sizes(rates, scale):
    ax = plots.suggested_rates(suggestion(rates))
    assert ax.get_xscale() == scale
    left, right = ax.get_xlim()
    assert sum(left <= tick <= right for tick in ax.get_xticks()) >= (1 if rates == [0.0] else 2)


@pytest.mark.parametrize("groups", [1, 2, 17, 60])
@pytest.mark.parametrize("name", ["group {}", "module.encoder.layers.{}.attention.projection.weight"])
def test_every_suggested_rate_is_named_inside_the_picture(groups, name):
    names = [name.format(s) for s in range(groups)]
    ax = plots.suggested_rates(suggestion(10.0 ** RNG.normal(size=groups) * RNG.choice([-1, 1], groups), names=names))
    plots.png(ax.figure)
    labels = ax.get_yticklabels()
    assert [label.get_text() for label in labels] == names
    frame, boxes = ax.figure.bbox, [label.get_window_extent() for label in labels]
    assert all(above.y0 >= below.y1 - 1 for above, below in pairwise(boxes))
    left, right = ax.get_xlim()
    drawn = [tick.label1 for tick in ax.xaxis.get_major_ticks() if left <= tick.get_loc() <= right]
    boxes += [ax.get_legend().get_window_extent(), *(label.get_window_extent() for label in drawn)]
    assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1 for box in boxes)
    assert not ax.get_legend().get_window_extent().overlaps(ax.get_window_extent())


def test_names_of_suggested_rates_are_thinned_where_the_axes_are_given():
    ax = plots.new_figure(columns=2).axes[0]
    assert plots.suggested_rates(suggestion(np.ones(60)), ax=ax) is ax
    plots.png(ax.figure)
    boxes = [label.get_window_extent() for label in ax.get_yticklabels()]
    assert 10 < len(boxes) < 60
    assert all(above.y0 >= below.y1 - 1 for above, below in pairwise(boxes))


def test_missing_quartiles_leave_out_the_bars():
    ax = plots.suggested_rates(suggestion([0.1, -0.2], spread=np.nan))
    assert plots.png(ax.figure)
    assert marked(ax)["rate"] == [[0.1, 0]]


def test_long_range_is_the_hessian_in_units_of_its_diagonal():
    root = RNG.normal(size=(5, 5))
    hessian, scale = root @ root.T, 10.0 ** RNG.normal(size=5)
    shown = plots.long_range(hessian, names=list("abcde")).get_images()[0].get_array()
    np.testing.assert_allclose(shown, [[a @ b / np.sqrt(a @ a * (b @ b)) for b in root] for a in root])
    rescaled = plots.long_range(hessian * np.outer(scale, scale))
    np.testing.assert_allclose(rescaled.get_images()[0].get_array(), shown)
    assert rescaled.figure.axes[1].get_ylabel() == "H_st / sqrt |H_ss H_tt|"
    assert np.abs(shown).max() <= 1 + 1e-12


def test_long_range_leaves_groups_without_curvature_blank():
    shown = plots.long_range([[4.0, 1.0, 2.0], [1.0, 0.0, 3.0], [2.0, 3.0, -1.0]]).get_images()[0].get_array()
    np.testing.assert_array_equal(np.ma.getmaskarray(shown), [[0, 1, 0], [1, 1, 1], [0, 1, 0]])
    assert shown[2, 2] == -1.0


def test_taylor_models_follow_the_loss_and_leave_the_picture_by_themselves():
    t = np.linspace(-1, 1, 21)
    ax = plots.taylor_models(t, np.exp(-t), {1: 1 - t, 2: 1 - t + 100 * t**2})
    assert ax.get_ylim()[1] < 5
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["true loss", "order 1", "order 2"]


def test_level_sets_show_every_path_from_its_start():
    paths = {"one": RNG.normal(size=(5, 2)), "other": RNG.normal(size=(7, 2))}
    ax = plots.level_sets(lambda x, y: x**2 + 3 * y**2, paths)
    for name, path in paths.items():
        np.testing.assert_allclose(line_data(ax, name), path)
    (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
    points = np.concatenate(list(paths.values()))
    assert (points >= [left, bottom]).all()
    assert (points <= [right, top]).all()
    assert ax.get_aspect() == 1.0


@pytest.mark.parametrize("scale", ["linear", "log"])
def test_training_curves_keep_their_own_lengths(scale):
    runs = {"a": (range(3), [3.0, 2.0, 1.0]), "b": ([0.0, 0.5], torch.tensor([2.0, 0.1]))}
    ax = plots.training_curves(runs, xlabel="seconds", scale=scale)
    assert (len(line_data(ax, "a")), len(line_data(ax, "b"))) == (3, 2)
    assert (ax.get_xlabel(), ax.get_yscale()) == ("seconds", scale)


def test_curves_differ_by_more_than_colour():
    runs = {str(i): ([0, 1], [i, i + 1]) for i in range(12)}
    assert len(set(looks(plots.training_curves(runs)))) == 12


def test_neighbouring_colours_differ_in_grey():
    # Luma of the first three curves, which is what a grey print keeps.
    weights = [0.299, 0.587, 0.114]
    grey = [np.dot(weights, matplotlib.colors.to_rgb(colour)) for colour in plots.COLOURS[:3]]
    assert abs(np.subtract.outer(grey, grey))[~np.eye(3, dtype=bool)].min() > 0.01


def test_a_given_axes_is_drawn_into_and_no_figure_is_kept_alive():
    figure = plots.new_figure(columns=2)
    assert plots.heat_map(np.eye(2), ax=figure.axes[1]) is figure.axes[1]
    gone = weakref.ref(plots.heat_map(np.eye(2)).figure)
    gc.collect()
    assert gone() is None


def test_the_same_numbers_give_the_same_bytes():
    one, two = (plots.png(plots.heat_map(np.eye(2)).figure) for _ in range(2))
    assert one == two
    assert b"matplotlib" not in one.lower()


@pytest.mark.parametrize(
    ("draw", "text"),
    [
        (lambda: plots.heat_map(np.ones((2, 3))), r"\(S, S\)"),
        (lambda: plots.heat_map(np.eye(2), names=["a"]), "2"),
        (lambda: plots.long_range([1.0, 2.0]), r"\(S, S\), got \(2,\)"),
        (lambda: plots.learning_rates([1.0, 2.0]), r"\(T, S\), got \(2,\)"),
        (lambda: plots.level_sets(lambda x, y: x), "paths"),
        (lambda: plots.level_sets(lambda x, y: x, {"p": [1.0, 2.0]}), r"\(n, 2\)"),
        (lambda: plots.training_curves({"a": ([1, 2], [1.0])}), r"as many values as points, \(2,\), got \(1,\)"),
        (lambda: plots.taylor_models([0, 1], [1.0], {}), r"as many values as points, \(2,\), got \(1,\)"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(draw, text):
    with pytest.raises(ValueError, match=text):
        draw()


def test_a_model_without_a_finite_value_is_drawn():
    axes = plots.taylor_models([0.0, 1.0, 2.0], [1.0, 2.0, 3.0], {3: [float("nan")] * 3})
    assert plots.png(axes.figure)
