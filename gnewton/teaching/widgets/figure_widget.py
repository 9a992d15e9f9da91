"""The one pattern of every widget: a scene, and the numbers of each of its states."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import anywidget
import traitlets

from gnewton.plots import Figure
from gnewton.teaching import picture
from gnewton.teaching.scene import Control, Scene, Shown, page_metadata, round_numbers, table, to_json

STATIC = Path(__file__).parent.parent / "static"


def script() -> str:
    """The browser's part as one script: the closed forms, then the renderer."""
    return "\n".join((STATIC / name).read_text(encoding="utf-8") for name in ("twins.js", "figures.js"))


class Handle:
    """A control as Python sees it: ``widget.strength.value = 2.0`` moves it, in the browser too."""

    def __init__(self, widget: "FigureWidget", control: Control) -> None:
        self._widget, self.control = widget, control

    @property
    def options(self) -> tuple[Any, ...]:
        """The values that it can have."""
        return self.control.values

    @property
    def value(self) -> Any:
        """The value that it has; setting another one redraws. Raises ValueError for one it does not have."""
        return self.control.values[self._widget._state[self.control.name]]

    @value.setter
    def value(self, value: Any) -> None:
        self._widget._state = self._widget._state | {self.control.name: self.control.index(value)}


class FigureWidget(anywidget.AnyWidget):  # type: ignore[misc]  # anywidget's traits are untyped
    """Controls above a picture that answers to them at once.

    A subclass hands its ``Scene`` to the constructor and writes ``numbers(**values)``, which returns what a state shows.
    Each control becomes an attribute of its name, a ``Handle``. ``sentence`` says what the picture shows now, ``figure``
    draws it with matplotlib, ``png`` as bytes: for a page where nothing moves, and for a reader who listens.
    """

    #: What the figure shows for the values of its controls, each given by its name.
    numbers: Callable[..., Shown]

    _esm = script() + "\nexport default { render: globalThis.gnewton.render };"
    _css = STATIC / "figures.css"
    _spec = traitlets.Dict().tag(sync=True)
    _state = traitlets.Dict().tag(sync=True)
    _answer = traitlets.Dict(allow_none=True, default_value=None).tag(sync=True)
    _table = traitlets.Dict(allow_none=True, default_value=None).tag(sync=True)
    _problem = traitlets.Unicode().tag(sync=True)

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self._known: tuple[dict[str, int], Shown | None] = ({}, None)
        for control in scene.controls:
            setattr(self, control.name, Handle(self, control))
        state = {control.name: control.at for control in scene.controls}
        first = self.numbers(**scene.values(state))  # an error of the first drawing shows in the cell
        self._known = (state, first)
        super().__init__(_spec=to_json(scene) | self._first(first), _state=state)
        self.observe(self._on_state, names="_state")

    @property
    def now(self) -> Shown:
        """What the figure shows now."""
        known, shown = self._known
        if known != self._state or shown is None:
            shown = self.numbers(**self.scene.values(self._state))
            self._known = (dict(self._state), shown)
        return shown

    @property
    def sentence(self) -> str:
        """The present state in one sentence: the figure for whoever does not see it."""
        return self.now.sentence

    @property
    def figure(self) -> Figure:
        """The present state, drawn by matplotlib."""
        return picture.draw(self.scene, self.now)

    @property
    def png(self) -> bytes:
        """The present state as the bytes of a PNG."""
        return picture.png(self.figure)

    def redraw(self) -> None:
        """Show the present state anew, where the numbers of a state may have changed."""
        self._known = ({}, None)
        self.set_trait("_table", None)
        self._refresh()

    def _tabulate(self) -> dict[str, Any]:
        """The numbers of all states, with which the browser answers by itself, while the kernel works, too."""
        if self._table is None:
            self._table = table(self.scene, self.numbers)
        return dict(self._table)

    def _first(self, shown: Shown) -> dict[str, Any]:
        return {} if self.scene.compute else {"first": _plain(shown)}

    def _on_state(self, change: Any) -> None:
        # A callback has no cell to show an error in: the browser shows it in place of the sentence.
        try:
            self._refresh()
            self._problem = ""
        except Exception as error:
            self._problem = f"{type(error).__name__}: {error}"

    def _refresh(self) -> None:
        if not self.scene.compute and self._table is None:
            self._answer = _plain(self.now)

    def describe(self) -> dict[str, Any]:
        """What a page without a kernel needs: the description and, where the browser cannot compute them, all numbers."""
        spec = dict(self._spec)
        controls = [dict(c) | {"at": self._state[c["name"]]} for c in spec["controls"]]
        spec |= {"controls": controls, "sentence": self.sentence}
        if self.scene.compute:
            return spec
        if not self.scene.table:
            return spec | {"controls": [], "first": _plain(self.now)}
        spec.pop("first")
        return spec | {"table": self._tabulate()}

    def __repr__(self) -> str:
        return f"{type(self).__name__}: {self.sentence}"

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        if self.scene.table and not self.scene.compute:
            with suppress(Exception):  # then each state is asked for when it is seen, and shows its error
                self._tabulate()
        view = super()._repr_mimebundle_(**kwargs) or {}
        data: Mapping[str, Any] = view[0] if isinstance(view, tuple) else view
        data = {**data, "text/plain": repr(self), "image/png": self.png}
        return data, self._spoken() | page_metadata(self.describe)

    def _spoken(self) -> dict[str, Any]:
        """The sentence as the picture's alternative text, and half its pixels as its width, where JupyterLab and nbconvert look."""
        return {"image/png": {"alt": self.sentence, "width": round(100 * picture.WIDTH)}}


def _plain(shown: Shown, digits: int = 6) -> dict[str, Any]:
    bundle: dict[str, Any] = round_numbers(
        {"numbers": list(shown.numbers), "panels": dict(shown.panels), "sentence": shown.sentence}, digits
    )
    return bundle
