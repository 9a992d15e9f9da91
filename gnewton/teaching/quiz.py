"""Questions with answers to unfold: static HTML, which works by keyboard, in JupyterLab and in the book, without JavaScript."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape


@dataclass(frozen=True)
class Quiz:
    """A question, its answers with their feedback, and which answer is right; shows itself as HTML."""

    question: str
    answers: Mapping[str, str]
    right: str

    def _repr_html_(self) -> str:
        parts = [
            f"<details><summary{_label(answer)}>{_html(answer)}</summary><p><b>{'Right' if answer == self.right else 'Not quite'}.</b> "
            f"{_html(feedback)}</p></details>"
            for answer, feedback in self.answers.items()
        ]
        # The book's MathJax reads formulas only inside this class, JupyterLab's everywhere.
        return f"<div class='mathjax_process'><p><b>{_html(self.question)}</b></p>{''.join(parts)}</div>"

    def __repr__(self) -> str:
        return f"Quiz: {self.question}"


def quiz(question: str, answers: Mapping[str, str], right: str) -> Quiz:
    r"""A question whose answers open to their feedback.

    answers: each answer -> what to say to whoever chose it. right: the answer that is right. Mathematics stands between
    \( and \), code between backticks. Raises ValueError unless there are two answers, ``right`` among them, each with feedback.

    >>> quiz("What is 1 + 1?", {"2": "Add them.", "11": "That joins the digits."}, right="2")
    Quiz: What is 1 + 1?
    """
    if right not in answers:
        raise ValueError(f"expected right to be one of the answers {list(answers)}, got {right!r}; copy it from there")
    if len(answers) < 2 or not all(feedback.strip() for feedback in answers.values()):
        raise ValueError(f"expected two answers or more, each with feedback, got {dict(answers)}; add what is missing")
    if "$" in "".join([question, *answers, *answers.values()]):
        raise ValueError(rf"expected mathematics between \( and \), got a dollar sign in {question!r}; replace it")
    return Quiz(question, answers, right)


def _label(answer: str) -> str:
    """A name for screen readers, who hear nothing of a formula that is drawn."""
    spoken = re.sub(r"\\[()]", "", answer)
    return "" if spoken == answer else f' aria-label="{escape(spoken)}"'


def _html(text: str) -> str:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))
