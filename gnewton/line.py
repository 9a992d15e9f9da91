"""One step's view of the loss: phi(eta) = L(theta - U I eta), along one direction u.

Every number that a policy may ask for is computed here, and nowhere else. So this is where several processes take their means.
"""

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gnewton.average import Average, Memory
from gnewton.derivatives.record import record_with_gradient
from gnewton.derivatives.tape import Tape
from gnewton.direction import (
    Direction,
    check_direction,
    check_finite,
    descent,
    gradient_here,
    is_sent,
    lengths,
    mean_gradient,
    on_host,
    plain_gradient,
    slopes,
)
from gnewton.loss import Tally, batches, check_surroundings, differentiable_mode, evaluation
from gnewton.partition import Partition
from gnewton.proposer import Proposal
from gnewton.ranks import Part
from gnewton.sharded import local_part
from gnewton.summary import Summary, is_finite, mean_summary, summarize, summarize_tape
from gnewton.undo import Parameters, Start

Closure = Callable[..., Tensor]
Data = Iterable[Any] | None


class Objective:
    """A loss where the parameters stand: its value, gradient and summaries, all of the same random numbers.

    Args:
        partition: the parameters that may move.
        closure: returns the loss; with data, ``closure(*batch)`` is the mean over a batch.
        data: the batches of a full-batch step, or None.
        engine: of the summaries, as in ``summarize``.
        samples: the number of samples of ``closure()`` on this rank, where the partition is over several.
        plain: take the gradient as any training loop does, without the checks of the closure.
        first: the random numbers and buffers before the first evaluation; None for those of now.

    ``value`` is the loss at the start, once something has been asked, and ``number`` the same on the CPU, with a summary or a
    slope; ``complaint`` says that it was another one when the closure was called again.
    """

    def __init__(
        self,
        partition: Partition,
        closure: Closure,
        data: Data = None,
        *,
        engine: str = "auto",
        samples: float = 1.0,
        plain: bool = False,
        first: Start | None = None,
    ) -> None:
        self.partition, self.closure, self.data, self.engine = partition, closure, data, engine
        self.plain = plain and partition.is_alone
        self._samples = samples if data is None else 0.0
        self.value: Tensor | None = None
        self.number: float | None = None
        self.complaint = ""
        self._gradients: Direction | None = None
        self._tape: Tape | None = None
        self._first = first or Start(partition)
        self._start: Parameters | None = None

    def differentiate(
        self, record: bool = False, restore_buffers: bool = True, *, finite: bool = True
    ) -> tuple[Tensor, Direction]:
        """The loss () and its gradient, from one evaluation.

        Args:
            record: keep what a summary needs, to spare it another evaluation.
            restore_buffers: put them back to what they were.
            finite: see to it that the loss is; False leaves that to the caller, and the host does not wait.
        """
        if self.plain and self._gradients is None:
            self.value, self._gradients = plain_gradient(self.closure, self.partition)
        elif self.value is None or self._gradients is None:
            record = record and self.data is None and self.engine in ("auto", "tape") and self.partition.shards is None
            # Among several ranks each one answers for its own samples: from the mean nobody would know whose it was.
            finite = finite or self.partition.ranks.size > 1

            def compute(tally: Tally) -> tuple[Tensor, Direction]:
                if not record:
                    options = {"restore_buffers": restore_buffers, "finite": finite}
                    return gradient_here(self.closure, self.partition, tally, data=self.data, **options)
                with differentiable_mode(self.partition, restore_buffers=restore_buffers):
                    self._tape, gradients = record_with_gradient(self.closure, self.partition, finite=finite)
                    assert self._tape.value is not None
                    return self._tape.value.detach(), gradients

            sent = not record and is_sent(self.partition, self.data)
            self.value, self._gradients = mean_gradient(self.partition, compute, self._tally(), is_sent=sent)
        return self.value, self._gradients

    def summary(self, direction: Direction, order: int, *others: Tensor) -> tuple[Summary, list[Tensor]]:
        """The summary along u and other tensors, on the CPU; from a recording it may be not finite."""
        summary = mean_summary(self.partition, lambda tally: self._summary_here(direction, order, tally), self._tally())
        if self.value is None:
            self.value = summary.value
        value, *numbers = on_host([self.value, *others, *summary.tensors()])
        others_here, tensors = numbers[: len(others)], numbers[len(others) :]
        summary, self.number = summary.with_tensors(tensors), float(value)
        self._compare(self.number, float(summary.value))
        return summary, others_here

    @property
    def is_recorded(self) -> bool:
        """Whether the next summary needs no evaluation: it comes from the recording of the gradient's."""
        return self._tape is not None and self._tape.missing is None

    def call_again(self) -> None:
        """See whether the closure is the same function when it is called again; where nothing was recorded, the summary does."""
        if self.is_recorded and self.value is not None:
            self._compare(float(self.value), self.value_here())

    def forget_recording(self) -> None:
        """Let the next summary evaluate the loss anew, by the engine that can."""
        self._tape = None

    def _summary_here(self, direction: Direction, order: int, tally: Tally) -> Summary:
        """This rank's summary."""
        if self._tape is not None:
            # Checked when it was evaluated; the sweep reads the list alone.
            summary = summarize_tape(self._tape, self.partition, direction, order)
            # Alone, whether it is finite is asked where its numbers come to the host.
            if summary is not None and (self.partition.ranks.size == 1 or is_finite(summary)):
                return summary
        # The first evaluation draws its own random numbers and writes its buffers; every other one begins as it did.
        with self._first.replay() if self.value is not None else nullcontext():
            return summarize(
                self.closure,
                self.partition.here,
                direction,
                order=order,
                data=self.data,
                weight=tally,
                engine=self.engine,
            )

    def of(self, closure: Closure) -> "Objective":
        """The same question of another mini-batch's loss."""
        return Objective(self.partition, closure, engine=self.engine, samples=self._samples)

    def value_here(self) -> float:
        """The loss where the parameters stand now. It may be infinite: far away that is a fact, not an error."""
        if self.plain:
            return self._plain_value()

        def compute() -> Part:
            tally = self._tally()
            with (
                self._first.replay(),
                self.partition.gathered() as whole,
                differentiable_mode(whole, higher=False),
                evaluation(whole),
            ):
                values = [(float(self.closure(*batch).detach()), n) for batch, n in batches(self.data, tally)]
            return Part(sum(value * n for value, n in values) / sum(n for _, n in values), samples=tally.total)

        return self.partition.ranks.mean("value", compute).value

    def _plain_value(self) -> float:
        check_surroundings(self.partition)
        with self._first.replay(), torch.enable_grad():
            return float(self.closure().detach())

    def _tally(self) -> Tally:
        return Tally(total=self._samples)

    def value_at(self, values: Direction) -> float:
        """The loss at other values of the parameters; these stay where they are."""
        start = self.start
        try:
            start.place(values)
            return self.value_here()
        finally:
            start.restore()

    @property
    def start(self) -> Parameters:
        """The parameters as they were when this was first asked for, before anything moved."""
        self._start = self._start or Parameters(self.partition)
        return self._start

    def restore(self) -> None:
        """Put the parameters back to the start."""
        if self._start is not None:
            self._start.restore()

    def commit(self) -> None:
        """The end of a step, once every rank has come here; buffers become the first rank's."""
        module, ranks = self.partition.module, self.partition.ranks
        ranks.commit([] if module is None or ranks.size == 1 else list(module.buffers()))

    def _compare(self, first: float, second: float) -> None:
        # Roundings in another order differ by far less; another batch by far more.
        if abs(first - second) > 1e-3 * max(abs(first), abs(second)):
            self.complaint = (
                f"expected the same loss when the closure is called again, got {first:.4g} and then {second:.4g}; "
                "draw the mini-batch outside the closure"
            )


