"""The loss of one sample as a function of the last layer's output, with two derivatives."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gnewton.exact.activation import ActivationValues
from gnewton.exact.unaltered import check_unaltered

LossName = str | Callable[..., Tensor]


class Terms(NamedTuple):
    """Losses of B samples with n outputs: all that the method asks of a loss.

    The Hessian is C = Diag(diagonal) - vector vector^T.

    Args:
        values: the losses (B,).
        delta: the gradient (B, n).
        diagonal: (B, n).
        vector: (B, n), or None for zero.
        convex: whether C is known to be positive semi-definite. The vector, if there is one, is then the diagonal too,
            probabilities that sum to 1.
    """

    values: Tensor
    delta: Tensor
    diagonal: Tensor
    vector: Tensor | None = None
    convex: bool = True

    def hessian(self) -> Tensor:
        """C, (B, n, n)."""
        C: Tensor = torch.diag_embed(self.diagonal)
        return C if self.vector is None else C.addcmul_(self.vector[:, :, None], self.vector[:, None, :], value=-1)

    def lowest(self) -> Tensor:
        """min(0, smallest eigenvalue of C), (B,)."""
        if self.convex:
            return torch.zeros_like(self.values)
        if self.vector is None:
            return self.diagonal.amin(1).clamp(max=0)
        values: Tensor = torch.linalg.eigvalsh(self.hessian())
        return values[:, 0].clamp(max=0)

    def before(self, sigma: ActivationValues) -> "Terms":
        """The same losses as functions of z, where the outputs are sigma(z): C becomes S C S + Diag(sigma'' delta)."""
        s = sigma.slope
        diagonal = s * s * self.diagonal + sigma.curvature * self.delta
        vector = None if self.vector is None else s * self.vector
        return Terms(self.values, s * self.delta, diagonal, vector, convex=False)


@dataclass(frozen=True)
class CrossEntropy:
    """-log softmax(z)_y of classes y (B,) int64, or -sum_i y_i log softmax(z)_i of rows of probabilities y (B, n)."""

    def __call__(self, z: Tensor, y: Tensor) -> Terms:
        """The terms at outputs z (B, n)."""
        log_p = F.log_softmax(z, 1)
        p = log_p.exp()
        rows = y if y.is_floating_point() else F.one_hot(y, z.shape[1]).to(z.dtype)
        return Terms(-(rows * log_p).sum(1), p - rows, p, p)

    def check(self, y: Tensor, samples: int, outputs: int) -> None:
        """Raises ValueError unless y are classes (B,) or probabilities (B, n)."""
        if y.is_floating_point():
            _check_shape(y, (samples, outputs), "probabilities")
            if not y.is_meta and not torch.allclose(y.sum(1), y.new_ones(()), atol=1e-4):
                raise ValueError("expected rows of probabilities that sum to 1, got others; normalize them")
        else:
            _check_shape(y, (samples,), "classes")
            if y.dtype != torch.int64:
                raise ValueError(f"expected classes of dtype int64, got {y.dtype}; write y.long()")
            if not y.is_meta and len(y) and not 0 <= int(y.min()) <= int(y.max()) < outputs:
                got = f"{int(y.min())} to {int(y.max())}"
                raise ValueError(f"expected classes from 0 to {outputs - 1}, got {got}; number them from 0")


@dataclass(frozen=True)
class SquaredError:
    """|a - y|^2 / 2 of targets y (B, n); with ``mean_of_outputs``, |a - y|^2 / n, which is ``F.mse_loss``."""

    mean_of_outputs: bool = False

    def __call__(self, a: Tensor, y: Tensor) -> Terms:
        """The terms at outputs a (B, n)."""
        weight = 2 / a.shape[1] if self.mean_of_outputs else 1.0
        r = a - y
        return Terms(weight / 2 * r.square().sum(1), weight * r, torch.full_like(r, weight))

    def check(self, y: Tensor, samples: int, outputs: int) -> None:
        """Raises ValueError unless y has the shape of the outputs."""
        _check_shape(y, (samples, outputs), "targets")
        if not y.is_floating_point():
            raise ValueError(f"expected floating targets, got {y.dtype}; write y.to(x.dtype)")


Loss = CrossEntropy | SquaredError


def read(loss: LossName) -> Loss:
    """The loss of a name, of torch's function, or of torch's module with its defaults.

    Raises ValueError, which names the option, for everything else: a subclass, another reduction, class weights.
    """
    known: dict[LossName, Loss] = {
        "cross_entropy": CrossEntropy(),
        "squared_error": SquaredError(),
        F.cross_entropy: CrossEntropy(),
        F.mse_loss: SquaredError(mean_of_outputs=True),
    }
    function = _function(loss) if isinstance(loss, nn.Module) else loss
    if function not in known:
        raise ValueError(
            'expected loss="cross_entropy", "squared_error" (half the sum of squares), F.cross_entropy or F.mse_loss '
            f"(or their modules, plain), got {loss!r}; choose one of them"
        )
    return known[function]


def _function(loss: nn.Module) -> LossName:
    """The function that torch's module calls, if all its options are torch's defaults; the module itself for another class."""
    functions: dict[type[nn.Module], LossName] = {nn.CrossEntropyLoss: F.cross_entropy, nn.MSELoss: F.mse_loss}
    # The class itself: a subclass may compute something else.
    function = functions.get(type(loss))
    if function is None:
        return loss
    check_unaltered(loss, f"the loss {type(loss).__name__}")
    changed = [name for name, value in _options(type(loss)()).items() if not _same(getattr(loss, name, None), value)]
    if changed or _options(loss).keys() != _options(type(loss)()).keys():
        options = ", ".join(f"{name}={getattr(loss, name, None)!r}" for name in changed) or "other attributes"
        raise ValueError(
            f"expected {type(loss).__name__} with its defaults, got one with {options}; leave that out, or use GroupedNewton"
        )
    return function


def _options(loss: nn.Module) -> dict[str, object]:
    """What the module keeps besides the machinery of every module: its options."""
    machinery = vars(nn.Module())
    return {k: v for k, v in vars(loss).items() if k not in machinery} | dict(loss._buffers)


def _same(a: object, b: object) -> bool:
    return a is b or (not isinstance(a, Tensor) and not isinstance(b, Tensor) and type(a) is type(b) and a == b)


def _check_shape(y: Tensor, shape: tuple[int, ...], what: str) -> None:
    if tuple(y.shape) != shape:
        raise ValueError(f"expected {what} of shape {shape}, got {tuple(y.shape)}; give one for each sample of x")
