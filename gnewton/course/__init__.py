"""The course around the library: where it lies, the reader's copy of it, JupyterLab on that copy, and what teachers hand out.

``python -m gnewton`` is the door to all of it, on every system; ``make`` in a checkout calls the same functions.
"""
