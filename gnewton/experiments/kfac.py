"""K-FAC as an optimizer: curvlinops' Kronecker factors of the Fisher matrix, with momentum around them."""

from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

# Martens and Grosse's split of the damping between the two factors needs a floor where a factor vanishes.
_LEAST_DAMPING = 1e-12


class KFAC(torch.optim.Optimizer):
    """theta <- theta - lr m,  m <- momentum m + (F + damping)^-1 g, with F block by block a Kronecker product A x B.

    A is the covariance of a layer's inputs (a 1 appended for the bias), B that of the gradients of its outputs. Both come
    from one batch (x, y) drawn from ``batches`` every ``period`` steps. fisher: "mc" draws one label per sample from the
    model, "type-2" takes every output's exact curvature, one backward pass each. The damping is split as in Martens
    and Grosse (2015), section 6.3. Parameters outside Linear and Conv2d layers are refused by curvlinops.

    Raises ImportError without curvlinops; ``step`` raises FloatingPointError where a factor is not finite or not positive.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: nn.CrossEntropyLoss | nn.MSELoss,
        batches: Iterator[tuple[Tensor, Tensor]],
        lr: float = 0.03,
        damping: float = 0.1,
        momentum: float = 0.9,
        period: int = 10,
        fisher: str = "mc",
    ) -> None:
        self.model, self.loss, self.batches, self.fisher = model, loss, batches, fisher
        self._curvlinops = _curvlinops()
        self._inverse: Any = None
        self._steps = 0
        settings = {"lr": lr, "damping": damping, "momentum": momentum, "period": period}
        super().__init__(list(model.parameters()), settings)

    def step(self, closure: Callable[[], float]) -> float:  # type: ignore[override]
        """One step; ``closure`` zeroes the gradients, computes them and returns the loss, as in every torch optimizer."""
        settings = self.param_groups[0]
        if self._steps % settings["period"] == 0:
            self._inverse = self._factorize(*next(self.batches), settings["damping"])
        self._steps += 1
        with torch.enable_grad():
            value = closure()
        self._move(self._precondition([p.grad for p in settings["params"]]), settings)
        return value

    def _factorize(self, x: Tensor, y: Tensor, damping: float) -> Any:
        fisher = self._curvlinops.KFACLinearOperator(
            self.model,
            self.loss,
            self.param_groups[0]["params"],
            [(x, y)],
            fisher_type=self.fisher,
            seed=self._steps,
            separate_weight_and_bias=False,
            check_deterministic=False,
            num_data=len(x),
            num_per_example_loss_terms=1,
        )
        return self._curvlinops.KFACInverseLinearOperator(
            fisher, damping=damping, use_heuristic_damping=True, min_damping=_LEAST_DAMPING
        )

    def _precondition(self, gradients: list[Tensor]) -> list[Tensor]:
        try:
            direction: list[Tensor] = self._inverse @ gradients
        except RuntimeError as error:
            # The factors are computed at the first product: a label drawn from NaN, or a Cholesky factor that is not there.
            raise FloatingPointError(f"expected positive Kronecker factors, got {error}; raise the damping") from error
        return direction

    @torch.no_grad()
    def _move(self, direction: list[Tensor], settings: dict[str, Any]) -> None:
        for p, d in zip(settings["params"], direction, strict=True):
            memory = self.state[p].setdefault("momentum", torch.zeros_like(p))
            memory.mul_(settings["momentum"]).add_(d)
            p.sub_(settings["lr"] * memory)


def _curvlinops() -> Any:
    try:
        return import_module("curvlinops")
    except ImportError as error:
        raise ImportError(
            "expected curvlinops, which computes the Kronecker factors, got no such package; "
            "install it: pip install 'gnewton[bench]'"
        ) from error
