"""Choosing entries of a tensor by an index or a mask."""

from gnewton.derivatives.operation import register
from gnewton.derivatives.rules.linear import PiecewiseLinear

register(
    """
    __getitem__ embedding gather index_select masked_fill narrow select take take_along_dim tril triu where
    """,
    PiecewiseLinear(),
)
