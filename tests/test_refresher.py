"""The refresher's code prints what stands below it, and its sections are those that the notebooks point to."""

import contextlib
import io
import re
from pathlib import Path

REFRESHER = (Path(__file__).parents[1] / "book" / "refresher.md").read_text(encoding="utf-8")
SECTIONS = re.split(r"(?m)^## ", REFRESHER)


def test_the_examples_run_and_print_what_they_say():
    scope: dict[str, object] = {}
    blocks = re.findall(r"```(\w*)\n(.*?)```", REFRESHER, re.DOTALL)
    pairs = list(zip(blocks[::2], blocks[1::2], strict=True))
    for (language, code), (text, expected) in pairs:
        assert (language, text) == ("python", "text")
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(compile(code, "refresher.md", "exec"), scope)
        assert printed.getvalue() == expected
    assert len(pairs) == len(SECTIONS)


def test_every_section_has_paper_and_code():
    for section in SECTIONS[1:]:
        assert "**On paper" in section
        assert section.count("```python") == 1
