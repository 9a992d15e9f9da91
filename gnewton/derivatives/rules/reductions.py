"""Many scalars made one: sums, means and choices along an axis."""

from gnewton.derivatives.operation import register
from gnewton.derivatives.rules.linear import PiecewiseLinear

register(
    "amax amin aminmax cumsum diff max maximum mean median nanmean nanmedian nansum min minimum sum trace",
    PiecewiseLinear(),
)
