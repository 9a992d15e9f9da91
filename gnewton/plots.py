"""Pictures of what gnewton computes: data in, matplotlib Axes out.

Every function draws into ``ax``, or into a new figure when ``ax`` is None, and returns the Axes. None of them touches
pyplot, so nothing is kept alive. In a notebook end the cell with ``ax.figure`` (no semicolon) to show it.
Colours are Okabe and Ito's, readable by the colour-blind; every colour comes with a line style, a marker or a sign as
well, so that the pictures can be read in grey.

=================  =====================================================================
heat_map           the summary Hessian (H-bar), groups named, signs marked
long_range         which groups interact: H-bar scaled so that its diagonal is 1
learning_rates     one line per group over time
suggested_rates    one rate per group, with its spread over the mini-batches
taylor_models      the true loss against its Taylor models along one eta
level_sets         level sets of a function of two variables, with trajectories
training_curves    loss or accuracy of several runs, by step or by seconds
new_figure         an empty figure with panels to draw into
=================  =====================================================================
"""

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib.figure
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import SymLogNorm
from numpy.typing import ArrayLike, NDArray

from gnewton.monitor import RateMonitor
from gnewton.tuning import Suggestion

__all__ = [
    "heat_map",
    "learning_rates",
    "level_sets",
    "long_range",
    "new_figure",
    "suggested_rates",
    "taylor_models",
    "training_curves",
    "watched_rates",
]

Array = NDArray[np.float64]

# Okabe and Ito's palette without its yellow, which disappears on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#56B4E9", "#E69F00", "#7A4A1E")
DASHES: tuple[Any, ...] = (
    "-", "--", "-.", ":", (0, (7, 2)), (0, (3, 1, 1, 1, 1, 1)), (0, (1, 1)), (0, (9, 2, 2, 2)), (0, (5, 1, 1, 1)),
)  # fmt: skip
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">", "p")
GREY = "#777777"


class Figure(matplotlib.figure.Figure):
    """A figure made without pyplot that shows itself in a notebook as a PNG."""

    def _repr_png_(self) -> bytes:
        return png(self)


def png(figure: matplotlib.figure.Figure) -> bytes:
    """The figure as the bytes of a PNG file, at the figure's own size and resolution."""
    buffer = io.BytesIO()
    # Software is left out: a matplotlib version inside the file would change saved notebooks for no visible reason.
    # The canvas itself, not savefig, which would draw everything twice.
    FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
    return buffer.getvalue()


def new_figure(rows: int = 1, columns: int = 1, *, width: float | None = None, height: float | None = None) -> Figure:
    """An empty figure of ``rows`` by ``columns`` panels, kept by nobody but the caller.

    Args:
        rows, columns: how many panels; they are ``figure.axes``, row by row.
        width, height: in inches; None for the usual ones.

    >>> figure = new_figure(columns=2)
    >>> len(figure.axes)
    2
    """
    size = (width or min(4.4 + 2.4 * columns, 9.6) - 0.6 * (columns == 1), height or 3.8 * rows)
    figure = Figure(figsize=size, dpi=100, layout="constrained")
    figure.subplots(rows, columns)
    return figure


def style(index: int, marker: bool = False) -> dict[str, Any]:
    """Colour, line style and (optionally) marker of the ``index``-th curve; the three cycles have coprime lengths."""
    look = {"color": COLOURS[index % len(COLOURS)], "linestyle": DASHES[index % len(DASHES)]}
    return look | {"marker": MARKERS[index % len(MARKERS)], "markersize": 5} if marker else look


def array(values: Any) -> Array:
    """Numbers of any kind, a tensor on any device too, as a float64 array."""
    if isinstance(values, torch.Tensor):
        # In two steps: not every device knows float64, and numpy knows no bfloat16.
        values = values.detach().cpu().to(torch.float64)
    return np.asarray(values, dtype=np.float64)


