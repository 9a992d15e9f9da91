"""Engines that compute summary tensors; ``nested`` is the slow oracle."""

from gnewton.derivatives import nested

__all__ = ["nested"]
