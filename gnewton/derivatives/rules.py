"""Which rule an operation gets, by the name of its torch function.

A closed form where it pays, a note "no curvature" where that is all there is to know, and the generic rule for the rest.
"""

from typing import TYPE_CHECKING

from torch import Tensor

from gnewton.derivatives.pointwise import Elementwise, MaxPool, Reshaped, Scale, Softmax, Standardized, Sum
from gnewton.derivatives.products import Bmm, Convolution, Linear, Matmul, Mul
from gnewton.derivatives.rule import Generic, PerSample, Rule, Straight

if TYPE_CHECKING:
    from gnewton.derivatives.tape import Operation

_SMOOTH = """
    binary_cross_entropy binary_cross_entropy_with_logits huber_loss mse_loss poisson_nll_loss smooth_l1_loss
    soft_margin_loss
    acos acosh asin asinh atan atanh celu cos cosh elu erf erfc erfinv exp exp2 expm1 gelu hardsigmoid hardswish lgamma log
    log10 log1p log2 log_sigmoid mish reciprocal rsqrt selu sigmoid silu sin sinc sinh softplus softshrink special_erf
    special_expit sqrt square tan tanh tanhshrink
"""
_BROKEN_LINES = "abs hardshrink hardtanh leaky_relu relu relu6 threshold"

# Linear in all their inputs together, or linear between the kinks: choosing, moving and summing scalars.
_STRAIGHT = """
    __getitem__ adaptive_max_pool1d adaptive_max_pool2d amax amin broadcast_to cat chunk clamp clamp_max clamp_min
    col2im concat cumsum diag diag_embed diagonal diff double dstack embedding expand expand_as flip float fold gather
    hsplit hstack im2col index_select masked_fill max maximum mean median min minimum mT movedim moveaxis narrow neg
    nll_loss nll_loss_nd permute pixel_shuffle pixel_unshuffle repeat repeat_interleave roll rot90 select split
    split_with_sizes stack sum swapaxes swapdims t take take_along_dim T tensor_split tile to trace transpose tril
    triu type_as unbind upsample_bilinear2d upsample_nearest2d vsplit vstack where
"""

_SAME_ORDER = "clone contiguous flatten ravel reshape reshape_as squeeze unflatten unsqueeze view view_as"

_RULES: dict[str, Rule] = {
    **dict.fromkeys(_STRAIGHT.split(), Straight()),
    **dict.fromkeys(_SAME_ORDER.split(), Reshaped()),
    **dict.fromkeys(_SMOOTH.split(), Elementwise()),
    **dict.fromkeys(_BROKEN_LINES.split(), Elementwise(curved=False)),
    **dict.fromkeys(("add", "__add__", "__radd__"), Sum(1)),
    **dict.fromkeys(("sub", "subtract", "__sub__"), Sum(-1)),
    **dict.fromkeys(("mul", "multiply", "__mul__", "__rmul__"), Mul()),
    **dict.fromkeys(("matmul", "__matmul__"), Matmul()),
    **dict.fromkeys(("bmm", "mm"), Bmm()),
    "linear": Linear(),
    **dict.fromkeys((f"{kind}avg_pool{n}d" for kind in ("", "adaptive_") for n in "123"), PerSample()),
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), Convolution(transposed=False)),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), Convolution(transposed=True)),
    "softmax": Softmax(logarithm=False),
    "log_softmax": Softmax(logarithm=True),
    "standardized": Standardized(),
    **dict.fromkeys((f"max_pool{n}d_with_indices" for n in "123"), MaxPool()),
}
_ANY, _TIMES, _OVER = Generic(), Scale(inverse=False), Scale(inverse=True)


def rule_for(o: "Operation") -> Rule:
    """The rule of an operation; ``Generic`` where its arguments are not those that the closed form is made for."""
    rule, other = _RULES.get(o.name, _ANY), o.argument(1, "other")
    if o.name == "pow" and isinstance(o.argument(1, "exponent"), int | float):
        rule = _RULES["square"]
    if isinstance(other, int | float) and o.place(0, "input") == 0 and not o.arguments[1]:
        rule = {"mul": _TIMES, "div": _OVER}.get(o.name, rule)
    elif o.name == "div" and isinstance(other, Tensor) and not o.arguments[1]:
        rule = _RULES["sum"]
    return rule if _fits(rule, o) else _ANY


def _fits(rule: Rule, o: "Operation") -> bool:
    values = [v.value for v in o.inputs]
    if any(v.dtype != values[0].dtype for v in values) and not isinstance(rule, Generic):
        return False
    match rule:
        case Elementwise():
            shapes = {v.value.shape for v in o.inputs + o.outputs}
            return len(values) == 1 and o.place(0, "input") == 0 and len(shapes) == 1
        case Reshaped():
            return len(values) == 1
        case PerSample():
            # Without an axis for the samples, the channels would be taken for it.
            return values[0].dim() == int(o.name[-2]) + 2
        case Softmax():
            return o.argument(2, "dtype") is None and isinstance(o.argument(1, "dim"), int)
        case Mul():
            return all(isinstance(o.given(*place), Tensor) for place in ((0, "input"), (1, "other")))
        case Linear():
            return bool(o.given(1, "weight").dim() == 2)
        case Matmul():
            return bool(min(o.given(0, "input").dim(), o.given(1, rule.second).dim()) >= 2)
        case Convolution():
            same = o.given(0, "input").dim() == o.given(1, "weight").dim()
            return same and not isinstance(o.argument(4, "padding", 0), str)
        case _:
            return True
