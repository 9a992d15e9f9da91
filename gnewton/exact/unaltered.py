"""Whether a module computes what its class says, which the closed forms of ``exact`` take for granted.

A subclass may compute anything, a forward may be replaced on the instance (accelerate, LoRA), a hook or a
parametrization may change what goes in and out. Each is refused by name: what remains is torch's own formula.
"""

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from gnewton.exact.activation import derivative

# Where torch keeps the hooks of one module, and with "_global" before the name those of all modules; each may change
# values or gradients.
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def alteration(module: nn.Module) -> str | None:
    """What makes the module compute something else than its class does; None where nothing does.

    >>> layer = nn.Linear(2, 3)
    >>> alteration(layer)
    >>> layer.forward = lambda x: x
    >>> alteration(layer)
    'a forward of its own on the instance'
    """
    patched = sorted({"forward", "__call__", "_call_impl", "_wrapped_call_impl", "_conv_forward"} & set(vars(module)))
    if patched:
        return f"a {patched[0]} of its own on the instance"
    if any(getattr(module, kind) for kind in _HOOKS):
        return "a hook"
    if torch.nn.utils.parametrize.is_parametrized(module):
        return "a parametrization"
    if any(p is not None and p._backward_hooks for p in module._parameters.values()):
        return "a hook on a parameter"
    return "a hook on all modules" if any(getattr(torch_module, "_global" + kind) for kind in _HOOKS) else None


def check_unaltered(module: nn.Module, label: str) -> None:
    """Raises ValueError, with the label, for a module that does not compute what its class says."""
    reason = alteration(module)
    if reason is not None:
        raise ValueError(
            f"expected modules as torch wrote them, got {label} with {reason}; remove it, or use GroupedNewton, which takes "
            "any model"
        )


def differentiable_twice(module: nn.Module) -> bool:
    """Whether autograd's two derivatives of an element-wise module are those of its values, by central differences.

    A custom autograd function with a backward of its own (a straight-through estimator, ``once_differentiable``) fails.
    """
    z = torch.tensor(_POINTS, dtype=torch.float64, device="cpu").reshape(3, 4)
    try:
        slope, curvature = _two_derivatives(module, z)
        ahead, behind = z + _STEP, z - _STEP
        values = (module(ahead.clone()) - module(behind.clone())).detach() / (2 * _STEP)
        slopes = (_two_derivatives(module, ahead)[0] - _two_derivatives(module, behind)[0]) / (2 * _STEP)
    # A module that cannot be differentiated twice raises in its own way.
    except Exception:
        return False
    # Rounding: 1e-16 / 1e-5, and the step squared, times derivatives of a few units; where it is defined.
    pairs = ((values, slope), (slopes, curvature))
    return all(torch.allclose(a[(a - b).isfinite()], b[(a - b).isfinite()], rtol=1e-5, atol=1e-6) for a, b in pairs)


# Away from the numbers where functions have their kinks: integers, their halves and sixths.
_POINTS = (-9.713, -3.237, -1.871, -0.619, -0.217, 0.173, 0.427, 0.823, 1.291, 2.639, 5.867, 11.411)
_STEP = 1e-5


def _two_derivatives(module: nn.Module, z: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        z = z.clone().requires_grad_()
        # A copy, for modules that work in place.
        slope = derivative(module(z.clone()), z)
        return slope.detach(), derivative(slope, z).detach()
