"""A tool that is asked for its usage, or called with an option that it has not, says how it is called and does nothing."""

import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / "tools"
# IPython runs it in each kernel; it takes no word.
COMMANDS = sorted(path for path in TOOLS.glob("*.py") if path.name != "perturb.py")


@pytest.mark.parametrize("word", ["--help", "-h", "--no-such-option"])
@pytest.mark.parametrize("tool", COMMANDS, ids=lambda path: path.stem)
def test_a_word_that_is_an_option_is_no_folder(tmp_path, tool, word):
    done = subprocess.run([sys.executable, tool, word], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode == 0) == (word != "--no-such-option") or tool.stem == "elsewhere"
    assert "usage: " in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())
