"""From pip to the course: the wheel in an environment of its own, outside any checkout, as a new user has it.

``--installed BIN`` names an environment's folder of commands where the wheel with its extra ``lab`` is installed already;
without it one is made, from ``dist/`` (marker ``wheel``: it downloads and takes minutes). The work in the reader's folder is
there at the second start, and after gnewton was uninstalled.
"""

import os
import re
import secrets
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from browser.lab import Notebook, Server, environment, free_port, wait
from browser.reading import HEIGHT, WIDE, watch

pytestmark = [pytest.mark.browser, pytest.mark.wheel]

ROOT = Path(__file__).parents[2]
MINE = "print(6 * 7, 'was my own work')"


@pytest.fixture(scope="module")
def commands(request, tmp_path_factory):
    """The folder of commands of an environment with nothing but gnewton[lab] from the wheel."""
    if given := request.config.getoption("installed", None):
        return given
    wheels = list((ROOT / "dist").glob("gnewton-*.whl"))
    if len(wheels) != 1:
        pytest.fail(f"expected one wheel in dist, got {len(wheels)}: make dist")
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    bin_folder = folder / ("Scripts" if os.name == "nt" else "bin")
    install = [bin_folder / "python", "-m", "pip", "install", "--quiet", "--constraint", ROOT / "constraints.txt"]
    subprocess.run([*install, f"{wheels[0]}[lab]"], check=True)
    return bin_folder


@contextmanager
def started(commands, home, browser):
    """``gnewton lab --no-browser`` in the home folder, and a page to look at it with."""
    server = Server(f"http://127.0.0.1:{free_port()}", secrets.token_hex(16), home / "gnewton-course")
    options = ["--allow-root", f"--IdentityProvider.token={server.token}", "--LabApp.expose_app_in_browser=True"]
    command = [commands / "gnewton", "lab", "--no-browser", "--port", server.address.rpartition(":")[2], *options]
    log = home / "log"
    # Nothing of this checkout is to be found: neither its modules nor its settings.
    own = {n: v for n, v in environment(home).items() if n not in ("PYTHONPATH", "VIRTUAL_ENV", "JUPYTER_CONFIG_PATH")}
    with log.open("w") as out:
        process = subprocess.Popen(command, cwd=home, env=own | {"HOME": str(home)}, stdout=out, stderr=out)
    context = browser.new_context(viewport={"width": WIDE, "height": HEIGHT})
    try:
        wait(process, server.address, log, seconds=180)
        page = context.new_page()
        page.set_default_timeout(120_000)
        yield server, page
    finally:
        context.close()
        process.terminate()
        process.wait(60)


def answer(commands, *words):
    return subprocess.run([commands / "gnewton", *words], capture_output=True, text=True, check=False, cwd="/")


def test_nothing_comes_from_a_checkout(commands):
    where = [commands / "python", "-c", "import gnewton.course.place as p; print(p.root())"]
    root = subprocess.run(where, capture_output=True, text=True, check=True, cwd="/").stdout.strip()
    assert root.endswith("site-packages/gnewton/course/files")


def test_check_is_content(commands):
    done = answer(commands, "check")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "15 notebooks" in done.stdout
    assert "the book: gnewton book" in done.stdout


def test_the_book_reads_offline(commands, browser):
    address = answer(commands, "book", "--no-browser").stdout.strip()
    assert address.startswith("file://")
    page = browser.new_page()
    events = watch(page)
    page.goto(address.replace("index.html", "notebooks/02-summary.html"))
    page.wait_for_selector("mjx-container", timeout=60_000)
    assert page.locator("mjx-merror").count() == 0
    assert events == []
    page.close()


def test_the_course_runs_is_kept_and_outlives_the_package(commands, browser, tmp_path):
    with started(commands, tmp_path, browser) as (server, page):
        for name in ("00-tour", "01-quadratics"):
            notebook = Notebook(page, server.url(name))
            assert notebook.run_all() == []
            if name == "00-tour":
                notebook.write(MINE)
                assert "42 was my own work" in notebook.answer()[0]
                page.keyboard.press("Control+s")
                page.wait_for_function("() => !window.jupyterapp.shell.currentWidget.context.model.dirty")
            notebook.close()
        assert page.get_by_text("Would you like to get notified").count() == 0
    saved = (tmp_path / "gnewton-course" / "00-tour.ipynb").read_text(encoding="utf-8")
    assert MINE in saved
    with started(commands, tmp_path, browser) as (server, page):
        Notebook(page, server.url("00-tour"))
        assert (tmp_path / "gnewton-course" / "00-tour.ipynb").read_text(encoding="utf-8") == saved
    said = (tmp_path / "log").read_text(encoding="utf-8")
    assert re.search(r"Your copy of the course: .*gnewton-course", said)
    assert "has your changes" not in said
    subprocess.run([commands / "python", "-m", "pip", "uninstall", "--quiet", "--yes", "gnewton"], check=True)
    left = sorted(path.name for path in (tmp_path / "gnewton-course").iterdir())
    assert len([name for name in left if name.endswith(".ipynb")]) == 15
    assert (tmp_path / "gnewton-course" / "00-tour.ipynb").read_text(encoding="utf-8") == saved
    assert not (commands / "gnewton").exists()
