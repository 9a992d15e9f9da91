"""Widgets and walkthroughs of the course; needs ``pip install 'gnewton[lab]'``.

=======================  =============================================================
``QuadraticBowl``        gradient descent, one group, one group per coordinate
``TaylorSlice``          the true loss along a step, and its Taylor models
``StepExplorer``         what the cubic term and the off-diagonal entries do
``CurvatureTimeline``    H-bar and the learning rates, update by update
``Walker``               a derivation line by line, every line checked
``summary_tensors``      the derivation of g-bar, H-bar and D3
=======================  =============================================================
"""

from gnewton.teaching.bowl import QuadraticBowl
from gnewton.teaching.derivation import Derivation, Line, Walker
from gnewton.teaching.explorer import StepExplorer
from gnewton.teaching.figure_widget import FigureWidget
from gnewton.teaching.summary_tensors import summary_tensors
from gnewton.teaching.taylor import TaylorSlice
from gnewton.teaching.timeline import CurvatureTimeline

__all__ = [
    "CurvatureTimeline",
    "Derivation",
    "FigureWidget",
    "Line",
    "QuadraticBowl",
    "StepExplorer",
    "TaylorSlice",
    "Walker",
    "summary_tensors",
]
