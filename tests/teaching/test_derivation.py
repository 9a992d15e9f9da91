"""Every line of every derivation holds on ten seeds, and a wrong line is caught."""

import pytest
import torch

from gnewton.teaching import Derivation, Line, Walker, summary_tensors

DERIVATIONS = {"summary tensors": summary_tensors}


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("name", DERIVATIONS)
def test_every_line_holds(name, seed):
    derivation = DERIVATIONS[name]()
    failing = [line.equation for line, ok in zip(derivation.lines, derivation.holds(seed), strict=True) if not ok]
    assert not failing


def test_the_lines_check_what_they_say():
    # A line whose two sides were the same expression could not fail: here each left side is spoilt by one percent.
    derivation = summary_tensors()
    for line in derivation.lines:
        left, right = line.sides(derivation.example(0))
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


def test_mathematics_stands_between_delimiters_that_the_book_reads_too():
    page = summary_tensors().to_html()
    assert "$" not in page
    assert "class='mathjax_process'" in page
    assert page.count(r"\(") == page.count(r"\)") > len(summary_tensors().lines)


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


def test_the_saved_page_is_the_same_on_every_machine():
    # No residual, which differs between processors, only the verdict and the tolerance.
    saved = Walker(summary_tensors())._repr_mimebundle_()["text/html"]
    assert "off by" not in saved
    assert saved.count("holds") == len(summary_tensors().lines)


def test_an_error_in_a_check_is_shown():
    def broken(_):
        raise ValueError("no example")

    walker = Walker(WRONG)
    walker.derivation = Derivation("Broken", broken, WRONG.lines)
    walker.seed.value = 5
    assert "no example" in walker._page.value
