"""JupyterLab on a copy of the course, and a notebook in it as a person handles it: menus, keys and buttons."""

import os
import re
import secrets
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple
from urllib.request import urlopen

from gnewton.course import place
from gnewton.course.copies import copy_course

PATIENCE = 240_000  # milliseconds for a whole notebook, on two slow cores with other work

PANEL = "window.jupyterapp.shell.currentWidget"
READY = "() => window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'"
CODE = f"[...{PANEL}.content.model.cells].filter(c => c.type === 'code' && c.sharedModel.getSource().trim())"
ERRORS = f"{CODE}.flatMap(c => c.outputs.toJSON()).filter(o => o.output_type === 'error').map(o => o.ename + ': ' + o.evalue)"
# Counts begin anew because the outputs were cleared; after an error the cells below keep none.
ENDED = f"() => {CODE}.every(c => c.executionState === 'idle' && (c.executionCount !== null || {ERRORS}.length))"
DRAWN = "figure => figure.querySelector('.gn-panels').innerHTML"


class Server(NamedTuple):
    """A running JupyterLab: where it answers, and the folder that it shows."""

    address: str
    token: str
    root: Path

    def url(self, name):
        return f"{self.address}/lab/tree/{name}.ipynb?reset&token={self.token}"


@contextmanager
def jupyterlab(folder):
    """A server on a copy of the course, made as ``make lab`` makes it; it keeps all its files in the folder."""
    server = Server(f"http://127.0.0.1:{free_port()}", secrets.token_hex(16), folder / "learn")
    copy_course(place.notebooks(), server.root, place.pages())
    command = [sys.executable, "-m", "jupyterlab", *arguments(server)]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, env=environment(folder), cwd=server.root, stdout=log, stderr=log)
    try:
        wait(process, server.address, folder / "log")
        yield server
    finally:
        process.terminate()  # it ends its kernels
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def arguments(server):
    return [
        *("--no-browser", "--allow-root", "--ServerApp.ip=127.0.0.1", "--ServerApp.port_retries=0"),
        *(f"--ServerApp.port={server.address.rpartition(':')[2]}", f"--ServerApp.root_dir={server.root}"),
        *(f"--IdentityProvider.token={server.token}", "--LabApp.expose_app_in_browser=True"),
        # Were the tests killed, the server would end by itself.
        *("--MappingKernelManager.cull_idle_timeout=300", "--ServerApp.shutdown_no_activity_timeout=300"),
    ]


def environment(folder):
    """The Makefile's, with folders of its own; one thread each, as for the other tests of notebooks."""
    jupyter = [f"JUPYTER_{name}_DIR" for name in ("CONFIG", "DATA", "RUNTIME")]
    own = [*jupyter, "JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR", "IPYTHONDIR", "MPLCONFIGDIR"]
    course = {
        "JUPYTER_CONFIG_PATH": str(place.JUPYTER),
        "JUPYTER_PLATFORM_DIRS": "1",
        "OMP_NUM_THREADS": "1",
    }
    return os.environ | {name: str(folder / name.lower()) for name in own} | course


def wait(process, address, log, seconds=60):
    end = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < end:
        with suppress(OSError), urlopen(f"{address}/api", timeout=5):
            return
        time.sleep(0.2)
    raise RuntimeError(f"expected JupyterLab to answer at {address}, got:\n{log.read_text()}")


