"""Recurrent layers written out step by step: torch's equations, in operations with derivatives of every order.

The kernels compute a whole layer at once, and the vendors' lack second derivatives. Written out, each step is a few cheap
operations; what the inputs add to the gates is linear and does not wait for the state, so it is one product for the whole
sequence.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

State = tuple[Tensor, ...]  # the hidden state and, for an LSTM, the cell
Step = Callable[..., State]  # (what the input adds to the gates, state, w_hh, b_hh[, w_hr]) -> the next state


def lstm_step(gates: Tensor, state: State, w_hh: Tensor, b_hh: Tensor | None, w_hr: Tensor | None = None) -> State:
    """The next hidden state, projected where there is ``w_hr``, and cell of an LSTM."""
    h, c = state
    enter, forget, candidate, leave = (gates + F.linear(h, w_hh, b_hh)).chunk(4, -1)
    c = forget.sigmoid() * c + enter.sigmoid() * candidate.tanh()
    h = leave.sigmoid() * c.tanh()
    return h if w_hr is None else F.linear(h, w_hr), c


def gru_step(gates: Tensor, state: State, w_hh: Tensor, b_hh: Tensor | None) -> State:
    """The next hidden state of a GRU."""
    (h,) = state
    reset, update, candidate = gates.chunk(3, -1)
    own_reset, own_update, own_candidate = F.linear(h, w_hh, b_hh).chunk(3, -1)
    new = (candidate + (reset + own_reset).sigmoid() * own_candidate).tanh()
    return (new + (update + own_update).sigmoid() * (h - new),)


def tanh_step(gates: Tensor, state: State, w_hh: Tensor, b_hh: Tensor | None) -> State:
    """The next hidden state of an Elman network with tanh."""
    return ((gates + F.linear(state[0], w_hh, b_hh)).tanh(),)


def relu_step(gates: Tensor, state: State, w_hh: Tensor, b_hh: Tensor | None) -> State:
    """The next hidden state of an Elman network with ReLU."""
    return ((gates + F.linear(state[0], w_hh, b_hh)).relu(),)


def cell(step: Step) -> Callable[..., Any]:
    """``torch.lstm_cell`` and its kind: one step, from the input, the state and the weights.

    >>> x, h, w, v = torch.ones(1, 2), torch.ones(1, 1), torch.ones(1, 2), torch.ones(1, 1)
    >>> torch.equal(cell(tanh_step)(x, h, w, v), torch.rnn_tanh_cell(x, h, w, v))
    True
    """

    def run(
        input: Tensor, hx: Any, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None = None, b_hh: Tensor | None = None
    ) -> Any:
        state = step(F.linear(input, w_ih, b_ih), _states(hx), w_hh, b_hh)
        return state[0] if isinstance(hx, Tensor) else state

    return run


class _Weights(NamedTuple):
    w_ih: Tensor
    b_ih: Tensor | None
    recurrent: tuple[Tensor | None, ...]  # w_hh, b_hh and, where an LSTM projects its output, w_hr


class _Options(NamedTuple):
    has_biases: bool
    num_layers: int
    dropout: float
    train: bool
    bidirectional: bool
    batch_first: bool = False


class _Layout(NamedTuple):
    """How a sequence lies in one tensor: (T, B, ...), or packed, step after step, with ``sizes`` samples in each."""

    sizes: list[int] | None = None

    def split(self, values: Tensor) -> Sequence[Tensor]:
        return values.unbind(0) if self.sizes is None else torch.split(values, self.sizes)

    def join(self, steps: Sequence[Tensor]) -> Tensor:
        return torch.stack(list(steps)) if self.sizes is None else torch.cat(list(steps))


def layers(step: Step) -> Callable[..., tuple[Tensor, ...]]:
    """``torch.lstm`` and its kind: all layers over a sequence, packed or not; the outputs, then the final states."""

    def run(*args: Any) -> tuple[Tensor, ...]:
        if not isinstance(args[3], bool):
            input, sizes, hx, weights, *rest = args
            return _stack(step, _Layout(sizes.tolist()), input, _states(hx), weights, _Options(*rest))
        input, hx, weights, *rest = args
        options = _Options(*rest)
        x = input.transpose(0, 1) if options.batch_first else input
        out, *states = _stack(step, _Layout(), x, _states(hx), weights, options)
        return (out.transpose(0, 1) if options.batch_first else out), *states

    return run


def _stack(
    step: Step, layout: _Layout, x: Tensor, starts: State, weights: Sequence[Tensor], options: _Options
) -> tuple[Tensor, ...]:
    ways = 2 if options.bidirectional else 1
    own = len(weights) // (options.num_layers * ways)  # weights of one layer and way
    ends = []
    for layer in range(options.num_layers):
        if layer and options.train and options.dropout:
            x = torch.dropout(x, options.dropout, True)
        outputs = []
        for way in range(ways):
            i = layer * ways + way
            parameters = _by_name(weights[i * own : (i + 1) * own], options.has_biases)
            out, end = _one_way(step, layout, x, tuple(s[i] for s in starts), parameters, backwards=way == 1)
            outputs.append(out)
            ends.append(end)
        x = torch.cat(outputs, -1) if ways == 2 else outputs[0]
    return x, *(torch.stack(states) for states in zip(*ends, strict=True))


def _by_name(weights: Sequence[Tensor], has_biases: bool) -> _Weights:
    w_ih, w_hh, *rest = weights
    b_ih, b_hh = (rest.pop(0), rest.pop(0)) if has_biases else (None, None)
    return _Weights(w_ih, b_ih, (w_hh, b_hh, *rest))


def _one_way(
    step: Step, layout: _Layout, x: Tensor, start: State, weights: _Weights, backwards: bool
) -> tuple[Tensor, State]:
    """The outputs of one layer in one direction, and the states of all samples after their last step."""
    gates = layout.split(F.linear(x, weights.w_ih, weights.b_ih))
    state = tuple(s[: len(gates[-1])] for s in start) if backwards else start
    outputs, ended = [], []
    for g in reversed(gates) if backwards else gates:
        n, now = len(g), len(state[0])
        if n > now:  # backwards, longer samples come first and shorter ones join
            state = tuple(torch.cat([s, first[now:n]]) for s, first in zip(state, start, strict=True))
        elif n < now:  # forwards, the shortest samples end first
            ended.append(tuple(s[n:] for s in state))
            state = tuple(s[:n] for s in state)
        state = step(g, state, *weights.recurrent)
        outputs.append(state[0])
    if ended:
        state = tuple(torch.cat(parts) for parts in zip(state, *reversed(ended), strict=True))
    return layout.join(outputs[::-1] if backwards else outputs), state


def _states(hx: Tensor | Sequence[Tensor]) -> State:
    return (hx,) if isinstance(hx, Tensor) else tuple(hx)


WRITTEN_OUT: dict[Any, Callable[..., Any]] = {
    torch.lstm: layers(lstm_step),
    torch.gru: layers(gru_step),
    torch.rnn_tanh: layers(tanh_step),
    torch.rnn_relu: layers(relu_step),
    torch.lstm_cell: cell(lstm_step),
    torch.gru_cell: cell(gru_step),
    torch.rnn_tanh_cell: cell(tanh_step),
    torch.rnn_relu_cell: cell(relu_step),
}
