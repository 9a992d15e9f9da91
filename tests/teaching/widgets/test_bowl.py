"""The bowl: its paths are those of the optimizer."""

import numpy as np
import pytest
import torch

import gnewton as gn
from gnewton.teaching.widgets.bowl import STEPS, bowl, descents


@pytest.mark.parametrize(("name", "factory"), [("S = 1 (Cauchy)", "single"), ("S = 2 (Newton)", "by_scalar")])
def test_the_bowls_paths_are_those_of_grouped_newton(name, factory):
    start = [1.3, -0.7]
    matrix = bowl(20.0, 0.5)
    model = gn.models.Quadratic([1.0, 20.0], angle=0.5, start=start, dtype=torch.float64)
    np.testing.assert_allclose(model.A, matrix, atol=1e-12)
    optimizer = gn.GroupedNewton(getattr(gn.Partition, factory)(model), lr=1.0, cubic=0.0, period=1)
    path = [model.theta.detach().numpy().copy()]
    for _ in range(8):
        optimizer.step(model)
        path.append(model.theta.detach().numpy().copy())
    # Errors of one step pass through the next ones; the paths live on a scale of 1.
    np.testing.assert_allclose(descents(matrix, np.array(start))[name][:9], path, atol=1e-8)
    assert len(descents(matrix, np.array(start))[name]) == STEPS + 1
