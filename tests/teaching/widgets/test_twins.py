"""Figures that the browser computes itself agree with Python: numbers to 1e-9 and every sentence, in random states.

The browser's script runs in Node here, where there is one; ``tests/browser`` runs the same figures in Chromium.
"""

import json
import random
import shutil
import subprocess

import numpy as np
import pytest
from numpy.testing import assert_allclose

from gnewton.teaching import LiveTraining, QuadraticBowl, SaddleExplorer, SecularExplorer
from gnewton.teaching.widgets.figure_widget import script

NODE = shutil.which("node")
pytestmark = pytest.mark.skipif(NODE is None, reason="needs Node.js; make browser-test runs the figures in Chromium")
STATES = 60
# Absolute. On the edge of the hard case a step is the root of a rounding, sqrt(1e-16). Newton's path from (1, 0.2) repeats two
# points that repel: twelve steps multiply a rounding by 1e9. Everywhere else both agree to 1e-10.
TOLERANCE = {QuadraticBowl: 0.0, SecularExplorer: 1e-8, SaddleExplorer: 1e-6}
# Where level sets are compared: a function of the plane on one side, the same one on the other.
PLACES = [[-1.3, 0.4], [0.2, 1.7], [2.1, -0.6]]
RUN = """
const {spec, states, places} = JSON.parse(require("fs").readFileSync(0, "utf8"));
const valued = s => Object.fromEntries(spec.controls.map(c => [c.name, c.values[s[c.name]]]));
const sampled = n => n.f ? {f: places.map(p => n.f(...p))} : n;
const answers = states.map(s => gnewton.compute[spec.compute](valued(s), spec.given));
console.log(JSON.stringify(answers.map(a => ({...a, numbers: a.numbers.map(sampled)}))));
"""


def computed(spec, states, code=None):
    """What the browser's functions say of these states of a figure."""
    run = subprocess.run(
        [NODE, "-e", (code or script()) + RUN],
        input=json.dumps({"spec": spec, "states": states, "places": PLACES}),
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return json.loads(run.stdout)


def states_of(scene):
    draw = random.Random(0)
    return [{c.name: draw.randrange(len(c.values)) for c in scene.controls} for _ in range(STATES)]


def sampled(numbers):
    return {"f": [float(numbers["f"](*map(np.float64, p))) for p in PLACES]} if "f" in numbers else numbers


def differences(widget, answers, states):
    """How many states have another sentence, or a number further away than the tolerance."""
    wrong = 0
    for state, answer in zip(states, answers, strict=True):
        shown = widget.numbers(**widget.scene.values(state))
        try:
            assert answer["sentence"] == shown.sentence
            for ours, theirs in zip(map(sampled, shown.numbers), answer["numbers"], strict=True):
                for name, values in ours.items():
                    atol = next(t for kind, t in TOLERANCE.items() if isinstance(widget, kind)) + 1e-12
                    assert_allclose(np.array(theirs[name], float), np.array(values, float), rtol=1e-9, atol=atol)
        except AssertionError:
            wrong += 1
    return wrong


@pytest.mark.parametrize("make", TOLERANCE)
def test_the_browser_computes_what_python_computes(make):
    widget = make()
    states = states_of(widget.scene)
    assert differences(widget, computed(widget.describe(), states), states) == 0


def test_another_formula_would_be_noticed():
    widget = QuadraticBowl()
    states = states_of(widget.scene)
    other = script().replace("A[2] * y * y) / 2", "A[2] * y * y) / 2.0001")
    assert other != script()
    assert differences(widget, computed(widget.describe(), states, other), states) == STATES


def test_a_replayed_run_is_the_run_that_python_makes():
    def make(rate, kind):
        loss = [1.0 if kind == "plain" else 2.0]

        def step():
            loss[0] *= 1 - rate
            return loss[0]

        return step

    live = LiveTraining(
        make,
        {"rate": (0.5, 0.9), "kind": ("plain", "double")},
        steps=40,
        reach=(1e-30, 1.0),
        replayed={"rate": (0.5,)},
    )
    spec = live.describe()
    done = spec["controls"][-1]["values"]
    live.advance(done[3])
    (answer,) = computed(spec, [{"set_rate": 0, "set_kind": 0, "done": 3}])
    assert set(spec["given"]["runs"]) == {"0.5|plain", "0.5|double"}
    assert_allclose(answer["numbers"][1]["y"], live.losses, rtol=1e-2)  # three digits are saved
    assert answer["sentence"].startswith(f"rate 0.5, kind plain: {done[3]} of 40 steps, loss {live.losses[-1]:.1g}")
