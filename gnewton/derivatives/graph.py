"""What autograd's graph says of a loss: which of its backward passes torch did not write, and which it wrote wrong.

Python names do not matter here: a norm layer that was exported, scripted, traced or called by another name leaves the
same node. See https://github.com/pytorch/pytorch/issues/175754 for the third derivative of torch's norm kernels.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.utils.hooks import RemovableHandle

from gnewton.derivatives import spectra
from gnewton.partition import Partition

# Generated from torch's own table of derivatives, or part of its engine.
_TORCHS = re.compile(
    r"(\w+Backward\d+(_copy)?|(torch::autograd::)?(AccumulateGrad|CopySlices|CopyBackwards|GraphRoot)|UndefinedGrad)"
)
# They make, read or leave tensors of another layout (sparse, mkldnn, nested). The backward of ``torch.sparse_coo_tensor`` goes
# through ``_values()``, where autograd stops without a word. A product with a constant sparse matrix, linear, is right.
_OF_OTHER_LAYOUTS = re.compile(r"Sparse(?!Addmm)|Coalesce|^Values|ToDense|Mkldnn|Nested|ToPaddedTensor")
# Fused norm kernels, and the order from which their derivatives are wrong; and straight-through estimators of torch's own.
STRAIGHT_THROUGH = ("FakeQuantize", "FusedMovingAvgObsFq")
_WRONG_FROM = {"WeightNormInterface": 2, "LayerNorm": 3, "BatchNorm": 3, **dict.fromkeys(STRAIGHT_THROUGH, 2)}


def nodes(value: Tensor) -> set[Any]:
    """All nodes of the graph of a loss."""
    reached: set[Any] = set()
    with torch._C.DisableTorchFunction():
        todo = [value.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None and node not in reached:
            reached.add(node)
            todo += [child for child, _ in node.next_functions]
    return reached


def coarsest_eps(reached: Iterable[Any]) -> float:
    """The relative rounding of the coarsest numbers that a loss goes through: autocast leaves parameters and gradients finer ones.

    What a custom function or a compiled region computes inside does not show in the graph. A parameter itself rounds nothing.

    >>> x = torch.ones(2, requires_grad=True)
    >>> coarsest_eps(nodes(x.half().sum().float()))
    0.0009765625
    """
    inner = (node for node in reached if not node.name().endswith("AccumulateGrad"))
    dtypes = {entry.dtype for node in inner for entry in getattr(node, "_input_metadata", ())}
    return max((torch.finfo(one).eps for one in dtypes if one.is_floating_point or one.is_complex), default=0.0)


def unproven(reached: Iterable[Any]) -> list[str]:
    """The functions among the nodes whose backward torch did not write: custom autograd functions in Python or C++.

    >>> import torch
    >>> unproven(nodes(torch.ones(2, requires_grad=True).sin().sum()))
    []
    """
    return sorted({_function_name(node) for node in reached if is_foreign(node)})


def unused(reached: Iterable[Any], partition: Partition) -> list[str]:
    """The partition's parameters that are at none of the nodes.

    >>> import torch, gnewton as gn
    >>> layer = torch.nn.Linear(3, 1)
    >>> unused(nodes(layer.weight.sum()), gn.Partition.single(layer))
    ['bias']
    """
    leaves = {id(getattr(node, "variable", None)) for node in reached}
    return [name for name, p in partition.parameters.items() if id(p) not in leaves]


def functions_with_hooks(reached: Iterable[Any]) -> list[str]:
    """Those of the nodes with hooks of their own, which may change gradients."""
    return sorted({_function_name(node) for node in reached if _has_hooks(node)})


def hooks_so_far() -> int:
    """A number that grows with every hook that is registered anywhere: where it stands still, there is no new one."""
    return int(RemovableHandle.next_id)


def wrong_kernels(reached: Iterable[Any], partition: Partition, order: int) -> list[str]:
    """The kernels among the nodes between the parameters and the loss whose derivatives of this order torch computes wrong.

    >>> import torch, gnewton as gn
    >>> layer = torch.nn.LayerNorm(3)
    >>> value = torch.layer_norm(torch.ones(2, 3), [3], layer.weight, layer.bias).sum()
    >>> wrong_kernels(nodes(value), gn.Partition.single(layer), 3)
    ['NativeLayerNormBackward0']
    """
    reached = list(reached)
    named = [node for node in reached if _suspicious_part(node.name())]
    suspects = [node for node in named if _wrong_from(node, reached) <= order]
    return sorted({node.name() for node in _leading_to(suspects, partition)}) if suspects else []


def _wrong_from(node: Any, reached: list[Any]) -> float:
    part = _suspicious_part(node.name())
    assert part is not None
    # With given statistics a norm is an affine map, whose derivatives are right.
    if getattr(node, "_saved_training", True) is False:
        return float("inf")
    if part in _BY_VALUES:
        return _BY_VALUES[part](node)
    if part in spectra.NAMES:
        dtype = node._input_metadata[0].dtype
        return min(
            (_lost_from(*lost, dtype) for lost in spectra.lost_digits(part, node, reached)), default=float("inf")
        )
    return _WRONG_FROM[part]


@cache
def _suspicious_part(name: str) -> str | None:
    kernel = name.partition("Backward")[0]
    whole = kernel if kernel in spectra.NAMES or kernel in _BY_VALUES else None
    return whole or next((part for part in (*_IN_PART, *_WRONG_FROM) if part in name), None)


def _det_wrong_from(node: Any) -> float:
    """A determinant is differentiated through the inverse, det(A) A^-1: of n pivots whose smallest is r times the largest,
    the second derivative keeps the relative error eps / r, the third eps / r^2."""
    lu = node._saved_LU
    if not lu.numel() or lu.is_meta:
        return float("inf")
    pivots = lu.detach().diagonal(dim1=-2, dim2=-1).abs()
    return _lost_from(float((pivots.amin(-1) / pivots.amax(-1)).nan_to_num(0).amin()), (1, 2), 1, lu.dtype)


def _reduction_wrong_from(node: Any) -> float:
    """scatter_reduce and index_reduce divide the product by each factor, by what was there before too where that has a part in it."""
    if node._saved_reduce != "prod":
        return float("inf")
    source = node._saved_src if hasattr(node, "_saved_src") else node._saved_source
    factors = [node._saved_self, source] if node._saved_include_self else [source]
    # An input that is not differentiated is not divided by.
    edges = node.next_functions[-len(factors) :]
    return _divided_by([f for f, (child, _) in zip(factors, edges, strict=True) if child is not None])


def _product_wrong_from(node: Any) -> float:
    """So do prod and cumprod where they are called below Python, and are not written out: by a script, or inside another kernel."""
    return _divided_by([node._saved_self])


def _divided_by(factors: Sequence[Tensor]) -> float:
    """A product that is divided by each of its factors loses what a determinant does, where one is r times the largest."""
    if not factors or any(f.is_meta for f in factors):
        return float("inf")
    sizes = torch.cat([f.detach().abs().flatten() for f in factors])
    if not sizes.numel():
        return float("inf")
    return _lost_from(float((sizes.amin() / sizes.amax()).nan_to_num(0)), (1, 2), 1, factors[0].dtype)


def _embedding_wrong_from(node: Any) -> float:
    """A gradient that is scaled by how often each row is read is the derivative of nothing."""
    return 2 if getattr(node, "_saved_scale_grad_by_freq", False) else float("inf")


# By a part of the name of the kernel, and by the whole of it.
_IN_PART: dict[str, Callable[[Any], float]] = {
    "LinalgDet": _det_wrong_from,
    "ScatterReduce": _reduction_wrong_from,
    "IndexReduce": _reduction_wrong_from,
    "Embedding": _embedding_wrong_from,
}
_BY_VALUES = _IN_PART | {"Prod": _product_wrong_from, "Cumprod": _product_wrong_from}


def _lost_from(ratio: float, powers: tuple[int, int], share: float, dtype: torch.dtype) -> float:
    """The first order, 2 or 3, of which the relative error share * eps / ratio ** power is more than two computations may differ by."""
    eps = torch.finfo(dtype).eps
    allowed = max(1e-6, 15 * eps**0.5)  # as in proof.tolerance
    orders = (k for k, power in zip((2, 3), powers, strict=True) if share * eps > allowed * ratio**power)
    return next(orders, float("inf"))


def _leading_to(suspects: Iterable[Any], partition: Partition) -> list[Any]:
    """Those from which autograd has a path to a parameter of the partition."""
    ours = {id(p) for p in partition.parameters.values()}
    parents: dict[Any, list[Any]] = defaultdict(list)
    suspects = list(suspects)
    below: set[Any] = set()
    todo = list(suspects)
    while todo:
        node = todo.pop()
        if node in below:
            continue
        below.add(node)
        for child, _ in node.next_functions:
            if child is not None:
                parents[child].append(node)
                todo.append(child)
    leading: set[Any] = set()
    todo = [node for node in below if id(getattr(node, "variable", None)) in ours]
    while todo:
        node = todo.pop()
        if node not in leading:
            leading.add(node)
            todo += parents[node]
    return [node for node in suspects if node in leading]


def is_python(node: Any) -> bool:
    """Whether the node is a custom autograd function in Python."""
    return isinstance(node, BackwardCFunction)


def is_foreign(node: Any) -> bool:
    """Whether the node's backward was not written by torch, or is one that torch cannot vouch for."""
    return not _is_torchs(node.name()) or is_python(node)


@cache
def _is_torchs(name: str) -> bool:
    return _TORCHS.fullmatch(name) is not None and not is_of_other_layout(name)


def is_of_other_layout(name: str) -> bool:
    """Whether the node of this name makes, reads or leaves tensors that are sparse, nested or in mkldnn's layout.

    >>> is_of_other_layout("ToSparseBackward0"), is_of_other_layout("AddBackward0")
    (True, False)
    """
    return _OF_OTHER_LAYOUTS.search(name) is not None


def _function_name(node: Any) -> str:
    name: str = node.name()
    return name.removesuffix("Backward") if is_python(node) else name


def _has_hooks(node: Any) -> bool:
    # torch lists no hooks; but all hooks of a node share one dictionary, which a new handle knows.
    for register in (node.register_hook, node.register_prehook):
        handle = register(lambda *gradients: None)
        known = handle.hooks_dict_ref()
        handle.remove()
        if known:
            return True
    return False
