"""A step that asks nothing: the proposer takes it by itself, at its own price."""

from typing import Any

from torch import Tensor

from gnewton.direction import check_step, plain_gradient
from gnewton.line import Closure
from gnewton.policies.policy import held
from gnewton.settings import check_data, check_settings
from gnewton.undo import Start, undone_on_error


def take_held_step(optimizer: Any, closure: Closure | None) -> Tensor | None:
    """One step of a GroupedNewton, and the loss before it; None, and nothing is done, where its policy asks something.

    Args:
        optimizer: the GroupedNewton.
        closure: returns the loss.

    An error leaves everything as it was, as ``GroupedNewton.step`` says.
    """
    partition, proposer, memory = optimizer.partition, optimizer.proposer, optimizer._memory
    if proposer is None or optimizer.average is not None or not (partition.is_alone and proposer.scales):
        return None
    check_settings(settings := optimizer.param_groups[0])
    hold = held(optimizer._policy, settings, memory["policy"], partition)
    if hold is None:
        return None
    rate, state = hold
    with undone_on_error(Start(partition)):
        value, gradients = plain_gradient(check_data(closure, None, None), partition)
        # One that reads the gradients into one tensor checks them there.
        check_step(value, {} if proposer.is_direct else gradients)
        proposer.take(gradients, rate)
    memory.update(step=memory["step"] + 1, policy=state)
    return value
