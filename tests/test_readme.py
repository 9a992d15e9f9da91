"""What the README shows is what happens: its Python runs from top to bottom and prints the lines below it."""

import contextlib
import io
import re
from pathlib import Path

README = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, re.DOTALL)


def test_the_examples_run_and_print_what_they_say():
    scope: dict[str, object] = {}
    printed = ""
    checked = 0
    for language, text in BLOCKS:
        if language == "python":
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(compile(text, "README.md", "exec"), scope)
            printed = out.getvalue()
        elif language == "text":
            assert text == printed
            checked += 1
    assert checked >= 1
    assert "optimizer" in scope
