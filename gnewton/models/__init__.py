"""Small networks and test functions: the perceptrons and convolutional networks of the paper, a bowl, Rosenbrock's valley."""

from gnewton.models.functions import Quadratic, Rosenbrock
from gnewton.models.networks import autoencoder, lenet, perceptron, vgg

__all__ = ["Quadratic", "Rosenbrock", "autoencoder", "lenet", "perceptron", "vgg"]
