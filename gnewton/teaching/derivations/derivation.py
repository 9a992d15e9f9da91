"""Derivations that can be checked: every line an equation, the reason why it is legal, and both sides as numbers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from html import escape
from typing import Any

import ipywidgets
from torch import Tensor

from gnewton.derivatives.rules.linear import load_forward_mode
from gnewton.teaching.scene import Scene, page_metadata, slider

Sides = Callable[[Any], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Line:
    r"""One line: ``equation`` in LaTeX, ``why`` it is legal (mathematics between \( and \)), and ``sides(example)``, its left and right side as tensors.

    ``tolerance`` is how far apart they may be, relative to the right side: by default what float64 roundings explain.
    """

    equation: str
    why: str
    sides: Sides
    tolerance: float = 1e-10

    def residual(self, example: Any) -> float:
        """Largest entry of left - right, over the largest of right (over 1 where that is 0): dimensionless."""
        left, right = self.sides(example)
        return float((left - right).abs().max() / (right.abs().max() or 1.0))


@dataclass(frozen=True)
class Derivation:
    """A title, the example that the lines are checked on (made from a seed), and the lines.

    ``sliders``: what else may be chosen about the example, each a name and its values, the one to begin with first. The
    example is called with a value for each, by name: ``example(seed, size=2)``.

    >>> import torch
    >>> def numbers(seed, size): return torch.arange(1.0, 1 + size) + seed
    >>> square = Line("(a + a)^2 = 4 a^2", "multiply out", lambda a: ((a + a) ** 2, 4 * a**2))
    >>> derivation = Derivation("A square", numbers, [square], sliders={"size": (1, 2, 5)})
    >>> derivation.holds(seed=3), derivation.holds(seed=3, size=5)
    ([True], [True])
    """

    title: str
    example: Callable[..., Any]
    lines: Sequence[Line]
    sliders: Mapping[str, Sequence[Any]] = field(default_factory=dict)

    def residuals(self, seed: int = 0, **chosen: Any) -> list[float]:
        """The residual of every line on the example of this seed; ``chosen``: values of sliders, the first where not given."""
        load_forward_mode()  # quietly: a reader's cell does not show torch's own warnings
        example = self.example(seed, **{name: values[0] for name, values in self.sliders.items()} | chosen)
        return [line.residual(example) for line in self.lines]

    def holds(self, seed: int = 0, **chosen: Any) -> list[bool]:
        """Which lines hold to their tolerance."""
        residuals = self.residuals(seed, **chosen)
        return [residual <= line.tolerance for line, residual in zip(self.lines, residuals, strict=True)]

    def to_html(self, seed: int = 0, shown: int | None = None, residuals: bool = False, **chosen: Any) -> str:
        r"""The first ``shown`` lines (all by default) with their verdicts; mathematics between \( and \).

        JupyterLab and the book's MathJax both read these delimiters, the book only inside the class ``mathjax_process``.
        """
        parts = []
        for line, residual in list(zip(self.lines, self.residuals(seed, **chosen), strict=True))[:shown]:
            verdict = "holds" if residual <= line.tolerance else "FAILS"
            number = f" (off by {residual:.0e})" if residuals else ""
            parts.append(
                f"<li style='margin-bottom:.8em'>{_set(line.equation)}<br>"
                f"<i>{escape(line.why)}</i><br>"
                f"<span class='gn-verdict'>checked: {verdict} to {line.tolerance:.0e}{number}</span></li>"
            )
        return f"<div class='mathjax_process'><b>{escape(self.title)}</b><ol>{''.join(parts)}</ol></div>"


class Walker(ipywidgets.VBox):  # type: ignore[misc]  # ipywidgets is untyped
    """A derivation one line at a time: next, back, show all, and another example for the live checks.

    ``shown`` is how many lines are on the page; ``seed`` a slider, ``sliders`` those that the derivation brings, by name.
    Without a kernel all lines are there to read, checked on the first example; a page of the book walks through them, with
    the residuals of all examples saved beside.

    >>> import torch
    >>> line = Line("2a = a + a", "add", lambda a: (2 * a, a + a))
    >>> walker = Walker(Derivation("Double", lambda seed: torch.tensor(float(seed)), [line, line]))
    >>> walker.next.click(); walker
    Walker: Double, 2 of 2 lines, all hold.
    """

    def __init__(self, derivation: Derivation, shown: int = 1) -> None:
        self.derivation, self.shown = derivation, shown
        self.back, self.next = ipywidgets.Button(description="Back"), ipywidgets.Button(description="Next")
        self.all = ipywidgets.Button(description="Show all")
        self.seed = ipywidgets.IntSlider(value=0, min=0, max=9, description="seed")
        self.sliders = {
            name: _slider(name.replace("_", " "), sorted(values), values[0])
            for name, values in derivation.sliders.items()
        }
        self._page = ipywidgets.HTMLMath()
        for button, move in ((self.back, -1), (self.next, 1), (self.all, len(derivation.lines))):
            button.on_click(lambda _, move=move: self._move(move))
        for control in (self.seed, *self.sliders.values()):
            control.observe(lambda _: self._show(), names="value")
        self._show()
        buttons = ipywidgets.HBox([self.back, self.next, self.all, self.seed])
        super().__init__([buttons, *self.sliders.values(), self._page])

    @property
    def chosen(self) -> dict[str, Any]:
        """The values of the derivation's sliders."""
        return {name: control.value for name, control in self.sliders.items()}

    def _move(self, lines: int) -> None:
        self.shown = min(max(self.shown + lines, 1), len(self.derivation.lines))
        self._show()

    def _show(self) -> None:
        try:
            self._page.value = self.derivation.to_html(self.seed.value, self.shown, residuals=True, **self.chosen)
        except Exception as error:  # a callback has no cell to show it in
            self._page.value = f"<b>{escape(type(error).__name__)}:</b> {escape(str(error))}"
        self.back.disabled = self.shown == 1
        self.next.disabled = self.all.disabled = self.shown == len(self.derivation.lines)

    def __repr__(self) -> str:
        holds = self.derivation.holds(self.seed.value, **self.chosen)
        verdict = "all hold" if all(holds) else f"{holds.count(False)} fail"
        return f"Walker: {self.derivation.title}, {self.shown} of {len(holds)} lines, {verdict}."

    def describe(self) -> dict[str, Any]:
        """What a page without a kernel needs: the controls, and for every state the residual of each line."""
        stops = {name: sorted(values) for name, values in self.derivation.sliders.items()}
        controls = (
            slider("seed", "seed", range(self.seed.max + 1), self.seed.value),
            *(slider(name, name.replace("_", " "), stops[name], value) for name, value in self.chosen.items()),
        )
        scene = Scene(controls, (), ())
        rows = [" ".join(f"{r:.0e}" for r in self.derivation.residuals(**state)) for state in scene.states()]
        limits = [line.tolerance for line in self.derivation.lines]
        return {"walker": limits, "controls": [asdict(control) for control in controls], "rows": rows}

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        view = super()._repr_mimebundle_(**kwargs) or {}
        page = self.derivation.to_html(self.seed.value, **self.chosen)
        return {**view, "text/plain": repr(self), "text/html": page}, page_metadata(self.describe)


def _slider(text: str, values: Sequence[Any], value: Any) -> ipywidgets.SelectionSlider:
    layout = ipywidgets.Layout(width="34em", max_width="100%")
    options = [(str(v), v) for v in values]
    return ipywidgets.SelectionSlider(
        options=options, value=value, description=text, style={"description_width": "12em"}, layout=layout
    )


def _set(equation: str) -> str:
    """An equation in HTML, each part between wide spaces by itself, so that a long line may break there."""
    parts = equation.split(r"\qquad")
    return "&emsp; ".join(rf"\(\displaystyle {escape(part.strip())}\)" for part in parts)
