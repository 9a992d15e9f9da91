r"""Adam that moves only where its momentum agrees with the gradient of now, at about the price of a fused step.

    m  <-  b1 m + (1 - b1) g,     v  <-  b2 v + (1 - b2) g^2,     u = m / (1 - b1^k) / (sqrt(v / (1 - b2^k)) + eps)
    theta  <-  theta - lr (n / n_+) [u g > 0] u

[.] is 1 where the bracket holds and else 0, scalar by scalar. n_+ of the n scalars with a gradient other than 0 move, each
n / n_+ times as far (Liang, Chen, Liu and Liu, Cautious Optimizers: Improving Training with One Line of Code, arXiv 2411.16085,
2024; there n / n_+ is of each tensor, and scalars without a gradient count).
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from gnewton.storage import is_dtensor

States = dict[Tensor, dict[str, Any]]


class CautiousAdam(torch.optim.Optimizer):
    """Adam without the part of its step that goes against the gradient.

    Args:
        params: parameters, or groups of them, as for every torch optimizer.
        lr: the learning rate. As a proposer it only scales u.
        betas: b1 and b2. Averaged parameters (``average_weights``) like shorter memories than Adam's .9 and .999. The default was
            chosen with them, among five pairs on ten networks.
        eps: added to the root.

    The state of each parameter has the names and shapes of ``torch.optim.Adam``'s. Two more numbers per scalar are kept from step to
    step. On a GPU the host waits for it twice a step for each dtype and parameter group, and once more as a proposer.

    Raises ValueError for numbers out of range, and TypeError for sparse, complex or sharded parameters.

    >>> w = torch.nn.Parameter(torch.tensor([3.0, -2.0]))
    >>> optimizer = CautiousAdam([w], lr=0.5)
    >>> w.square().sum().backward()
    >>> optimizer.step()
    >>> w.data
    tensor([ 2.5000, -1.5000])
    """

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-3, *, betas: tuple[float, float] = (0.9, 0.9), eps: float = 1e-8
    ) -> None:
        if not (_is_number(lr) and 0 <= lr < math.inf):
            raise ValueError(f"expected lr of at least 0 and finite, got {lr!r}; 1e-3 is usual")
        if not (
            isinstance(betas, tuple | list)
            and len(betas) == 2
            and all(_is_number(beta) and 0 <= beta < 1 for beta in betas)
        ):
            raise ValueError(
                f"expected betas with 0 <= beta < 1, two of them, got {betas!r}; (0.9, 0.9) suits averaged parameters"
            )
        if not (_is_number(eps) and 0 <= eps < math.inf):
            raise ValueError(f"expected eps of at least 0 and finite, got {eps!r}; 1e-8 is usual")
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps})
        self._packs: dict[int, tuple[list[int], list[_Pack]]] = {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._packs = {}  # the state is another one now: it is packed anew

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of every parameter that has a gradient; returns what the closure returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        held = [p for group in self.param_groups for p in group["params"]]
        self._step(self._read({p: p.grad for p in held if p.grad is not None}), 1.0)
        return loss

    @torch.no_grad()
    def take(self, gradients: Mapping[Tensor, Tensor], rate: float) -> None:
        """``rate`` times the step by these gradients, by parameter, in place of ``.grad``; no hook is called.

        Raises FloatingPointError, and nothing has changed, where one of them is not finite.
        """
        packs = self._read(gradients)
        total = sum(pack.total() for pack, _ in packs)
        # Finite ones may overflow in the sum.
        if not (math.isfinite(total) or all(bool(torch.isfinite(g).all()) for g in gradients.values())):
            raise FloatingPointError(
                "expected a finite gradient, got NaN or infinity; check the inputs or lower the learning rate"
            )
        self._step(packs, rate)

    def _step(self, packs: list[tuple["_Pack", dict[str, Any]]], rate: float) -> None:
        rates = [rate * float(group["lr"]) for _, group in packs]
        counts = [pack.advance(group) for pack, group in packs]
        # n / n_+ is of all scalars that may move, however they are grouped.
        moving = [numbers for numbers, one in zip(counts, rates, strict=True) if one]
        agreeing, others = (sum(numbers) for numbers in zip(*moving, strict=True)) if moving else (0.0, 0.0)
        if agreeing:
            for (pack, _), one in zip(packs, rates, strict=True):
                pack.move(one * (agreeing + others) / agreeing)

    def _read(self, gradients: Mapping[Tensor, Tensor]) -> list[tuple["_Pack", dict[str, Any]]]:
        """The packs of these parameters, with their gradients, and the settings of each."""
        _check("sparse", any(g.is_sparse for g in gradients.values()))
        held = [[p for p in group["params"] if p in gradients] for group in self.param_groups]
        if not all(self._is_packed(number, parameters) for number, parameters in enumerate(held)):
            _check("complex", any(p.is_complex() for p in gradients))
            _check("sharded", any(map(is_dtensor, gradients)))
        packs = [
            (pack, group)
            for number, group in enumerate(self.param_groups)
            for pack in self._packs_of(number, held[number])
        ]
        for pack, _ in packs:
            pack.read(gradients)
        return packs

    def _packs_of(self, number: int, parameters: list[Tensor]) -> list["_Pack"]:
        """The packs of a group's parameters; made anew where these, or their states, are others."""
        if not self._is_packed(number, parameters):
            self._packs[number] = [id(p) for p in parameters], _pack(parameters, self.state)
        return self._packs[number][1]

    def _is_packed(self, number: int, parameters: list[Tensor]) -> bool:
        packed, packs = self._packs.get(number, (None, []))
        return packed == [id(p) for p in parameters] and all(pack.holds(self.state) for pack in packs)


