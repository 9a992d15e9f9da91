"""Complex numbers on the tape, each as a pair of reals, which the rules take for two scalars.

Of a real loss autograd's gradient in z is  dL/d Re z + i dL/d Im z : as a pair, the gradient in the pair.
"""

import torch
from torch import Tensor


def to_pairs(t: Tensor) -> Tensor:
    """A complex tensor (...) as reals (..., 2), a real one as it is.

    >>> to_pairs(torch.tensor([1 + 2j]))
    tensor([[1., 2.]])
    """
    return torch.view_as_real(t.resolve_conj()) if t.is_complex() else t


def from_pairs(t: Tensor) -> Tensor:
    """The inverse, for pairs in any layout of the memory.

    >>> from_pairs(torch.tensor([[1.0, 2.0]]))
    tensor([1.+2.j])
    """
    return torch.complex(t[..., 0], t[..., 1])