class Notebook:
    """A notebook open in JupyterLab, its kernel ready."""

    def __init__(self, page, url):
        self.page = page
        page.goto(url)
        page.wait_for_function(READY, timeout=60_000)

    def choose(self, menu, entry):
        self.page.get_by_role("menuitem", name=menu, exact=True).click()
        self.page.get_by_role("menuitem", name=entry, exact=True).click()

    def run_all(self):
        """Run every cell to the end; the errors that came out."""
        self.choose("Edit", "Clear Outputs of All Cells")
        self.choose("Run", "Run All Cells")
        self.page.wait_for_function(ENDED, timeout=PATIENCE)
        return self.page.evaluate(ERRORS)

    def status(self):
        """What the kernel does: "idle", "busy"."""
        return self.page.evaluate(f"{PANEL}.sessionContext.session.kernel.status")

    def pictures(self):
        """The widgets that show a picture."""
        return [Picture(figure) for figure in self.page.locator(".gn-figure").all()]

    def walkers(self):
        """The derivations to walk through."""
        return [Walker(box) for box in self.page.locator(".widget-vbox:has(> .widget-htmlmath)").all()]

    def write(self, code):
        """A new cell below the last one, with this line of code."""
        self.page.locator(".jp-Notebook .jp-Cell").last.click()
        for key in ("Escape", "b", "Enter"):
            self.page.keyboard.press(key)
        self.page.keyboard.insert_text(code)

    def answer(self):
        """Run the last cell: its output, and after how many seconds it was there."""
        cell = self.page.locator(".jp-Notebook .jp-CodeCell").last
        cell.locator(".cm-content").click()
        begun = time.monotonic()
        self.page.keyboard.press("Control+Enter")
        texts = until(cell.locator(".jp-OutputArea-output").all_inner_texts, bool)
        return "".join(texts).strip(), time.monotonic() - begun

    def close(self):
        self.page.evaluate(f"async () => await {PANEL}.sessionContext.shutdown()")


class Widget:
    """Controls in a box."""

    def __init__(self, box):
        self.box = box

    def button(self, text):
        return self.box.get_by_role("button", name=text, exact=True)

    def can(self, text):
        return self.button(text).count() == 1 and self.button(text).is_enabled()

    def click(self, text):
        self.button(text).click()


class Picture(Widget):
    """Controls, a picture, and below it the sentence, or an error in its place."""

    def sliders(self):
        return self.box.get_by_role("slider").all()

    def unnamed(self):
        """Controls that a screen reader does not find by the label that is seen, or reads with another value."""
        said = []
        for line in self.box.locator(".gn-control").all():
            label, handle = line.locator("label").inner_text(), line.locator("input, select")
            role = "slider" if handle.get_attribute("type") == "range" else "combobox"
            if self.box.get_by_role(role, name=label, exact=True).count() != 1:
                said.append(label)
            if role == "slider" and handle.get_attribute("aria-valuetext") != line.locator("output").inner_text():
                said.append(f"value of {label}")
        return said

    def sentence(self):
        return self.box.locator(".gn-sentence").inner_text().strip()

    def state(self):
        return self.box.evaluate(DRAWN), self.sentence()

    def move(self, handle):
        """One step of a slider, by the keyboard: the state before, and as soon as the picture is another."""
        at_the_end = handle.input_value() == handle.get_attribute("max")
        before = self.state()
        handle.press("ArrowLeft" if at_the_end else "ArrowRight")
        return before, until(self.state, lambda after: after[0] != before[0])

    def wait_for(self, text):
        """The sentence as soon as it holds this text."""
        return until(self.sentence, lambda sentence: text in sentence)


class Walker(Widget):
    """A derivation: buttons, and the lines on the page."""

    def click(self, text, lines):
        """Press, and see whether so many lines come to be there, typeset."""
        super().click(text)
        return until(self.typeset, lambda typeset: typeset == lines) == lines

    def typeset(self):
        return self.box.locator(".widget-htmlmath li:has(mjx-container)").count()

    def verdicts(self):
        said = self.box.locator(".widget-htmlmath li").all_inner_texts()
        return [re.search(r"checked: (\w+)", line)[1] for line in said]

    def mistakes(self):
        return self.box.locator("mjx-merror, [data-mml-node=merror]").count()


def until(look, good, seconds=10):
    """What is seen as soon as it is good, or at the end of the time."""
    end = time.monotonic() + seconds
    while not good(seen := look()) and time.monotonic() < end:
        time.sleep(0.05)
    return seen
