"""gnewton: Newton's method for neural networks, one learning rate per group of parameters.

======================  ==================================================================
name                    what it is
======================  ==================================================================
Partition               which scalar of the model belongs to which of the S groups
split_complex           complex parameters as two real ones, which a partition takes
direction               u: the gradient, or the step that any torch optimizer proposes
summarize               the summary of a loss along u, exact, over one batch or a data set
Summary                 g-bar (S,), H-bar (S, S) and order 3
newton_step             one learning rate per group from a summary, cubic-regularized
Step, Status            its result and what became of it; NewtonStepError when raised
GroupedNewton           all of it as a torch.optim.Optimizer
policies                how rates come about: RatioTest, ReuseRates, Calibrated, or one of your own
save_checkpoint         model and optimizer in one folder, from any number of processes
load_checkpoint         and for any other
average_weights         the average of the parameters over the last steps, of any optimizer
average                 means of summaries over steps: Exponential, Windows
CautiousAdam            Adam without the part of its step that goes against the gradient: the proposer to take
AsRate                  a view through which schedulers drive any setting, lambda_int too
StochasticNewton        Newton's method by one Hessian-vector product a step
RateMonitor             what Newton's model says of any torch optimizer's rates while it trains
suggest_learning_rates  one rate per group for any torch optimizer, from the Newton step
ExactNewton             feed-forward networks: the exact Newton step of each sample, averaged
exact                   their Hessians: exact spectra and directions, saddle-free ones too
derivatives             the engines; derivatives.nested is the slow oracle
models                  small networks and test functions
======================  ==================================================================

The laboratory, imported on first use: datasets, training, plots, experiments, teaching.
"""

import importlib
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType

from gnewton import average, derivatives, direction, exact, models, policies
from gnewton.cautious import CautiousAdam
from gnewton.checkpoint import load_checkpoint, save_checkpoint
from gnewton.complex_parameters import split_complex
from gnewton.cubic import NewtonStepError, Status, Step, newton_step
from gnewton.exact import ExactNewton
from gnewton.monitor import RateMonitor
from gnewton.optimizer import GroupedNewton
from gnewton.partition import Partition
from gnewton.schedules import AsRate
from gnewton.stochastic import StochasticNewton
from gnewton.summary import Summary, summarize
from gnewton.tuning import Suggestion, suggest_learning_rates
from gnewton.weight_average import average_weights

try:
    __version__ = version("gnewton")
except PackageNotFoundError:  # a source tree on the path, not installed
    __version__ = "unknown"
__all__ = [
    "AsRate",
    "CautiousAdam",
    "ExactNewton",
    "GroupedNewton",
    "NewtonStepError",
    "Partition",
    "RateMonitor",
    "Status",
    "Step",
    "StochasticNewton",
    "Suggestion",
    "Summary",
    "average",
    "average_weights",
    "derivatives",
    "direction",
    "exact",
    "load_checkpoint",
    "models",
    "newton_step",
    "policies",
    "save_checkpoint",
    "split_complex",
    "suggest_learning_rates",
    "summarize",
]

_ON_FIRST_USE = ("datasets", "experiments", "plots", "teaching", "training")


def __getattr__(name: str) -> ModuleType:
    # These need more than torch and numpy, so that importing gnewton must not import them.
    if name in _ON_FIRST_USE:
        return importlib.import_module(f"gnewton.{name}")
    raise AttributeError(f"module 'gnewton' has no attribute {name!r}")
