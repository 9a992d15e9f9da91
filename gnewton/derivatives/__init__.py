"""Engines that compute summary tensors: ``sweep`` over a recorded ``tape``, and ``nested``, the slow oracle."""

from gnewton.derivatives import nested, record, sweep, tape

__all__ = ["nested", "record", "sweep", "tape"]