def heat_map(
    hessian: ArrayLike,
    names: Sequence[str] | None = None,
    *,
    ax: Axes | None = None,
    decades: float = 3.0,
    norm: SymLogNorm | None = None,
    label: str = "H̄ (unit of the loss)",
) -> Axes:
    """Heat map of the summary Hessian (H-bar), one row and one column per group.

    The colour scale is symmetric about zero: logarithmic over ``decades`` factors of ten below the largest entry,
    linear beneath. Every cell on the logarithmic part carries a mark for its sign.

    Args:
        hessian: (S, S) array or tensor; its unit is that of the loss.
        names: S group names, in the order of the rows; numbers when None.
        ax: where to draw; a new figure when None.
        decades: factors of ten shown logarithmically.
        norm: a colour scale that several heat maps share, made by ``signed_log``; ``decades`` then has no part.
        label: what the colours mean, with its unit.

    Raises:
        ValueError: the matrix is not square, or the names do not fit it.

    >>> ax = heat_map([[1.0, 6.0], [6.0, -16.0]], names=["a", "b"])
    >>> ax.get_images()[0].get_array().shape
    (2, 2)
    """
    matrix = _square(hessian)
    labels = _names(names, len(matrix))
    if ax is None:
        figure = new_figure(width=5.4, height=4.4)
        # Square cells leave a margin on one side or the other, which the usual layout counts as room for the labels.
        figure.set_layout_engine("compressed")
        ax = figure.axes[0]
    norm = norm or signed_log(matrix, decades)
    image = ax.imshow(matrix, cmap="RdBu_r", norm=norm, interpolation="nearest")
    every = slice(None, None, 1 + (len(labels) - 1) // 24)
    ticks, shown = range(len(labels))[every], labels[every]
    ax.set_xticks(ticks, shown, rotation=45, ha="right", rotation_mode="anchor", fontsize=_small(shown))
    ax.set_yticks(ticks, shown, fontsize=_small(shown))
    ax.set(xlabel="group", ylabel="group")
    mark_signs(ax, matrix, norm)
    bar = ax.figure.colorbar(image, ax=ax, ticks=_signed_ticks(norm.linthresh, norm.vmax or 1.0))
    bar.minorticks_off()
    bar.set_label(label)
    return ax


def long_range(hessian: ArrayLike, names: Sequence[str] | None = None, ax: Axes | None = None) -> Axes:
    """Which groups interact, however far apart: heat map of ``H_st / sqrt(|H_ss H_tt|)``, invariant under rescaling a group.

    The diagonal is 1 or -1. Beside it, sizes near 0 say that two groups could be tuned one by one, sizes near 1 that they
    share their curvature; beyond 1, where the colours end, the Hessian is indefinite. Blank where a group has no curvature
    of its own.

    Args:
        hessian: (S, S) array or tensor.
        names: S group names, in the order of the rows; numbers when None.
        ax: where to draw; a new figure when None.

    Raises:
        ValueError: the matrix is not square, or the names do not fit it.

    >>> ax = long_range([[4.0, 3.0], [3.0, 9.0]])
    >>> ax.get_images()[0].get_array().tolist()
    [[1.0, 0.5], [0.5, 1.0]]
    """
    matrix = _square(hessian)
    root = np.sqrt(np.abs(np.diagonal(matrix)))
    root[root == 0] = np.nan
    # One root after the other: their product might leave the range of float64.
    scaled = matrix / root / root[:, None]
    return heat_map(scaled, names, ax=ax, norm=signed_log(np.ones(1), decades=1.0), label="H_st / sqrt |H_ss H_tt|")


def signed_log(matrix: Array, decades: float = 3.0) -> SymLogNorm:
    """A colour scale symmetric about zero that fits ``matrix`` (any shape); all zeros get the scale of 1."""
    peak = float(np.max(np.abs(matrix), initial=0.0, where=np.isfinite(matrix))) or 1.0
    return SymLogNorm(linthresh=peak * 10.0**-decades, vmin=-peak, vmax=peak, base=10)


def mark_signs(ax: Axes, matrix: Array, norm: SymLogNorm) -> list[Any]:
    """Put + and - on the cells of a heat map that are not near zero; returns the artists, two for + and two for -."""
    size = min(12.0, 0.45 * 72 * ax.bbox.width / ax.figure.dpi / len(matrix))
    marks = []
    for sign, marker in ((1, "+"), (-1, "_")):
        # Dark cells need light marks.
        dark = np.abs(np.asarray(norm(matrix)) - 0.5) > 0.3
        shown = sign * matrix > norm.linthresh
        for mask, colour in ((shown & dark, "white"), (shown & ~dark, "black")):
            rows, columns = np.nonzero(mask)
            marks += ax.plot(columns, rows, linestyle="", marker=marker, markersize=size, color=colour)
    return marks


def _signed_ticks(linear: float, peak: float) -> list[float]:
    """Powers of ten between these two sizes, on both sides of zero."""
    high, low = int(np.floor(np.log10(peak))), int(np.ceil(np.log10(linear)))
    every = 1 + max(high - low, 0) // 4  # about four on each side are readable
    powers = [10.0**k for k in range(high, low - 1, -every)][::-1]
    return [-power for power in reversed(powers)] + [0.0, *powers]


def learning_rates(
    rates: ArrayLike,
    steps: ArrayLike | None = None,
    *,
    names: Sequence[str] | None = None,
    ax: Axes | None = None,
    scale: str = "linear",
    xlabel: str = "step",
) -> Axes:
    """The learning rates (eta) of the groups over time: one line each, named at its right end.

    Args:
        rates: (T, S) array or tensor, dimensionless; NaN leaves a gap (an update without a solution).
        steps: (T,) step numbers; 0, 1, ... when None.
        names: S group names; numbers when None.
        ax: where to draw; a new figure when None.
        scale: "linear", "log" or "symlog" (logarithmic on both sides of zero).
        xlabel: what ``steps`` counts.

    Raises:
        ValueError: the shapes do not fit each other, or there is no row.

    >>> ax = learning_rates([[0.1, 0.2], [0.3, 0.1]], steps=[0, 10], names=["weights", "biases"])
    >>> [text.get_text() for text in ax.texts]
    ['weights', 'biases']
    """
    table = array(rates)
    if table.ndim != 2 or not table.size:
        raise ValueError(f"expected learning rates of shape (T, S), got {table.shape}; stack one row per update")
    labels = _names(names, table.shape[1])
    when = np.arange(len(table), dtype=np.float64) if steps is None else _same_length(array(steps), table[:, 0])
    ax = ax or new_figure().axes[0]
    ax.axhline(0.0, color=GREY, linewidth=0.8)
    every = max(1, len(when) // 8)
    for s, column in enumerate(table.T):
        ax.plot(when, column, **style(s, marker=True), markevery=every, linewidth=1.6, label=labels[s])
    _set_signed_scale(ax, scale, table)
    ax.set(xlabel=xlabel, ylabel="learning rate η of the group")
    _label_ends(ax, when, table, labels)
    return ax


def suggested_rates(suggestion: Suggestion, ax: Axes | None = None) -> Axes:
    """One dot per group for the rate that ``suggest_learning_rates`` found; the bar spans the quartiles over the batches.

    A filled circle is a rate to use, an open square a negative one, a cross a group without effect. Where every number is
    positive the axis is logarithmic, or linear within a factor of ten; else it is logarithmic on both sides of zero. The
    first group stands at the top.

    Args:
        suggestion: S groups; a new figure grows with S and names each, a given one names as many as fit.
        ax: where to draw; a new figure when None.

    >>> import gnewton as gn
    >>> from gnewton.tuning import suggest_learning_rates
    >>> model = gn.models.Quadratic([2.0, 80.0])
    >>> ax = suggested_rates(suggest_learning_rates(model, gn.Partition.by_scalar(model), cubic=0.0))
    >>> [label.get_text() for label in ax.get_yticklabels()], ax.get_xscale()
    (['theta[0]', 'theta[1]'], 'log')
    """
    rates, rows = array(suggestion.learning_rates), np.arange(len(suggestion.names))
    spans = np.stack([array(suggestion.low), array(suggestion.high)])
    ax = ax or new_figure(width=7.0, height=1.6 + 0.2 * len(rows)).axes[0]
    ax.hlines(rows, *spans, color=GREY, linewidth=3.0, alpha=0.6, label="quartiles over batches")
    for label, marker, fill, chosen in (
        ("rate", "o", COLOURS[0], rates > 0),
        ("negative rate", "s", "white", rates < 0),
        ("no effect here", "x", COLOURS[0], rates == 0),
    ):
        if chosen.any():
            (dots,) = ax.plot(rates[chosen], rows[chosen], linestyle="", marker=marker, color=COLOURS[0], label=label)
            dots.set_markerfacecolor(fill)
    _set_rate_scale(ax, rates, spans)
    # Nine points a line: a name that would print over its neighbour is left out.
    every = int(np.ceil(9 * len(rows) * ax.figure.dpi / (72 * ax.bbox.height)))
    ax.set_yticks(rows[::every], suggestion.names[::every], fontsize=8)
    ax.set(xlabel="learning rate", ylim=(len(rows) - 0.4, -0.6))
    ax.grid(axis="y", color="#dddddd", linewidth=0.6)
    ax.legend(fontsize=8, frameon=False, ncols=2, loc="lower right", bbox_to_anchor=(1.0, 1.0), borderaxespad=0.2)
    return ax


def watched_rates(monitor: RateMonitor, ax: Axes | None = None) -> Axes:
    """The ratios that a ``RateMonitor`` saw: above 1 a group's rate is so many times too small; the words above the picture.

    What is not positive and finite leaves a gap; the groups of the first three sentences are named by them.

    >>> import torch, gnewton as gn
    >>> model = gn.models.Quadratic([1.0], dtype=torch.float64)
    >>> sgd = torch.optim.SGD(model.parameters(), lr=0.2)
    >>> monitor = gn.RateMonitor(sgd, gn.Partition.single(model), period=1)
    >>> for _ in range(4):
    ...     monitor.look(model)
    ...     sgd.zero_grad(); model().backward(); _ = sgd.step()
    >>> watched_rates(monitor).get_title(loc="left")
    'all: the rate is 5.0 times too small'
    """
    if not monitor.history:
        raise ValueError("expected a monitor with a look at least, got none; call look(loss) before every step")
    ax = ax or new_figure().axes[0]
    when, table = [look.step for look in monitor.history], array([look.group_ratios for look in monitor.history])
    table[~(np.isfinite(table) & (table > 0))] = np.nan
    ax.axhspan(0.5, 1.0, color=GREY, alpha=0.2, linewidth=0)
    for s, column in enumerate(table.T):
        ax.plot(when, column, **style(s, marker=True), linewidth=1.4, label=monitor.partition.names[s])
    ax.set(yscale="log", xlabel="step", ylabel="Newton's step over the step taken")
    ax.set_title("\n".join(monitor.words()[:3]), loc="left", fontsize=9)
    return ax


def _set_rate_scale(ax: Axes, rates: Array, spans: Array) -> None:
    """Every rate apart from zero by its sign, whatever their sizes."""
    sizes, numbers = np.abs(rates[rates != 0]), np.concatenate([rates[None], spans])
    if not (numbers <= 0).any():
        low, high = 0.9 * np.nanmin(numbers), 1.1 * np.nanmax(numbers)
        if high < 10 * low:
            ax.set_xlim(left=0.0)
        else:  # whole decades, so that at least two ticks are named
            ax.set(xscale="log", xlim=(10.0 ** np.floor(np.log10(low)), 10.0 ** np.ceil(np.log10(high))))
        return
    peak = float(np.max(sizes, initial=0.0)) or 1.0
    linear = 10.0 ** np.floor(np.log10(max(np.min(sizes, initial=peak), 1e-6 * peak)))
    ax.axvline(0.0, color=GREY, linewidth=0.8)
    ax.set_xscale("symlog", linthresh=linear)
    ax.autoscale_view()
    low, high = ax.get_xlim()
    ax.set_xticks([tick for tick in _signed_ticks(linear, max(-low, high)) if low <= tick <= high])


def _set_signed_scale(ax: Axes, scale: str, values: Array) -> None:
    if scale != "symlog":
        ax.set_yscale(scale)
        return
    sizes = np.abs(values[np.isfinite(values) & (values != 0)])
    linear = float(np.median(sizes)) / 10 if sizes.size else 1.0
    ax.set_yscale("symlog", linthresh=linear)
    ax.autoscale_view()
    low, high = ax.get_ylim()
    # Ticks next to zero would print over it.
    ax.set_yticks([tick for tick in ax.get_yticks() if (tick == 0 or abs(tick) > linear) and low <= tick <= high])


def _label_ends(ax: Axes, when: Array, table: Array, labels: Sequence[str]) -> None:
    """Write each name at the right of its line, moved apart vertically where lines end close together."""
    last = [next((v for v in reversed(column) if np.isfinite(v)), 0.0) for column in table.T]
    ends = np.column_stack([np.full(len(last), when[-1]), last])
    ax.autoscale_view()  # limits are lazy, and the transform below needs them now
    heights = ax.transAxes.inverted().transform(ax.transData.transform(ends))[:, 1]
    # What the axes do not reach, as zero and below on a logarithmic one, is named at their foot.
    outside = ~((heights >= 0) & (heights <= 1))
    ends[outside, 1], heights[outside] = ax.get_ylim()[0], 0.0
    ends[:, 0] = np.clip(ends[:, 0], *ax.get_xlim())
    for s, height in enumerate(spread(heights, gap=min(0.065, 1.0 / len(labels)))):
        colour = style(s)["color"]
        ax.annotate(
            labels[s], ends[s], xytext=(1.03, height), textcoords="axes fraction", va="center",
            fontsize=_small(labels), arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 1.2},
            annotation_clip=False,
        )  # fmt: skip


def spread(heights: Array, gap: float) -> Array:
    """The heights moved apart to at least ``gap``, in the same order, centred on where they were."""
    order = np.argsort(heights, kind="stable")
    steps = gap * np.arange(len(heights))
    # With the equal steps taken off, "at least gap apart" reads "not decreasing".
    raised = np.maximum.accumulate(heights[order] - steps)
    lowered = np.minimum.accumulate((heights[order] - steps)[::-1])[::-1]
    apart = np.empty_like(heights)
    apart[order] = (raised + lowered) / 2 + steps
    return apart


def taylor_models(t: ArrayLike, loss: ArrayLike, models: Mapping[int, ArrayLike], *, ax: Axes | None = None) -> Axes:
    """The true loss along one eta against its Taylor models: t is mapped to L(theta - t U I eta).

    The vertical range follows the true loss; a model that leaves it leaves the picture.

    Args:
        t: (T,) multiples of eta.
        loss: (T,) true values.
        models: order -> (T,) values of the Taylor model of that order.
        ax: where to draw; a new figure when None.

    Raises:
        ValueError: the lengths differ.

    >>> t = np.linspace(-1, 1, 5)
    >>> ax = taylor_models(t, np.exp(-t), {1: 1 - t, 2: 1 - t + t**2 / 2})
    >>> [line.get_label() for line in ax.get_lines()]
    ['true loss', 'order 1', 'order 2']
    """
    where = array(t)
    truth = _same_length(array(loss), where)
    ax = ax or new_figure().axes[0]
    ax.plot(where, truth, color="black", linewidth=2.6, label="true loss")
    for order, values in sorted(models.items()):
        look = style(order - 1, marker=True) | {"linestyle": DASHES[order % len(DASHES)]}
        curve = _same_length(array(values), where)
        every = _spaced(0.1, where, curve)
        ax.plot(where, curve, **look, markevery=every, linewidth=1.5, label=f"order {order}")
    ax.set_ylim(*loss_range(truth))
    ax.set(xlabel="t (multiple of η)", ylabel="loss")
    ax.legend(frameon=False)
    return ax


def _spaced(distance: float, x: Array, y: Array) -> float | None:
    # matplotlib spaces markers along the finite part of a curve, and fails where there is none.
    return distance if np.isfinite(x + y).any() else None


def loss_range(truth: Array) -> tuple[float, float]:
    """Vertical limits that show the true loss with room for the models around it."""
    finite = truth[np.isfinite(truth)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    margin = 0.25 * (high - low) or 1.0
    return low - margin, high + margin


def level_sets(
    function: Callable[[Array, Array], ArrayLike],
    paths: Mapping[str, ArrayLike] | None = None,
    *,
    extent: tuple[float, float, float, float] | None = None,
    levels: int = 12,
    ax: Axes | None = None,
    equal: bool = True,
) -> Axes:
    """Level sets of a function of two variables, and trajectories over them.

    The levels crowd towards the smallest value, geometrically, so that a narrow valley shows.

    Args:
        function: takes two arrays of one shape, x and y, and returns the values in that shape.
        paths: name -> (n, 2) points, the start first.
        extent: (left, right, bottom, top); the paths with a margin when None.
        levels: how many level sets.
        ax: where to draw; a new figure when None.
        equal: one scale on both axes, so that right angles look right.

    Raises:
        ValueError: neither paths nor extent, or a path that is not (n, 2).

    >>> ax = level_sets(lambda x, y: x**2 + 4 * y**2, {"descent": [[1, 1], [0.5, 0.2], [0, 0]]})
    >>> ax.get_legend().get_texts()[0].get_text()
    'descent'
    """
    tracks = {name: _track(name, path) for name, path in (paths or {}).items()}
    left, right, bottom, top = extent = extent or _around(tracks)
    ax = ax or new_figure(width=5.6, height=4.8).axes[0]
    contours(ax, function, extent, levels=levels)
    for index, (name, track) in enumerate(tracks.items()):
        ax.plot(*track.T, **style(index, marker=True), linewidth=1.5, label=name)
        ax.plot(*track[0], marker="o", markersize=11, markerfacecolor="none", color="black")
    ax.set(xlim=(left, right), ylim=(bottom, top), xlabel="first parameter", ylabel="second parameter")
    ax.set_aspect("equal" if equal else "auto")
    if tracks:
        ax.legend(framealpha=0.9)
    return ax


def contours(
    ax: Axes,
    function: Callable[[Array, Array], ArrayLike],
    extent: tuple[float, float, float, float],
    *,
    levels: int = 12,
) -> Any:
    """The level sets alone, without paths; returns matplotlib's contour set."""
    left, right, bottom, top = extent
    x, y = np.meshgrid(np.linspace(left, right, 161), np.linspace(bottom, top, 161))
    values = np.ma.masked_invalid(array(function(x, y)))
    finite = values.compressed()
    reach = float(np.ptp(finite)) if finite.size else 0.0
    if reach == 0:  # a plain has no level sets
        return ax.contour(x, y, np.zeros_like(x), levels=[1.0, 2.0], colors=GREY)
    above = np.geomspace(1e-3, 1.0, levels) * reach
    return ax.contour(x, y, values, levels=values.min() + above, colors=GREY, linewidths=0.7)


def training_curves(
    runs: Mapping[str, tuple[ArrayLike, ArrayLike]],
    ax: Axes | None = None,
    *,
    xlabel: str = "step",
    ylabel: str = "training loss",
    scale: str = "linear",
) -> Axes:
    """One curve per run: loss or accuracy, by step or by seconds, whichever pairs are given.

    Args:
        runs: name -> (x, y), each (n,); the runs may differ in length.
        ax: where to draw; a new figure when None.
        xlabel: what x is, with its unit: "step", "epoch", "time (s)".
        ylabel: what y is: "training loss", "test accuracy".
        scale: "linear" or "log", of the vertical axis.

    Raises:
        ValueError: x and y of a run differ in length.

    >>> ax = training_curves({"SGD": ([0, 1, 2], [2.3, 1.0, 0.5])}, ylabel="test loss", scale="log")
    >>> ax.get_ylabel()
    'test loss'
    """
    ax = ax or new_figure().axes[0]
    for index, (name, (x, y)) in enumerate(runs.items()):
        where = array(x)
        values = _same_length(array(y), where)
        every = _spaced(0.12, where, values)
        ax.plot(where, values, **style(index, marker=True), markevery=every, linewidth=1.6, label=name)
    ax.set(xlabel=xlabel, ylabel=ylabel, yscale=scale)
    ax.grid(color="#dddddd", linewidth=0.6)
    if runs:
        ax.legend(framealpha=0.9)
    return ax


def _square(hessian: Any) -> Array:
    matrix = array(hessian)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not matrix.size:
        raise ValueError(f"expected a Hessian of shape (S, S), got {matrix.shape}; pass summary.hessian")
    return matrix


def _names(names: Sequence[str] | None, count: int) -> list[str]:
    labels = [str(s) for s in range(count)] if names is None else [str(name) for name in names]
    if len(labels) != count:
        raise ValueError(f"expected {count} group names, got {len(labels)}; pass partition.names")
    return labels


def _same_length(values: Array, reference: Array) -> Array:
    if values.shape != reference.shape or values.ndim != 1:
        raise ValueError(f"expected as many values as points, {reference.shape}, got {values.shape}")
    return values


def _track(name: str, path: Any) -> Array:
    points = array(path)
    if points.ndim != 2 or points.shape[1] != 2 or not len(points):
        raise ValueError(f"expected the path {name!r} of shape (n, 2), got {points.shape}; one row per point")
    return points


def _around(tracks: Mapping[str, Array]) -> tuple[float, float, float, float]:
    if not tracks:
        raise ValueError("expected paths or an extent, got neither; pass extent=(left, right, bottom, top)")
    points = np.concatenate(list(tracks.values()))
    points = points[np.isfinite(points).all(axis=1)]  # a path that diverged leaves the picture
    if not len(points):
        raise ValueError("expected a path with a finite point, got none; pass extent=(left, right, bottom, top)")
    (left, bottom), (right, top) = points.min(axis=0), points.max(axis=0)
    margin = 0.2 * max(right - left, top - bottom) or 1.0
    return left - margin, right + margin, bottom - margin, top + margin


def _small(labels: Sequence[str]) -> float:
    """A font size (in points) at which this many names stand beside each other."""
    return float(np.clip(140 / len(labels), 5, 10))