class LastStep(NamedTuple):
    """A step as a later batch sees it: the loss before and after it, by how much it falls at the end, and its relative rounding.

    ``slope`` is the gradient after the step times the step: where it is positive, a longer step would have gone lower.
    """

    before: float
    after: float
    slope: float
    rounding: float


class Line:
    """The objective along u: what a policy asks, and how it moves.

    All answers are on the CPU, where a policy solves its S x S problem: the host waits for the device once for each.

    Args:
        objective: the loss, of the batch that judges the step.
        proposal: of u; it is made when ``direction`` is first asked for.
        average: of the summaries of several steps, or None.
        memory: what the average remembers; ``line.memory`` is what it remembers afterwards.
    """

    def __init__(
        self, objective: Objective, proposal: Proposal, average: Average | None = None, memory: Memory | None = None
    ) -> None:
        self.objective, self.partition, self.proposal = objective, objective.partition, proposal
        self.average, self.memory = average, memory
        self._lengths: Tensor | None = None
        self._is_checked = False

    @property
    def direction(self) -> Direction:
        """u, one tensor per parameter. Raises FloatingPointError where the loss, its gradient or u is not finite."""
        if not self.proposal.is_made:
            self._is_checked = False  # the loss and the gradient alone were
        u = self.proposal.direction
        self.check()
        return u

    def check(self) -> None:
        """Raises FloatingPointError where the loss, its gradient or u is not finite; asked once, and before anything moves."""
        if not self._is_checked:
            self._check(self.proposal.total())  # one number: read, it comes to the CPU

    def _check(self, number: Tensor | float) -> None:
        self.proposal.check(float(number))
        self._is_checked = True

    @property
    def value(self) -> float:
        """The loss at the start; known once a summary or a slope has been asked for."""
        assert self.objective.number is not None
        return self.objective.number

    def summary(self, order: int = 3) -> Summary | None:
        """The summary at the start, averaged if there is an average; None during its warm-up."""
        if not self.objective.is_recorded:
            self.check()  # an evaluation is dearer than a wait
        others = self.proposal.total(), lengths(u := self.proposal.direction, self.partition)
        try:
            summary, (number, self._lengths) = self.objective.summary(u, order, *others)
        except ValueError:
            self.check()  # a direction that was refused comes from a gradient that is not finite
            raise
        self._check(number)
        if self.objective.is_recorded and not is_finite(summary):
            self.objective.forget_recording()
            return self.summary(order)
        # What is not finite has no step, and would stay in an average for good.
        if self.average is None or not all(torch.isfinite(t).all() for t in summary.tensors()):
            return summary
        mean, self.memory = self.average(self.memory, summary)
        return mean

    def slope(self) -> Summary:
        """Value and g-bar at the start, for the price of one gradient at most."""
        value, gradients = self.objective.differentiate()
        u = self.proposal.direction
        own = slopes(gradients, u, self.partition), lengths(u, self.partition)
        gradient, self._lengths, value, number = on_host([*own, value, self.proposal.total()])
        self._check(number)
        if not torch.isfinite(gradient).all():
            check_finite(gradients, "gradient")
        self.objective.number = float(value)
        return Summary.from_tensors(gradient=gradient, value=self.value, names=self.partition.names)

    def lengths(self) -> Tensor:
        """||u_s|| of each group, (S,); they come with the slope, where that has been asked for."""
        if self._lengths is None:
            (self._lengths,) = on_host([lengths(self.direction, self.partition)])
        return self._lengths

    def loss_at(self, eta: Tensor) -> float:
        """Move to theta - U I eta, from the start, and return the loss there; an error in the step moves back."""
        self.objective.start.move(self.partition.scale(self.direction, eta))
        return self.objective.value_here()

    @torch.no_grad()
    def move(self, eta: Tensor) -> None:
        """Move by -U I eta from where the parameters are, without asking for the loss."""
        if self.partition.ranks.size > 1:
            _ = self.objective.start  # to go back to, should another rank fail
        for name, change in self.partition.scale(self.direction, eta).items():
            self.partition.parameters[name].sub_(change)

    def take(self, rate: float) -> None:
        """Move by -rate u. Where nothing else asks for u, the proposer takes this step itself, at its own price."""
        self.check()
        # Among several ranks the proposer must be able to forget the step, should another rank fail.
        if self.partition.ranks.size > 1 or not self.proposal.take(rate):
            self.move(torch.full((len(self.partition),), rate, dtype=torch.float64))

    @torch.no_grad()
    def shrink(self, factor: float) -> None:
        """Multiply every parameter that may move: decoupled weight decay."""
        _ = self.objective.start  # where an error puts the parameters back to
        moving = {name: p.detach() for name, p in self.partition.parameters.items() if p.requires_grad}
        parts = torch.full((len(self.partition),), 1 - factor, dtype=torch.float64)
        for name, change in self.partition.scale(moving, parts).items():
            self.partition.parameters[name].sub_(change)

    def look_back(self, previous: Direction) -> LastStep:
        """The last step, from ``previous`` to where the parameters are, as the loss of now sees it: for one more evaluation."""
        previous = self._moving(previous)
        value, gradients = self.objective.differentiate()
        fall = descent(gradients, previous, self.partition)
        covers = self.partition.is_alone and self.partition.is_whole and self.proposal.is_plain(gradients)
        numbers = [fall, value.to(fall), *(() if covers else (self.proposal.total().to(fall),))]
        slope, after, *others = torch.stack(numbers).tolist()  # the host waits once
        self._check(sum(others, slope + after))
        return LastStep(self.objective.value_at(previous), after, slope, rounding=torch.finfo(value.dtype).eps)

    def _moving(self, previous: Direction) -> Direction:
        """The earlier values of the parameters that may move; frozen ones, which their owner may have moved, stay where they are."""
        return {
            name: previous[name] if p.requires_grad else p.detach() for name, p in self.partition.parameters.items()
        }

    @torch.no_grad()
    def shorten(self, previous: Direction, factor: float) -> None:
        """Put ``factor`` times the last step, which began at ``previous``, in the place of it."""
        _ = self.objective.start  # where an error puts the parameters back to
        for name, p in self.partition.parameters.items():
            if p.requires_grad:
                local_part(p).copy_(local_part(previous[name]).lerp(local_part(p), factor))

    def from_first(self, numbers: Tensor) -> Tensor:
        """The first rank's numbers: another processor may round an eigenvalue otherwise."""
        if self.partition.ranks.size == 1:
            return numbers
        (first,) = self.partition.ranks.from_first("rates", [numbers.to(self.partition.device)])
        return first.to(numbers.device)

    def along(self, direction: Direction) -> "Line":
        """The same objective along another direction, such as that of the last step."""
        return Line(self.objective, Proposal(check_direction(direction, self.partition)))
