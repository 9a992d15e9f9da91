"""Live training: a run that goes on while the page stays alive, to start, pause, step and reset."""

import asyncio
import math
import time
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any, ClassVar

import ipywidgets

from gnewton.plots import COLOURS, GREY, new_figure
from gnewton.teaching.widgets.figure_widget import FigureWidget, slider

Run = Callable[[], float]
CHUNK, PAUSE, REFRESH = 0.05, 0.01, 0.25  # seconds
KEPT = 3


class LiveTraining(FigureWidget):
    """The loss of a training run by step, while it runs; the last runs before it stay in grey.

    ``make(**values)`` builds a run, with a model and a ``torch.Generator`` of its own, and returns a function that makes
    one step and returns the loss before it. settings: name -> the values of its slider; values: those to begin with, the
    first ones by default. A slider changes nothing until the next start or reset. steps: where a run ends; it ends earlier
    at a loss that is not finite. reach: the lowest and highest loss shown.

    ``advance(n)`` makes n steps here and now; ``start()`` needs a running event loop, as a notebook has one, and gives
    it back every 50 ms, later only where one step takes longer. name: a second widget of the same name stops the first, so
    that a cell that is run again does not leave its old run behind.

    >>> import itertools
    >>> def make(rate):
    ...     loss = itertools.accumulate(itertools.repeat(1 - rate), lambda loss, factor: loss * factor)
    ...     return lambda: next(loss)
    >>> live = LiveTraining(make, {"rate": (0.5, 0.9)}, steps=8)
    >>> live.advance(3); live
    LiveTraining: rate 0.5: 3 of 8 steps, loss 0.1, paused.
    """

    _alive: ClassVar[dict[str, "LiveTraining"]] = {}

    def __init__(
        self,
        make: Callable[..., Run],
        settings: Mapping[str, Sequence[Any]],
        steps: int = 300,
        values: Mapping[str, Any] | None = None,
        reach: tuple[float, float] = (1e-3, 1e4),
        name: str = "live training",
    ) -> None:
        self._make, self.steps, self._reach = make, steps, reach
        first = {key: options[0] for key, options in settings.items()} | dict(values or {})
        self.settings = {key: slider(key, options, first[key]) for key, options in settings.items()}
        self.losses: list[float] = []
        self._earlier: list[list[float]] = []
        self._task: asyncio.Task[None] | None = None
        self._begin()
        self._prepare()
        # Under names of their own: a setting may be called as a method is.
        super().__init__(self.figure, {f"set_{key}": control for key, control in self.settings.items()})
        acts = {"Start": self.start, "Pause": self.pause, "Step": lambda: self.advance(1), "Reset": self.reset}
        self.buttons = {text: ipywidgets.Button(description=text) for text in acts}
        for text, act in acts.items():
            self.buttons[text].on_click(lambda _, act=act: self._guarded(act))
        self.children: Any = [ipywidgets.HBox(list(self.buttons.values())), *self.children]
        if name in self._alive:
            self._alive[name].pause()
        self._alive[name] = self

    @property
    def running(self) -> bool:
        """Whether steps are being made in the background."""
        return self._task is not None and not self._task.done()

    @property
    def ended(self) -> bool:
        """Whether this run has made all its steps, or met a loss that is not finite."""
        return self._diverged or len(self.losses) >= self.steps

    def advance(self, n: int) -> None:
        """n steps now, fewer where the run ends; raises what the run raises."""
        for _ in range(n):
            self._step()
        self.redraw()

    def start(self) -> None:
        """Go on in the background; from the beginning where the run has ended or the sliders say something else."""
        if self.running:
            return
        loop = _loop()
        if self.ended or self._outdated():
            self.reset()
        self._task = loop.create_task(self._go())
        self.redraw()

    def pause(self) -> None:
        """Stop after the present step; ``start`` goes on from here."""
        if self._task is not None:
            self._task.cancel()
        self._task = None
        self.redraw()

    def reset(self) -> None:
        """A new run with the sliders' values; this one stays in grey."""
        self.pause()
        if len(self.losses) > 1:
            self._earlier = [*self._earlier, self.losses][-KEPT:]
        self._begin()
        self.redraw()

    def draw(self) -> str:
        for line, losses in zip(self._old, self._earlier[::-1], strict=False):
            line.set_data(range(len(losses)), self._shown(losses))
        self._now.set_data(range(len(self.losses)), self._shown(self.losses))
        said = ", ".join(f"{name} {value}" for name, value in self._values.items())
        loss = f", loss {self.losses[-1]:.1g}" if self.losses else ""
        return f"{said}: {len(self.losses)} of {self.steps} steps{loss}, {self._state()}."

    def _begin(self) -> None:
        self._values = self._wanted()
        self.losses, self._diverged = [], False
        self._run = self._make(**self._values)

    def _prepare(self) -> None:
        self.figure = new_figure(width=6.4, height=3.4)
        axes = self.figure.axes[0]
        self._old = [axes.plot([], [], color=GREY, linewidth=0.9, alpha=0.7)[0] for _ in range(KEPT)]
        (self._now,) = axes.plot([], [], color=COLOURS[0], linewidth=1.6, label="this run")
        self._old[0].set_label("earlier runs")
        axes.set(xlabel="step", ylabel="loss before the step", yscale="log", xlim=(0, self.steps), ylim=self._reach)
        axes.grid(color="#dddddd", linewidth=0.6)
        axes.legend(loc="upper right", framealpha=0.9)

    def _step(self) -> None:
        if self.ended:
            return
        try:
            loss = self._run()
        except FloatingPointError:  # the optimizers of this library refuse a loss that is not finite
            loss = math.nan
        self._diverged = not math.isfinite(loss)
        if not self._diverged:
            self.losses.append(loss)

    async def _go(self) -> None:
        drawn = time.monotonic()
        try:
            while not self.ended:
                self._chunk(CHUNK)
                # Not 0: a sleep of no length let other cells wait.
                await asyncio.sleep(PAUSE)
                if time.monotonic() - drawn > REFRESH:
                    self.redraw()
                    drawn = time.monotonic()
                    await asyncio.sleep(PAUSE)
            self._task = None
            self.redraw()
        except Exception as error:  # a task has no cell to show it in
            self._task = None
            self._tell(error)

    def _chunk(self, seconds: float) -> None:
        """One step, and more as long as another one is likely to fit."""
        end, took = time.perf_counter() + seconds, 0.0
        while not self.ended and time.perf_counter() + took < end:
            begun = time.perf_counter()
            self._step()
            took = time.perf_counter() - begun

    def _wanted(self) -> dict[str, Any]:
        return {name: control.value for name, control in self.settings.items()}

    def _state(self) -> str:
        if self._diverged:
            return "no finite loss any more"
        if self.ended:
            return "done"
        return ("running" if self.running else "paused") + ("; reset for the new settings" * self._outdated())

    def _outdated(self) -> bool:
        return self._values != self._wanted()

    def _shown(self, losses: Sequence[float]) -> list[float]:
        low, high = self._reach
        return [min(max(loss, low), high) for loss in losses]

    def _guarded(self, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:  # nor has a button's callback
            self._tell(error)

    def _tell(self, error: Exception) -> None:
        self._status.value = f"<b>{escape(type(error).__name__)}:</b> {escape(str(error))}"


def _loop() -> asyncio.AbstractEventLoop:
    try:
        return asyncio.get_running_loop()
    except RuntimeError as error:
        raise RuntimeError(
            "expected a running event loop, as a notebook has one, got none; call advance(n) instead"
        ) from error
