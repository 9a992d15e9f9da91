"""Warnings that point at the line of whoever called: outside gnewton, and outside torch, which wraps ``step``."""

import os
import sys
import warnings

import torch

_INSIDE = tuple(os.path.dirname(str(file)) + os.sep for file in (__file__, torch.__file__))


def line_of_caller() -> str:
    """file:line of the innermost line that is neither gnewton's nor torch's; "line 3 of a cell" in a notebook."""
    frame = sys._getframe(1)
    while frame.f_code.co_filename.startswith(_INSIDE) and frame.f_back is not None:
        frame = frame.f_back
    file = frame.f_code.co_filename
    # Jupyter compiles a cell under a name of its own, which says nothing and changes with the process.
    in_cell = os.path.basename(os.path.dirname(file)).startswith("ipykernel_") or file.startswith("<ipython-input")
    return f"line {frame.f_lineno} of a cell" if in_cell else f"{file}:{frame.f_lineno}"


def warn(message: str, category: type[Warning]) -> None:
    """``warnings.warn`` at the innermost line that is neither gnewton's nor torch's."""
    # warnings.warn(skip_file_prefixes=...) does this from Python 3.12 on.
    frame, level = sys._getframe(1), 2
    while frame.f_code.co_filename.startswith(_INSIDE) and frame.f_back is not None:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)