class _Pack:
    """Parameters with all their numbers in one tensor of each kind, so that a step is a few kernels, however many they are.

    Args:
        parameters: of one dtype, on one device, after equally many steps.
        states: of the optimizer; theirs become views of the pack's.
    """

    def __init__(self, parameters: list[Tensor], states: States) -> None:
        self._parameters = parameters
        self._size = sum(p.numel() for p in parameters)
        start = states[parameters[0]].get("step")
        self._steps = torch.zeros((), device=parameters[0].device) if start is None else start.clone()
        self._gradient, self._update, self._mean, self._square = (self._zeros() for _ in range(4))
        self._gradients, self._updates, self._means, squares = map(
            self._views, (self._gradient, self._update, self._mean, self._square)
        )
        for p, mean, square in zip(parameters, self._means, squares, strict=True):
            if state := states[p]:
                mean.copy_(state["exp_avg"])
                square.copy_(state["exp_avg_sq"])
            states[p] = {"step": self._steps, "exp_avg": mean, "exp_avg_sq": square}

    def _zeros(self) -> Tensor:
        return self._parameters[0].new_zeros(self._size, requires_grad=False)

    def _views(self, flat: Tensor) -> list[Tensor]:
        parts: Any = torch.split(flat, [p.numel() for p in self._parameters])
        return [part.view(p.shape) for part, p in zip(parts, self._parameters, strict=True)]

    def holds(self, states: States) -> bool:
        """Whether the states are still the pack's, and of the parameters' dtype and device, which the model may have changed."""
        return all(
            states[p].get("exp_avg") is mean and mean.dtype == p.dtype and mean.device == p.device
            for p, mean in zip(self._parameters, self._means, strict=True)
        )

    def read(self, gradients: Mapping[Tensor, Tensor]) -> None:
        """Take the gradients of the parameters in."""
        torch._foreach_copy_(self._gradients, [gradients[p] for p in self._parameters])

    def total(self) -> float:
        """The sum of the gradients."""
        return float(self._gradient.sum())

    def advance(self, group: dict[str, Any]) -> tuple[float, float]:
        """m and v of the gradients that were read; how many scalars then agree with u, and how many do not."""
        self._steps += 1
        beta1, beta2 = group["betas"]
        # From 0 with rate 1, Adam's own kernel arrives at -u.
        torch._fused_adam_(
            [self._update.zero_()],
            [self._gradient],
            [self._mean],
            [self._square],
            [],
            [self._steps],
            lr=1.0,
            beta1=beta1,
            beta2=beta2,
            weight_decay=0.0,
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
        )
        signs = self._gradient.mul_(self._update).sign_()
        surplus = -float(signs.sum(dtype=torch.float32))  # of those that agree over those that do not
        agreeing = -float(signs.clamp_max_(0).sum(dtype=torch.float32))
        return agreeing, agreeing - surplus

    def move(self, rate: float) -> None:
        """``rate`` u of the scalars that agree."""
        torch._foreach_addcmul_(self._parameters, self._updates, self._gradients, value=-rate)


def _pack(parameters: list[Tensor], states: States) -> list[_Pack]:
    alike: dict[Any, list[Tensor]] = {}
    for p in parameters:
        steps = float(states[p]["step"]) if states[p] else 0.0
        alike.setdefault((p.device, p.dtype, steps), []).append(p)
    return [_Pack(some, states) for some in alike.values()]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | Tensor)


def _check(kind: str, has: bool) -> None:
    if has:
        raise TypeError(
            f"expected whole, dense, real parameters and gradients, got {kind} ones; write torch.optim.Adam"
        )
