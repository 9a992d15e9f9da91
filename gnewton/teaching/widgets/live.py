"""Live training: a run that goes on while the page stays alive, to start, pause, step and reset."""

import asyncio
import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from gnewton.teaching.scene import Axis, Mark, Panel, Scene, Shown, slider, to_json
from gnewton.teaching.widgets.figure_widget import FigureWidget, Handle

Run = Callable[[], float]
CHUNK, PAUSE, REFRESH = 0.05, 0.01, 0.25  # seconds
KEPT = 3
REPLAYED = 20  # places of the slider that replays a run on a page


class LiveTraining(FigureWidget):
    """The loss of a training run by step, while it runs; the last runs before it stay in grey.

    A slider changes nothing until the next start or reset. ``advance(n)`` makes n steps here and now; ``start()`` needs a
    running event loop, as a notebook has one, and gives it back every 50 ms, later only where one step takes longer. A run
    ends after its steps, or at a loss that is not finite. A page without a kernel replays the run of every setting.

    Args:
        make: called with a value for each setting; it builds a run, with a model and a ``torch.Generator`` of its own, and
            returns a function that makes one step and returns the loss before it.
        settings: name -> the values of its slider.
        steps: where a run ends.
        values: those to begin with, the first ones by default.
        reach: the lowest and highest loss shown.
        replayed: name -> the values that a page without a kernel offers, where all of ``settings`` would be too many runs.
        name: a second widget of the same name stops the first, so that a cell that is run again leaves no old run behind.

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
        *,
        steps: int = 300,
        values: Mapping[str, Any] | None = None,
        reach: tuple[float, float] = (1e-3, 1e4),
        name: str = "live training",
        replayed: Mapping[str, Sequence[Any]] | None = None,
    ) -> None:
        self._replayed = dict(settings) | dict(replayed or {})
        self._make, self.steps, self._reach = make, steps, reach
        first = {key: options[0] for key, options in settings.items()} | dict(values or {})
        # Under names of their own: a setting may be called as a method is.
        controls = tuple(slider(f"set_{key}", key, options, first[key]) for key, options in settings.items())
        self.losses: list[float] = []
        self._earlier: list[list[float]] = []
        self._task: asyncio.Task[None] | None = None
        self._begin(first)
        panel = Panel(Axis("step", (0, steps)), Axis("loss before the step", reach, "log"))
        old = (Mark("line", 0, "muted", "earlier runs", {"faint": 0.7, "width": 1.2}) for _ in range(KEPT))
        # No table: what is shown changes with every step.
        super().__init__(Scene(controls, (panel,), (*old, Mark("line", 0, 0, "this run")), table=False))
        self.settings: dict[str, Handle] = {key: getattr(self, f"set_{key}") for key in settings}
        self._acts = {"Start": self.start, "Pause": self.pause, "Step": lambda: self.advance(1), "Reset": self.reset}
        self._spec = self._spec | {"actions": list(self._acts)}
        self.on_msg(lambda _, content, buffers: self.act(content.get("act", "")))
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
        if self.ended or self._is_outdated():
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
        self._begin(self._chosen_values())
        self.redraw()

    def close(self) -> None:
        """Stop, and take the widget off the page; what closes all widgets leaves no run behind."""
        task = getattr(self, "_task", None)  # none where the constructor failed, whose widget is closed, too
        if task is not None:
            task.cancel()
        self._task = None
        super().close()

    def act(self, button: str) -> None:
        """What a button does: "Start", "Pause", "Step" or "Reset"; an error is shown in place of the sentence."""
        self._problem = ""
        try:
            self._acts[button]()
        except Exception as error:  # a button has no cell to show it in
            self._tell(error)

    def numbers(self, **values: Any) -> Shown:
        lines = [*self._earlier[::-1], *[[]] * KEPT][:KEPT]
        numbers = [{"x": range(len(v)), "y": self._within(v)} for v in (*lines, self.losses)]
        said = ", ".join(f"{name} {value}" for name, value in self._values.items())
        loss = f", loss {self.losses[-1]:.1g}" if self.losses else ""
        wanted = {name.removeprefix("set_"): value for name, value in values.items()}
        return Shown(numbers, f"{said}: {len(self.losses)} of {self.steps} steps{loss}, {self._said(wanted)}.")

    def describe(self) -> dict[str, Any]:
        """On a page: every run made beforehand, and a slider that replays it."""
        names = [control.name for control in self.scene.controls]
        runs = {}
        for values in itertools.product(*self._replayed.values()):
            run = self._whole_run(dict(zip(self._replayed, values, strict=True)))
            runs["|".join(v if isinstance(v, str) else f"{v:g}" for v in values)] = self._within(run)
        done = tuple(round(k * self.steps / REPLAYED) for k in range(REPLAYED + 1))
        made = min(done, key=lambda n: abs(n - len(self.losses)))
        replay = slider("done", "steps made", done, made)
        offered = [
            slider(c.name, c.label, self._replayed[c.label], self._values[c.label])
            for c in self.scene.controls
            if len(self._replayed[c.label]) > 1  # a slider of one value would not move
        ]
        fixed = {c.name: self._replayed[c.label][0] for c in self.scene.controls if len(self._replayed[c.label]) == 1}
        scene = Scene((*offered, replay), self.scene.panels, self.scene.marks[KEPT - 1 :], "replay", digits=3)
        spec = to_json(scene, 3) | {"given": {"names": names, "fixed": fixed, "runs": runs, "steps": self.steps}}
        return spec | {"sentence": self.sentence}

    def _whole_run(self, values: Mapping[str, Any]) -> list[float]:
        run = self._make(**values)
        losses: list[float] = []
        while len(losses) < self.steps:
            loss = finite_loss(run)
            if not math.isfinite(loss):
                break
            losses.append(loss)
        return losses

    def _begin(self, values: Mapping[str, Any]) -> None:
        self._values = dict(values)
        self.losses, self._diverged = [], False
        self._run = self._make(**self._values)

    def _step(self) -> None:
        if self.ended:
            return
        loss = finite_loss(self._run)
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

    def _chosen_values(self) -> dict[str, Any]:
        return {name: control.value for name, control in self.settings.items()}

    def _said(self, wanted: Mapping[str, Any]) -> str:
        if self._diverged:
            return "no finite loss any more"
        if self.ended:
            return "done"
        return ("running" if self.running else "paused") + ("; reset for the new settings" * (self._values != wanted))

    def _is_outdated(self) -> bool:
        return self._values != self._chosen_values()

    def _within(self, losses: Sequence[float]) -> list[float]:
        low, high = self._reach
        return [min(max(loss, low), high) for loss in losses]

    def _tell(self, error: Exception) -> None:
        self.redraw()  # it does not run any more
        self._problem = ""  # the same error again would be no change, and not be shown
        self._problem = f"{type(error).__name__}: {error}"


def finite_loss(run: Run) -> float:
    """One step's loss; nan where the run refuses to go on, as the optimizers of this library do at a loss that is not finite."""
    try:
        return run()
    except FloatingPointError:
        return math.nan


def _loop() -> asyncio.AbstractEventLoop:
    try:
        return asyncio.get_running_loop()
    except RuntimeError as error:
        raise RuntimeError(
            "expected a running event loop, as a notebook has one, got none; call advance(n) instead"
        ) from error
