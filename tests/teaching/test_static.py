"""The browser's part of the figures: small, one library of its own, and scripts that parse."""

import re
import shutil
import subprocess

import pytest

from gnewton.teaching.widgets.figure_widget import STATIC

SCRIPTS = sorted(STATIC.glob("*.js"))
LARGEST = 60_000  # bytes, for scripts and style together


def test_scripts_and_style_are_small():
    files = [*SCRIPTS, *STATIC.glob("*.css")]
    assert {path.name for path in files} == {"figures.css", "figures.js", "page.js", "twins.js", "walkers.js"}
    assert sum(path.stat().st_size for path in files) < LARGEST


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_script_asks_for_nothing_from_elsewhere(path):
    # A page that is opened as a file may load classic scripts alone: no module, no request.
    text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?://|\bfetch\(|\bimport\b|XMLHttpRequest|\beval\(", text)


def parses(path):
    return subprocess.run([shutil.which("node"), "--check", path], capture_output=True, timeout=60).returncode == 0


@pytest.mark.skipif(shutil.which("node") is None, reason="needs Node.js")
def test_every_script_parses(tmp_path):
    assert all(parses(path) for path in SCRIPTS)
    (tmp_path / "broken.js").write_text("const x = ;")
    assert not parses(tmp_path / "broken.js")
