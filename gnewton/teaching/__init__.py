"""Widgets and walkthroughs of the course; needs ``pip install 'gnewton[lab]'``.

=======================  =============================================================
``QuadraticBowl``        gradient descent, one group, one group per coordinate
``TaylorSlice``          the true loss along a step, and its Taylor models
``StepExplorer``         what the cubic term and the off-diagonal entries do
``CurvatureTimeline``    H-bar and the learning rates, update by update
``SaddleExplorer``       gradient, Newton, trust region and cubic term near a saddle
``SecularExplorer``      the secular equation: pole, root and hard case
``CubicBound``           the loss along one group, its models and the cubic bound
``PartitionExplorer``    H-bar and the step's worth under many partitions
``InvarianceTwins``      one function in two systems of units, trained side by side
``Rescaled``             a model in other units: theta = a theta~
``TapeViewer``           a loss's operations: adjoints, tangents, shares of H-bar
``NoiseExplorer``        summaries of mini-batches about those of all the data
``DeepRates``            the learning rates of a deep network, layer by layer
``SampleSpectrum``       one sample's Hessian, its eigenvalues, where Newton points
``RaceExplorer``         the shipped races: what a budget buys, seed by seed
``LiveTraining``         a run to start, pause, step and reset, in the background
``Walker``               a derivation line by line, every line checked
``summary_tensors``      the derivation of g-bar, H-bar and D3
``cubic_step``           the derivation of the cubic step and its secular equation
``tangents_adjoints``    the derivation of H-bar from tangents and adjoints
``one_sample_sweep``     the derivation of one sample's exact Newton direction
``check``, ``hint``      an exercise checked line by line; one hint more at each call
``band``                 bounds in place of a number that differs between processors
``quiz``                 a question whose answers unfold to their feedback
``report``               a learner's results of one notebook as a file to hand in
``newton_cauchy``        the derivation of Cauchy's and Newton's steps on a bowl
=======================  =============================================================
"""

from gnewton.teaching.band import band
from gnewton.teaching.derivations.cubic_step import cubic_step
from gnewton.teaching.derivations.derivation import Derivation, Line, Walker
from gnewton.teaching.derivations.newton_cauchy import newton_cauchy
from gnewton.teaching.derivations.one_sample_sweep import one_sample_sweep
from gnewton.teaching.derivations.summary_tensors import summary_tensors
from gnewton.teaching.derivations.tangents_adjoints import tangents_adjoints
from gnewton.teaching.exercises.exercise import check, hint
from gnewton.teaching.quiz import quiz
from gnewton.teaching.report import report
from gnewton.teaching.widgets.bound import CubicBound
from gnewton.teaching.widgets.bowl import QuadraticBowl
from gnewton.teaching.widgets.deep_rates import DeepRates
from gnewton.teaching.widgets.explorer import StepExplorer
from gnewton.teaching.widgets.figure_widget import FigureWidget
from gnewton.teaching.widgets.invariance import InvarianceTwins, Rescaled
from gnewton.teaching.widgets.live import LiveTraining
from gnewton.teaching.widgets.noise import NoiseExplorer
from gnewton.teaching.widgets.partition_explorer import PartitionExplorer
from gnewton.teaching.widgets.race import RaceExplorer
from gnewton.teaching.widgets.saddle import SaddleExplorer
from gnewton.teaching.widgets.sample_spectrum import SampleSpectrum
from gnewton.teaching.widgets.secular_explorer import SecularExplorer
from gnewton.teaching.widgets.tape_viewer import TapeViewer
from gnewton.teaching.widgets.taylor import TaylorSlice
from gnewton.teaching.widgets.timeline import CurvatureTimeline

__all__ = [
    "CubicBound",
    "CurvatureTimeline",
    "DeepRates",
    "Derivation",
    "FigureWidget",
    "InvarianceTwins",
    "Line",
    "LiveTraining",
    "NoiseExplorer",
    "PartitionExplorer",
    "QuadraticBowl",
    "RaceExplorer",
    "Rescaled",
    "SaddleExplorer",
    "SampleSpectrum",
    "SecularExplorer",
    "StepExplorer",
    "TapeViewer",
    "TaylorSlice",
    "Walker",
    "band",
    "check",
    "cubic_step",
    "hint",
    "newton_cauchy",
    "one_sample_sweep",
    "quiz",
    "report",
    "summary_tensors",
    "tangents_adjoints",
]
