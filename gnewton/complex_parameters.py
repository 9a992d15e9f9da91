"""Complex parameters as two real ones, which can be in a partition."""

from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization

Module = TypeVar("Module", bound=nn.Module)


class _Parts(nn.Module):
    """z = a + i b, a parametrization."""

    def forward(self, real: Tensor, imaginary: Tensor) -> Tensor:
        return torch.complex(real, imaginary)

    def right_inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return z.real.clone(), z.imag.clone()


def split_complex(module: Module) -> Module:
    """Keep each complex parameter of a module as its real and its imaginary part, two real parameters; the module itself.

    A parameter ``weight`` becomes ``parametrizations.weight.original0`` and ``.original1`` (torch.nn.utils.parametrize);
    the module computes what it did. Make the partition, and other optimizers, after it.

    Raises ValueError, and changes nothing, where two modules share a complex parameter, which would part, or where a module's
    class takes no subclass, which torch makes of it.

    >>> import torch, gnewton as gn
    >>> layer = torch.nn.Linear(2, 1, dtype=torch.complex64)
    >>> split_complex(layer)(torch.ones(1, 2, dtype=torch.complex64)).dtype
    torch.complex64
    >>> gn.Partition.by_tensor(layer).sizes
    (2, 2, 1, 1)
    """
    places = [(owner, name, p) for owner in module.modules() for name, p in owner.named_parameters(recurse=False)]
    places = [(owner, name, p) for owner, name, p in places if p.is_complex()]
    seen: set[int] = set()
    for _, name, p in places:
        if id(p) in seen:
            raise ValueError(
                f"expected complex parameters of one module each, got {name} in two; write the loss with view_as_complex "
                "of real parameters instead"
            )
        seen.add(id(p))
    for owner, name, _ in places:
        _check_subclass(owner, name)
    for owner, name, p in places:
        register_parametrization(owner, name, _Parts())
        for part in owner.parametrizations[name].parameters():  # type: ignore[index, union-attr]
            part.requires_grad_(p.requires_grad)
    return module


def _check_subclass(owner: nn.Module, name: str) -> None:
    try:
        type("Parametrized", (type(owner),), {})
    except TypeError as error:
        raise ValueError(
            f"expected modules that torch can parametrize, got {type(owner).__name__}, which holds {name} ({error}); leave its "
            "complex parameters out of the partition: Partition.from_groups of the others"
        ) from error
