"""What is installed, on which device it runs, what is missing, and whether a summary comes out right here."""

import platform
import re
import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from gnewton.course import place

if TYPE_CHECKING:
    import torch

REQUIREMENT = re.compile(r"([\w.-]+)>=([\w.]+)")
EXTRA = re.compile(r"""extra == ["']([\w-]+)["']""")


class Need(NamedTuple):
    """A package that gnewton or its extra ``lab`` asks for."""

    name: str
    least: str


def report() -> tuple[list[str], bool]:
    """The lines, and whether everything is there that the course needs."""
    core, lab = (needs(requires("gnewton") or [], extra) for extra in (None, "lab"))
    problems = [problem for need in [*core, *lab] if (problem := missing(need))]
    device, right = device_line()
    lines = [
        f"gnewton    {version('gnewton')}, in {Path(__file__).parents[1]}",
        f"Python     {platform.python_version()}, {platform.system()} {platform.machine()}",
        *[f"{need.name:10} {installed(need.name) or 'missing'}" for need in core],
        "lab        " + ", ".join(f"{need.name} {installed(need.name) or 'missing'}" for need in lab),
        f"course     {course_line()}",
        f"device     {device}",
        *[f"missing    {problem}" for problem in problems],
    ]
    if problems:
        lines.append('to do      python -m pip install --upgrade "gnewton[lab]"')
    return lines, right and not problems


def needs(requirements: Iterable[str], extra: str | None) -> list[Need]:
    """The packages that an extra asks for, or, for None, the library itself; gnewton's own extras are left out.

    >>> needs(["torch>=2.6", "tqdm>=4.66; extra == 'lab'", "gnewton[lab]; extra == 'test'"], "lab")
    [Need(name='tqdm', least='4.66')]
    >>> needs(["torch>=2.6", "peft>=0.17; extra == 'zoo-part'"], None)
    [Need(name='torch', least='2.6')]
    """
    packages = []
    for line in requirements:
        of = EXTRA.search(line)
        if (of[1] if of else None) == extra and (it := REQUIREMENT.match(line)):
            packages.append(Need(it[1], it[2]))
    return packages


def installed(name: str) -> str | None:
    """The installed version, None where there is none."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def missing(need: Need) -> str | None:
    """What is wrong with a package, None where nothing is."""
    there = installed(need.name)
    if there is None:
        return f"{need.name}, at least {need.least}"
    if release(there) < release(need.least):
        return f"a newer {need.name}: expected at least {need.least}, got {there}"
    return None


def release(text: str) -> tuple[int, ...]:
    """The numbers that a version begins with.

    >>> release("2.13.0+cpu") < release("2.14"), release("8.10") > release("8.9.1")
    (True, True)
    """
    return tuple(int(part) for part in re.findall(r"\d+", re.match(r"[\d.]*", text)[0]))  # type: ignore[index]


def course_line() -> str:
    """Where the notebooks and the book are."""
    try:
        count = len(list(place.notebooks().glob("*.ipynb")))
    except FileNotFoundError as error:
        return str(error)
    try:
        place.book()
    except FileNotFoundError:
        return f"{count} notebooks in {place.notebooks()}; the book is not built"
    return f"{count} notebooks in {place.notebooks()}; the book: gnewton book"


def device_line() -> tuple[str, bool]:
    """The accelerator or the CPU, and whether a small summary computed there agrees with the CPU's in double precision."""
    import torch

    name = "cpu"
    if torch.accelerator.is_available():
        name = str(torch.accelerator.current_accelerator())
    card = f" ({torch.cuda.get_device_name()})" if name == "cuda" else ""
    right = summary_agrees(name)
    said = "a summary agrees with the CPU's" if right else "a summary is WRONG there: please report this"
    return f"{name}{card}, {torch.get_num_threads()} threads; {said}", right


def summary_agrees(device: str) -> bool:
    """H-bar of a tiny network on the device in float32, against nested passes on the CPU in float64."""
    import torch

    exact = tiny_hessian("cpu", torch.float64, "nested")
    # Float32 has seven digits; a hundred roundings of the largest entry are allowed.
    return bool((tiny_hessian(device, torch.float32, "tape") - exact).abs().max() < 1e-5 * exact.abs().max())


def tiny_hessian(device: str, dtype: "torch.dtype", engine: str) -> "torch.Tensor":
    """H-bar of a network whose numbers are the same everywhere: (4, 4), in float64 on the CPU."""
    import torch
    from torch.nn import functional as F

    import gnewton as gn

    draw = torch.Generator().manual_seed(0)
    x = torch.randn(20, 4, generator=draw).to(device, dtype)
    y = (torch.arange(20) % 3).to(device)
    model = gn.models.perceptron([4, 5, 3], "tanh", generator=draw).to(device, dtype)
    partition = gn.Partition.by_tensor(model)

    def loss() -> torch.Tensor:
        return F.cross_entropy(model(x), y)

    u = gn.direction.gradient(loss, partition)
    hessian = gn.summarize(loss, partition, u, order=2, engine=engine).hessian
    assert hessian is not None  # asked for by order=2
    return hessian.cpu().double()


if __name__ == "__main__":
    lines, complete = report()
    sys.stdout.write("\n".join(lines) + "\n")
    sys.exit(0 if complete else 1)
