"""A quiz is static HTML with feedback to every answer."""

from html.parser import HTMLParser

import pytest

from gnewton.teaching import quiz

QUESTION, ANSWERS = r"Is \(1 < 2\)?", {"yes": "Count: `1, 2`.", r"\(<\)": "That is a sign."}


class Page(HTMLParser):
    """The tags, attributes and texts of a page; every tag that opens closes."""

    def __init__(self, source):
        super().__init__()
        self.open, self.tags, self.attributes, self.text = [], [], [], []
        self.feed(source)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_one_details_per_answer_with_its_feedback():
    page = Page(quiz(QUESTION, ANSWERS, right="yes")._repr_html_())
    assert page.tags.count("details") == page.tags.count("summary") == len(ANSWERS)
    assert page.text.count("Right.") == 1
    assert page.text.count("Not quite.") == len(ANSWERS) - 1
    assert page.text[page.text.index("Right.") - 1] == "yes"
    assert QUESTION in page.text


def test_nothing_runs_in_the_page():
    page = Page(quiz(QUESTION, ANSWERS, right="yes")._repr_html_())
    assert set(page.tags) <= {"div", "p", "b", "details", "summary", "code"}
    assert page.attributes == [("class", "mathjax_process"), ("aria-label", "<")]


def test_an_answer_with_a_formula_has_a_name_for_screen_readers():
    page = Page(quiz("Which?", {r"\(x < 1\), half of it": "No.", "none": "Yes."}, right="none")._repr_html_())
    assert [value for name, value in page.attributes if name == "aria-label"] == ["x < 1, half of it"]


def test_mathematics_and_code_survive():
    html = quiz(QUESTION, ANSWERS, right="yes")._repr_html_()
    assert r"\(1 &lt; 2\)" in html
    assert "<code>1, 2</code>" in html
    assert "`" not in html


def test_shows_the_same_every_time():
    one, two = (quiz(QUESTION, ANSWERS, right="yes") for _ in range(2))
    assert one._repr_html_() == two._repr_html_()
    assert repr(one) == f"Quiz: {QUESTION}"


@pytest.mark.parametrize(
    ("question", "answers", "right", "message"),
    [
        (QUESTION, ANSWERS, "no", "one of the answers"),
        (QUESTION, {"yes": "Count."}, "yes", "two answers"),
        (QUESTION, ANSWERS | {"no": " "}, "yes", "feedback"),
        ("Is $1 < 2$?", ANSWERS, "yes", "dollar"),
    ],
)
def test_half_a_quiz_is_refused(question, answers, right, message):
    with pytest.raises(ValueError, match=message):
        quiz(question, answers, right)
