"""How learning rates come about: a policy says, for one step along u, how far each group goes.

A new policy is a class with ``settings``, ``needs_summary`` and ``step``, in a file of its own; see ``Policy``.
"""

from gnewton.policies.calibrated import Calibrated
from gnewton.policies.outcome import Outcome
from gnewton.policies.policy import Policy
from gnewton.policies.ratio_test import RatioTest
from gnewton.policies.reuse_rates import ReuseRates

__all__ = ["Calibrated", "Outcome", "Policy", "RatioTest", "ReuseRates"]
