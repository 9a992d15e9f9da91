"""The course for graders: masters for otter assign, and a course folder for nbgrader.

An exercise of the course is two cells, a stub and a solution of another name. Graders want one cell, in which marks
surround what students do not get, and a cell of tests. Tests call ``grading.require``: what is handed out names the exercise,
and holds no answer. But the solutions are public: marks from these exercises are for practice.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gnewton.course.copies import in_one_folder
from gnewton.course.handed_out import hand_out
from gnewton.course.student import content, contents, is_solution, read, without_outputs

STUB = re.compile(r'def (\w+)\((.*)\):\n    raise NotImplementedError\("your turn"\)\n\n\ncheck\("(\d\d\.\d)", \w+\)')
ANSWER = re.compile(r"def solution_\w+\(.*\):\n((?:    .*\n|\n)+?)\n*check\(.*\)")
FIRST = "00-tour.ipynb"
TODO = '    raise NotImplementedError("your turn")'
CONFIG = """c = get_config()  # noqa: F821, nbgrader defines it

c.CourseDirectory.course_id = "gnewton"
# What the course's own check takes for a stub.
c.ClearSolutions.code_stub = {"python": 'raise NotImplementedError("your turn")'}
c.ExecutePreprocessor.timeout = 120
"""


class Exercise(NamedTuple):
    """One exercise as a notebook of the course has it."""

    number: str
    function: str
    arguments: str
    answer: str  # lines of the body, indented

    @property
    def name(self) -> str:
        """As graders name it: q03_2."""
        return "q" + self.number.replace(".", "_")

    @property
    def test(self) -> str:
        """The cell that fails where the answer is wrong."""
        return f'from gnewton.course.grading import require\n\nrequire("{self.number}", {self.function})'

    def cell(self, begin: str, end: str, prompt: str = "") -> str:
        """The source of the one cell, its answer between a grader's marks, and what students see instead."""
        head = f"def {self.function}({self.arguments}):"
        check = f'check("{self.number}", {self.function})'
        return "\n".join([head, begin, self.answer, end, *filter(None, [prompt]), "", "", check])


def write_otter(source: Path, target: Path, pages: Sequence[Path] = ()) -> str:
    """Masters for ``otter assign``, one a notebook, in ``target``; what was done and what to type next."""
    folder = target / "notebooks"
    paths = sorted(source.glob("*.ipynb"))
    hand_out({f"{folder.name}/{path.name}": content(otter(read(path))) for path in paths} | contents(pages), target)
    command = f"otter assign {folder / FIRST} {target / 'dist' / '00-tour'}"
    return f"{len(paths)} masters for otter in {folder}; next, for each of them:\n{command}"


def write_nbgrader(source: Path, target: Path, pages: Sequence[Path] = ()) -> str:
    """A course folder of nbgrader in ``target``, one assignment a notebook; what was done and what to type next."""
    paths = sorted(source.glob("*.ipynb"))
    files = {"nbgrader_config.py": CONFIG.encode()}
    for path in paths:
        # nbgrader hands out the folder of the assignment and nothing beside it: the pages go in, and the links follow.
        assignment = {path.name: content(nbgrader(read(path)))} | contents(pages)
        folder = f"source/{path.stem}"
        files |= {f"{folder}/{name}": in_one_folder(one, source.name, pages) for name, one in assignment.items()}
    hand_out(files, target)
    command = "nbgrader generate_assignment 00-tour"
    return f"{len(paths)} assignments for nbgrader in {target / 'source'}; next, in {target}, for each:\n{command}"


def otter(notebook: Any) -> Any:
    """The notebook as a master of otter assign: raw cells say where a question, its solution and its tests begin."""
    config = "# ASSIGNMENT CONFIG\nsolutions_pdf: false\nexport_cell: false"
    cells = [_cell("raw", config, "assignment-config")]
    for cell, exercise in exercises(notebook):
        if exercise is None:
            cells.append(cell)
            continue
        prompt = f'    """ # BEGIN PROMPT\n{TODO}\n    """ # END PROMPT'
        parts = [
            ("raw", f"# BEGIN QUESTION\nname: {exercise.name}\npoints: 1"),
            ("raw", "# BEGIN SOLUTION"),
            ("code", exercise.cell("    # BEGIN SOLUTION", "    # END SOLUTION", prompt)),
            ("raw", "# END SOLUTION"),
            ("raw", "# BEGIN TESTS"),
            ("code", exercise.test),
            ("raw", "# END TESTS"),
            ("raw", "# END QUESTION"),
        ]
        cells += [_cell(kind, text, f"{exercise.name}-{place}") for place, (kind, text) in enumerate(parts)]
    notebook.cells = cells
    return without_outputs(notebook)


def nbgrader(notebook: Any) -> Any:
    """The notebook as a source of nbgrader: its metadata say which cell is the answer and which one grades it."""
    cells = []
    for cell, exercise in exercises(notebook):
        if exercise is None:
            cells.append(cell)
            continue
        source = exercise.cell("    ### BEGIN SOLUTION", "    ### END SOLUTION")
        answer = _cell("code", source, exercise.name)
        answer.metadata["nbgrader"] = _nbgrader(exercise.name, solution=True)
        test = _cell("code", exercise.test, f"{exercise.name}-test")
        test.metadata["nbgrader"] = _nbgrader(f"{exercise.name}_test", solution=False) | {"points": 1}
        cells += [answer, test]
    notebook.cells = cells
    return without_outputs(notebook)


def _nbgrader(name: str, solution: bool) -> dict[str, Any]:
    """The metadata of one cell, as nbgrader 0.9 defines them (schema version 3)."""
    kind = {"solution": solution, "grade": not solution, "locked": not solution, "task": False}
    return kind | {"grade_id": name, "schema_version": 3, "cell_type": "code"}


def exercises(notebook: Any) -> Iterator[tuple[Any, Exercise | None]]:
    """Each cell, with the exercise that it begins; the cell of the solution is left out.

    Raises ValueError for a stub that no solution follows, or whose cells are not as the course writes them.
    """
    cells = iter(notebook.cells)
    for cell in cells:
        stub = STUB.fullmatch(cell.source)
        if stub is None and not is_solution(cell):
            yield cell, None
            continue
        solution = next(cells, None)
        answer = ANSWER.fullmatch(solution.source) if solution is not None and is_solution(solution) else None
        if stub is None or answer is None:
            raise ValueError(f"expected a stub and its solution one after the other, got\n{cell.source}")
        yield cell, Exercise(stub[3], stub[1], stub[2], answer[1].rstrip())


def _cell(kind: str, source: str, name: str) -> Any:
    """A new cell; its name is its id, because one drawn at random would make two runs differ."""
    import nbformat

    cell = {"cell_type": kind, "id": name, "metadata": {}, "source": source}
    code: dict[str, Any] = {"outputs": [], "execution_count": None} if kind == "code" else {}
    return nbformat.from_dict(cell | code)  # type: ignore[no-untyped-call]
