"""Loss functions: entry by entry, or a choice among log-probabilities."""

from gnewton.derivatives.operation import register
from gnewton.derivatives.rules.linear import PiecewiseLinear
from gnewton.derivatives.rules.pointwise import Pointwise

register(
    """
    binary_cross_entropy binary_cross_entropy_with_logits huber_loss mse_loss poisson_nll_loss smooth_l1_loss
    soft_margin_loss
    """,
    Pointwise(),
)
register("nll_loss nll_loss_nd", PiecewiseLinear())
