"""Every line of every derivation holds on ten seeds and at every stop of its sliders, and a wrong line is caught."""

import inspect
import json
from typing import get_type_hints

import pytest
import torch

from gnewton import teaching
from gnewton.teaching import Derivation, Line, Walker, newton_cauchy, summary_tensors, tangents_adjoints
from gnewton.teaching.scene import SAVE_TABLES

# Every function of gnewton.teaching that says it returns a derivation.
DERIVATIONS = {
    name: made
    for name, made in inspect.getmembers(teaching, inspect.isfunction)
    if name in teaching.__all__ and get_type_hints(made).get("return") is Derivation
}
SLIDERS = [
    (name, slider, value)
    for name, make in DERIVATIONS.items()
    for slider, values in make().sliders.items()
    for value in values
]


def test_the_derivations_are_found():
    assert {newton_cauchy, summary_tensors, tangents_adjoints} <= set(DERIVATIONS.values())


def failing(derivation, seed, **chosen):
    holds = derivation.holds(seed, **chosen)
    return [line.equation for line, ok in zip(derivation.lines, holds, strict=True) if not ok]


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("name", DERIVATIONS)
def test_every_line_holds(name, seed):
    assert not failing(DERIVATIONS[name](), seed)


@pytest.mark.parametrize(("name", "slider", "value"), SLIDERS)
def test_every_line_holds_wherever_a_slider_stands(name, slider, value):
    assert not failing(DERIVATIONS[name](), seed=0, **{slider: value})


@pytest.mark.parametrize(("name", "slider", "value"), SLIDERS)
def test_every_slider_changes_the_example(name, slider, value):
    derivation = DERIVATIONS[name]()
    if value != derivation.sliders[slider][0]:
        assert derivation.residuals(seed=0, **{slider: value}) != derivation.residuals(seed=0)


@pytest.mark.parametrize("name", DERIVATIONS)
def test_the_lines_check_what_they_say(name):
    # A line whose two sides were the same expression could not fail: here each left side is spoilt by one percent.
    derivation = DERIVATIONS[name]()
    defaults = {slider: values[0] for slider, values in derivation.sliders.items()}
    for line in derivation.lines:
        left, right = line.sides(derivation.example(0, **defaults))
        spoilt = Line(line.equation, line.why, lambda _, a=left, b=right: (1.01 * a, b), line.tolerance)
        assert spoilt.residual(None) > spoilt.tolerance
        assert right.abs().max() > 0


WRONG = Derivation(
    "Signs",
    lambda seed: torch.tensor(1.0 + seed),
    [
        Line("a = a", "because", lambda a: (a, a)),
        Line("-a = a", "a wrong sign", lambda a: (-a, a)),
        Line("a < b", "markup", lambda a: (a, a)),
    ],
)


def test_a_wrong_line_is_named_in_words():
    assert WRONG.holds() == [True, False, True]
    assert WRONG.to_html().count("FAILS") == 1
    assert "1 fail" in repr(Walker(WRONG))


def test_mathematics_survives_as_html():
    assert "a &lt; b" in WRONG.to_html()
    assert WRONG.to_html(shown=1).count("<li") == 1


@pytest.mark.parametrize("name", DERIVATIONS)
def test_mathematics_stands_between_delimiters_that_the_book_reads_too(name):
    page = DERIVATIONS[name]().to_html()
    assert "$" not in page
    assert "class='mathjax_process'" in page
    assert page.count(r"\(") == page.count(r"\)") >= len(DERIVATIONS[name]().lines)


def test_the_walker_goes_forward_back_and_to_the_end():
    walker = Walker(WRONG)
    assert (walker.shown, walker.back.disabled, walker.next.disabled) == (1, True, False)
    walker.next.click()
    assert walker.shown == 2
    assert "a wrong sign" in walker._page.value
    walker.all.click()
    assert (walker.shown, walker.next.disabled) == (3, True)
    walker.back.click()
    assert walker.shown == 2


def test_another_seed_checks_again():
    walker = Walker(summary_tensors())
    walker.all.click()
    before = walker._page.value
    walker.seed.value = 3
    assert walker._page.value != before
    assert walker._page.value.count("holds") == len(summary_tensors().lines)


@pytest.mark.parametrize(("name", "slider", "value"), SLIDERS)
def test_the_walkers_sliders_check_again(name, slider, value):
    walker = Walker(DERIVATIONS[name]())
    walker.all.click()
    before = walker._page.value
    walker.sliders[slider].value = value
    assert (walker._page.value != before) == (value != walker.derivation.sliders[slider][0])
    assert walker._page.value.count("holds") == len(walker.derivation.lines)
    assert "all hold" in repr(walker)


def test_the_walker_shows_its_sliders_and_an_example_that_they_choose():
    seen = []
    line = Line("a = a", "because", lambda a: (a, a))
    walker = Walker(
        Derivation("One", lambda seed, size: seen.append(size) or torch.ones(size), [line], {"size": (2, 1, 3)})
    )
    walker.sliders["size"].value = 3
    assert seen[0] == 2
    assert seen[-1] == 3
    assert walker.sliders["size"] in walker.children
    assert [value for _, value in walker.sliders["size"].options] == [1, 2, 3]


def test_the_saved_page_is_the_same_on_every_machine():
    # No residual, which differs between processors, only the verdict and the tolerance.
    saved = Walker(summary_tensors())._repr_mimebundle_()[0]["text/html"]
    assert "off by" not in saved
    assert saved.count("holds") == len(summary_tensors().lines)


def test_a_page_has_the_residuals_of_every_example(monkeypatch):
    def example(seed, size):
        return torch.arange(1.0, 1 + size, dtype=torch.float64) + seed

    off = Line("a = a + 10^{-12} s", "nearly", lambda a: (a * (1 + 1e-12 * len(a)), a))
    walker = Walker(Derivation("Nearly", example, [off, WRONG.lines[1]], {"size": (2, 1, 3)}))
    assert walker._repr_mimebundle_()[1] == {}  # only where it is asked for
    monkeypatch.setenv(SAVE_TABLES, "1")
    page = json.loads(walker._repr_mimebundle_()[1]["gnewton"])
    assert [control["name"] for control in page["controls"]] == ["seed", "size"]
    assert (page["controls"][1]["values"], page["controls"][1]["at"]) == ([1, 2, 3], 1)
    assert page["walker"] == [off.tolerance] * 2
    assert page["rows"][:3] == ["1e-12 2e+00", "2e-12 2e+00", "3e-12 2e+00"]
    assert len(page["rows"]) == 30


def test_an_error_in_a_check_is_shown():
    def broken(_):
        raise ValueError("no example")

    walker = Walker(WRONG)
    walker.derivation = Derivation("Broken", broken, WRONG.lines)
    walker.seed.value = 5
    assert "no example" in walker._page.value
