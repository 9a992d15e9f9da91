"""Exact second order for feed-forward networks: one sample's Hessian, its spectrum and its Newton direction.

An exact stochastic Newton method after F. B. Mehouachi and C. Kasmi (arXiv 2104.03804 and its sequel for feed-forward
networks); derivation ours.

========================  ================================================================
name                      what it is
========================  ================================================================
forward_backward          one forward and backward pass over a batch: ``Passes``
hessian                   the Hessian of each sample: dense, block, product, trace, rank, inertia
spectrum                  its exact eigenvalues: all, in closed form, by counting, at the ends
newton_direction          the damped Newton direction of each sample, by an O(sum n^3) sweep
saddle_free_direction     with |H|, and with an Adjustment of the spectrum for flat minima
gauss_newton_direction    the baseline without the network's own curvature
joint_direction           the Newton direction of a small mini-batch's mean loss
safe_damping              a bound b with H + b >= 0
ExactNewton               all of it as a torch.optim.Optimizer
Elementwise               any function of one number as an activation layer
========================  ================================================================

The directions are ``SampleDirections``: ``per_sample()``, ``mean()``, ``slope()``.
"""

from gnewton.exact import hessian, spectrum
from gnewton.exact.activation import Elementwise
from gnewton.exact.bound import safe_damping
from gnewton.exact.gauss_newton import gauss_newton_direction
from gnewton.exact.joint import joint_direction
from gnewton.exact.newton import newton_direction
from gnewton.exact.optimizer import ExactNewton
from gnewton.exact.passes import Passes, forward_backward
from gnewton.exact.saddle_free import Adjustment, saddle_free_direction
from gnewton.exact.sample_directions import SampleDirections

__all__ = [
    "Adjustment",
    "Elementwise",
    "ExactNewton",
    "Passes",
    "SampleDirections",
    "forward_backward",
    "gauss_newton_direction",
    "hessian",
    "joint_direction",
    "newton_direction",
    "saddle_free_direction",
    "safe_damping",
    "spectrum",
]
