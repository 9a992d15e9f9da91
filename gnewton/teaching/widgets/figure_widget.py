"""The one pattern of every widget: named controls, a picture, and a sentence that says what it shows."""

import gc
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from html import escape
from typing import Any

import ipywidgets

from gnewton.plots import Figure, png


class FigureWidget(ipywidgets.VBox):  # type: ignore[misc]  # ipywidgets is untyped
    """Controls above a picture that redraws when one of them changes.

    A subclass draws its artists once, names its controls, and writes ``draw()``, which updates the artists and returns
    one sentence: the text alternative of the picture in its present state. ``sentence`` keeps it, ``png`` is the picture
    as bytes. An error while redrawing is shown in the status line below. Without a kernel the saved picture remains.

    One state without any control, for the static reader: ``QuadraticBowl(condition=100).figure``, as a cell's last line.
    Every control's first value is an argument of the constructor. ``still`` fixes the panels where the first drawing
    puts them, so that nothing jumps; False where the labels of an axis change their width.
    """

    def __init__(self, figure: Figure, controls: Mapping[str, ipywidgets.Widget], still: bool = True) -> None:
        self.figure = figure
        self.sentence = ""
        width = int(figure.get_figwidth() * figure.dpi)
        # A fixed width: an image without one stretches to the cell, and the page jumps while it loads.
        self._image = ipywidgets.Image(format="png", width=width, layout=ipywidgets.Layout(max_width="100%"))
        self._caption, self._status = ipywidgets.HTML(), ipywidgets.HTML()
        self.redraw()
        if still:
            figure.set_layout_engine("none")  # and a redraw costs half
        for name, control in controls.items():
            setattr(self, name, control)
            control.observe(self._on_change, names="value")
        super().__init__([*controls.values(), self._image, self._caption, self._status])

    @property
    def png(self) -> bytes:
        """The picture as it is shown now."""
        return bytes(self._image.value)

    def draw(self) -> str:
        """Bring the artists up to date with the controls and return the sentence."""
        raise TypeError(f"expected {type(self).__name__} to define draw()")

    def redraw(self) -> None:
        """Draw now; an error is raised here, in the cell, not swallowed."""
        with _uncollected():
            self.sentence = self.draw()
            self._image.value = png(self.figure)
        self._caption.value = escape(self.sentence)
        self._status.value = ""

    def _on_change(self, change: Any) -> None:
        try:
            self.redraw()
        except Exception as error:
            self._status.value = f"<b>{escape(type(error).__name__)}:</b> {escape(str(error))}"

    def __repr__(self) -> str:
        return f"{type(self).__name__}: {self.sentence}"

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:
        bundle: dict[str, Any] = dict(super()._repr_mimebundle_(**kwargs) or {})
        return bundle | {"text/plain": repr(self), "image/png": self.png}


@contextmanager
def _uncollected() -> Iterator[None]:
    # Figures are full of cycles: a garbage collection in the middle took longer than the drawing. It can wait for the picture.
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def slider(text: str, values: Iterable[Any], value: Any, format: Callable[[Any], str] = str) -> Any:
    """A slider over a list of values, each shown by ``format``; ValueError where ``value`` is none of them."""
    return _control(ipywidgets.SelectionSlider, text, [(format(v), v) for v in values], value)


def choice(text: str, values: Iterable[Any], value: Any) -> Any:
    """A drop-down list of values, or of (name, value); ValueError where ``value`` is none of them."""
    return _control(ipywidgets.Dropdown, text, list(values), value)


def _control(kind: Any, text: str, options: list[Any], value: Any) -> Any:
    known = [one[1] if isinstance(one, tuple) else one for one in options]
    if value not in known:
        listed = ", ".join(repr(one) if isinstance(one, str) else str(one) for one in known)
        raise ValueError(f"expected {text} to be one of {listed}, got {value!r}")
    return kind(
        options=options,
        value=value,
        description=text,
        style={"description_width": "12em"},
        layout=ipywidgets.Layout(width="34em", max_width="100%"),
    )
