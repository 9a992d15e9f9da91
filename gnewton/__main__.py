"""``gnewton``, or ``python -m gnewton``: the course and its tools from the command line, on every system."""

import argparse
import sys
import webbrowser
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from gnewton.console import print_anything, run

FOLDER = Path("gnewton-course")
EXAMPLES = """examples:
  gnewton lab                       the course in JupyterLab, on your own copy in gnewton-course
  gnewton lab my-notes --port 8899  the copy in another folder, JupyterLab on another port
  gnewton check                     what is installed, on which device it runs, what is missing
  gnewton book                      the course as a web book, offline
  gnewton student --format otter    what an instructor hands out and grades
  gnewton experiments               the list of experiments
Where the system does not find gnewton, write: python -m gnewton lab (on Windows: py -m gnewton lab)."""
LAB = """examples:
  gnewton lab
  gnewton lab my-notes --no-browser --port 8899
  gnewton lab --allow-root --ServerApp.ip=0.0.0.0    further options go to JupyterLab; write them --name=value"""
STUDENT = """examples:
  gnewton student                     notebooks without solutions and outputs, in student/
  gnewton student out --format otter  masters for otter assign, in out/
  gnewton student --format nbgrader   a course folder for nbgrader, in student/"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit status: 0 if all went well, 1 if something is missing, 2 if it was called wrongly, 130
    after Ctrl-C.
    """
    print_anything()
    parser = _parser()
    given, others = parser.parse_known_args(arguments)
    if unknown := [other for other in others if not (given.others and other.startswith(given.others))]:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}; write options of JupyterLab as --name=value")
    return run(f"gnewton {given.command}", lambda: int(given.run(given, others)))


def _lab(given: argparse.Namespace, others: list[str]) -> int:
    from gnewton.course.lab import open_lab

    options = ["--no-browser"] * given.no_browser + [f"--ServerApp.port={given.port}"] * (given.port is not None)
    return open_lab(given.folder, [*options, *others])


def _check(_given: argparse.Namespace, _others: list[str]) -> int:
    from gnewton.course.environment import report

    lines, complete = report()
    sys.stdout.write("\n".join(lines) + "\n")
    return 0 if complete else 1


def _book(given: argparse.Namespace, _others: list[str]) -> int:
    from gnewton.course.place import book

    address = book().as_uri()
    sys.stdout.write(address + "\n")
    if not given.no_browser and not webbrowser.open(address):
        sys.stdout.write("No browser was found: open the address above in one.\n")
    return 0


def _student(given: argparse.Namespace, _others: list[str]) -> int:
    from gnewton.course import place
    from gnewton.course.graders import write_nbgrader, write_otter
    from gnewton.course.student import write_student

    written = {"plain": write_student, "otter": write_otter, "nbgrader": write_nbgrader}[given.format]
    sys.stdout.write(written(place.notebooks(), given.folder, place.pages()) + "\n")
    return 0


def _experiments(_given: argparse.Namespace, others: list[str]) -> int:
    from gnewton.experiments.__main__ import main as front

    return front(others)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gnewton",
        description="Newton's method for neural networks, one learning rate per group: the course and its tools.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"gnewton {version('gnewton')}")
    add = partial(_command, parser.add_subparsers(dest="command", required=True, metavar="COMMAND"))

    _add_lab_arguments(add("lab", _lab, "open the course in JupyterLab, on your own copy", LAB))
    add("check", _check, "say what is installed, on which device it runs, what is missing")
    book = add("book", _book, "open the course as a web book, offline")
    book.add_argument("--no-browser", action="store_true", help="print its address and open nothing")
    _add_student_arguments(add("student", _student, "write the notebooks without solutions and outputs", STUDENT))
    experiments = add("experiments", _experiments, "list, run or resume the experiments (--help: their own options)")
    experiments.set_defaults(others=("",))  # all that follows
    return parser


def _add_lab_arguments(lab: argparse.ArgumentParser) -> None:
    lab.set_defaults(others="--")
    folder = f"your copy: made if it is not there; what you changed in it is never overwritten ({FOLDER})"
    lab.add_argument("folder", nargs="?", type=Path, default=FOLDER, help=folder)
    lab.add_argument("--no-browser", action="store_true", help="print JupyterLab's address and open nothing")
    lab.add_argument("--port", type=int, help="of JupyterLab (8888, or the next that is free)")


def _add_student_arguments(student: argparse.ArgumentParser) -> None:
    student.add_argument("folder", nargs="?", type=Path, default=Path("student"), help="where they go (student)")
    student.add_argument(
        "--format", choices=["plain", "otter", "nbgrader"], default="plain", help="for which grader (plain)"
    )


def _command(
    commands: Any, name: str, act: Callable[..., int], text: str, examples: str = ""
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=text,
        description=f"{text[0].upper()}{text[1:]}.",
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=act is not _experiments,
    )
    parser.set_defaults(run=act, others=None)
    return parser


if __name__ == "__main__":
    sys.exit(main())
