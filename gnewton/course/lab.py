"""JupyterLab on the reader's copy of the course."""

import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from gnewton.course import place
from gnewton.course.copies import copy_course

INSTALL = 'python -m pip install "gnewton[lab]"'
FIRST = "00-tour.ipynb"


def open_lab(folder: Path, options: Sequence[str] = ()) -> int:
    """Copy the course into ``folder`` and run JupyterLab there until it ends; its exit status.

    options: of JupyterLab. Raises ModuleNotFoundError, with the command that installs it, where there is no JupyterLab.
    """
    if importlib.util.find_spec("jupyterlab") is None:
        raise ModuleNotFoundError(f"expected JupyterLab beside gnewton, found none: {INSTALL}")
    for line in copy_course(place.notebooks(), folder, place.pages()):
        sys.stdout.write(line + "\n")
    sys.stdout.write(f"Your copy of the course: {folder.resolve()}\n")
    sys.stdout.write(
        "What you do there is kept. To end JupyterLab: Ctrl-C here twice within five seconds, or once and y.\n"
    )
    sys.stdout.flush()
    return wait(subprocess.Popen(command(folder, options), env=environment()))


def command(folder: Path, options: Sequence[str] = ()) -> list[str]:
    """How JupyterLab is started: by this interpreter, so that no folder of scripts has to be on the path."""
    address = f"--LabApp.default_url=/lab/tree/{FIRST}"
    return [sys.executable, "-m", "jupyterlab", f"--ServerApp.root_dir={folder.resolve()}", address, *options]


def environment() -> dict[str, str]:
    """This process's, with the course's settings of JupyterLab in front of those that the reader has."""
    paths = [str(place.JUPYTER), *filter(None, [os.environ.get("JUPYTER_CONFIG_PATH")])]
    # Without the second, debugpy warns that it cannot debug frozen modules at each start of a kernel.
    return os.environ | {"JUPYTER_CONFIG_PATH": os.pathsep.join(paths), "PYDEVD_DISABLE_FILE_VALIDATION": "1"}


class Process(Protocol):
    """What is asked of JupyterLab's process."""

    def wait(self) -> int: ...

    def terminate(self) -> None: ...


def wait(process: Process) -> int:
    """Until it ends. Ctrl-C reaches JupyterLab as well, which asks whether it is meant: it decides, not we.

    SIGTERM reaches this process alone, and is handed on: otherwise JupyterLab would be left behind, and a container, whose
    first process ignores what it does not handle, would be killed.
    """
    before = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    try:
        while True:
            with suppress(KeyboardInterrupt):
                return process.wait()
    finally:
        signal.signal(signal.SIGTERM, before)
