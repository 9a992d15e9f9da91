"""Several methods from one seed, an epoch of each in turn, in one process: what slows the machine down slows them all."""

import gc
import math
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from gnewton.datasets import Dataset
from gnewton.experiments.networks import Problem
from gnewton.experiments.peers import Peer
from gnewton.experiments.report import round_numbers
from gnewton.experiments.runs import BATCH_NORM, Run, finite, network, renew_statistics
from gnewton.optimizer import GroupedNewton
from gnewton.weight_average import average_weights

Entries = Mapping[str, tuple[Peer, float | None]]


def race(problem: Problem, data: Dataset, entries: Entries, seed: int, epochs: int, part: str = "train") -> Run:
    """The runs of all entries (a participant and its rate), by name; losses are those of a whole part of the data.

    Each run has, per epoch: losses, averaged_losses (at the averaged parameters), cpu_seconds with the averaging, and
    averaging_seconds, its share. Statistics of batch norm are renewed before a loss is measured. rate is the last one,
    diverged whether a loss stopped being finite. test and averaged_test are the loss and the accuracy (None where there are
    no classes) of the test part after the last epoch.
    """
    _Runner(problem, data, *next(iter(entries.values())), seed, 1).epoch(0, most=2)  # what is loaded once
    runners = {name: _Runner(problem, data, *entry, seed, epochs) for name, entry in entries.items()}
    gc.collect()
    gc.freeze()  # a collection of all that was there before takes as long as ten epochs of a small network
    try:
        for epoch in range(epochs):
            for runner in runners.values():
                runner.epoch(epoch)
                runner.measure(part)
    finally:
        gc.unfreeze()
    for runner in runners.values():
        runner.test()
    return {name: runner.run for name, runner in runners.items()}


class _Runner:
    def __init__(self, problem: Problem, data: Dataset, peer: Peer, lr: float | None, seed: int, epochs: int) -> None:
        self.problem, self.data, self.seed = problem, data, seed
        self.model = network(problem, seed)
        self.loader = data.batches(problem.batch, torch.Generator().manual_seed(1000 + seed))
        self.optimizers, self.scheduler = peer.build(self.model, epochs * len(self.loader), lr)
        self.averaged = average_weights(self.model)
        self.run: Run = {"losses": [], "averaged_losses": [], "cpu_seconds": [], "averaging_seconds": []}
        self.run |= {"diverged": False, "rate": lr}

    def epoch(self, number: int, most: int | None = None) -> None:
        """Train one epoch, or its first batches; nothing where the run has diverged."""
        torch.manual_seed(10_000 * self.seed + number)
        self._mode(train=True)
        averaging, start = 0.0, time.process_time()
        for i, (x, y) in enumerate(self.loader):
            if self.run["diverged"] or i == most:
                break
            self.run["diverged"] = not math.isfinite(self._step(x, y))
            before = time.process_time()
            self.averaged.update_parameters(self.model)
            averaging += time.process_time() - before
        for name, seconds in (("cpu_seconds", time.process_time() - start), ("averaging_seconds", averaging)):
            self.run[name].append(round_numbers((self.run[name] or [0.0])[-1] + seconds))

    def measure(self, part: str) -> None:
        """The loss of a whole part of the data, as trained and at the average."""
        self._mode(train=False)
        for name, model in (("losses", self.model), ("averaged_losses", self.averaged.module)):
            self.run[name].append(self._evaluate(model, part)[0])
        if isinstance(self.optimizers[0], GroupedNewton) and self.optimizers[0].learning_rates is not None:
            self.run["rate"] = round_numbers(float(self.optimizers[0].learning_rates[0]))

    def test(self) -> None:
        """Loss and accuracy of the test part, as trained and at the average."""
        self._mode(train=False)
        self.run["test"] = self._evaluate(self.model, "test")
        self.run["averaged_test"] = self._evaluate(self.averaged.module, "test")

    @torch.no_grad()
    def _evaluate(self, model: nn.Module, part: str) -> list[float | None]:
        """Loss and accuracy of a whole part; None where the run has diverged, and for the accuracy where there are no classes."""
        if self.run["diverged"]:
            return [None, None]
        data = self.data
        x, y = (data.train_x, data.train_y) if part == "train" else (data.test_x, data.test_y)
        if any(isinstance(module, BATCH_NORM) for module in model.modules()):
            model = renew_statistics(model, data.train_x.chunk(len(data.train_x) // self.problem.batch))
        output = model.eval()(x)
        has_classes = not y.is_floating_point() and output.dim() == y.dim() + 1
        right = float((output.argmax(1) == y).double().mean()) if has_classes else None
        return round_numbers([finite(float(self.problem.loss(output, y))), right])  # type: ignore[no-any-return]

    def _step(self, x: torch.Tensor, y: torch.Tensor) -> float:
        first = self.optimizers[0]
        if isinstance(first, GroupedNewton):
            try:
                return float(first.step(lambda: self.problem.loss(self.model(x), y)))
            except FloatingPointError:
                return math.nan
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        loss = self.problem.loss(self.model(x), y)
        loss.backward()
        for optimizer in self.optimizers:
            optimizer.step()
        if self.scheduler is not None:
            self.scheduler.step()
        return float(loss.detach())

    def _mode(self, train: bool) -> None:
        """Schedule-free rules keep other parameters for the evaluation."""
        self.model.train(train)
        for optimizer in self.optimizers:
            switch: Any = getattr(optimizer, "train" if train else "eval", None)
            if switch is not None:
                switch()
