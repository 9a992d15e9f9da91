"""The files around the package tell one story: requirements, versions, commands, licences."""

import re
import subprocess
import tomllib
from importlib.metadata import distributions
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

import gnewton as gn

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
CONDA_NAMES = {"torch": "pytorch"}


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


# -- requirements --------------------------------------------------------------------------------------------------


def bounds(requirements: list[str]) -> dict[str, str]:
    """Name -> version specifier; the project itself, as in gnewton[lab], is left out."""
    parsed = [Requirement(text) for text in requirements]
    return {canonicalize_name(r.name): str(r.specifier) for r in parsed if r.name != PROJECT["name"]}


def pins(constraints: str) -> dict[str, Version]:
    """Name -> exact version; anything but name==version is an error."""
    lines = [line for line in constraints.splitlines() if line and not line.startswith("#")]
    return {canonicalize_name(name): Version(version) for name, version in (line.split("==") for line in lines)}


def unpinned(requirements: list[str], pinned: dict[str, Version]) -> list[str]:
    """The requirements that have no pin within their bounds."""
    parsed = [Requirement(text) for text in requirements]
    others = [r for r in parsed if r.name != PROJECT["name"]]
    return [
        str(r)
        for r in others
        if (name := canonicalize_name(r.name)) not in pinned or not r.specifier.contains(pinned[name])
    ]


def conda_bounds(environment: str) -> dict[str, str]:
    plain = [entry for entry in yaml.safe_load(environment)["dependencies"] if isinstance(entry, str)]
    return bounds([entry for entry in plain if entry != "pip"])


def pip_bounds() -> dict[str, str]:
    requirements = bounds(PROJECT["dependencies"] + EXTRAS["lab"]) | {"python": PROJECT["requires-python"]}
    return {CONDA_NAMES.get(name, name): bound for name, bound in requirements.items()}


def test_conda_and_pip_ask_for_the_same() -> None:
    assert conda_bounds(read("environment.yml")) == pip_bounds()


@pytest.mark.parametrize("change", [("numpy>=1.26", "numpy>=1.27"), ("  - tqdm>=4.66\n", ""), ("python>=", "python>")])
def test_another_conda_story_is_noticed(change: tuple[str, str]) -> None:
    assert conda_bounds(read("environment.yml").replace(*change)) != pip_bounds()


def test_conda_environment_installs_the_package_itself() -> None:
    environment = yaml.safe_load(read("environment.yml"))
    assert environment["name"] == PROJECT["name"]
    assert environment["channels"] == ["conda-forge", "nodefaults"]
    assert {"pip": ["--editable ."]} in environment["dependencies"]
    assert "pip" in environment["dependencies"]


def test_every_requirement_has_a_lower_bound() -> None:
    everything = bounds([*PROJECT["dependencies"], *(text for extra in EXTRAS.values() for text in extra)])
    assert [name for name, bound in everything.items() if not bound.startswith(">=")] == []


def test_core_needs_torch_and_numpy_alone() -> None:
    assert set(bounds(PROJECT["dependencies"])) == {"torch", "numpy"}


@pytest.mark.parametrize("extra", EXTRAS)
def test_constraints_pin_every_requirement_within_its_bounds(extra: str) -> None:
    assert not unpinned(PROJECT["dependencies"] + EXTRAS[extra], pins(read("constraints.txt")))


def test_missing_and_unfit_pins_are_noticed() -> None:
    assert unpinned(["torch>=2.6", "numpy>=1.26", "tqdm>=4.66"], pins("torch==2.5\nNumPy==2.4.6\n")) == [
        "torch>=2.6",
        "tqdm>=4.66",
    ]


def too_new(needed: dict[str, str], oldest: str) -> list[str]:
    """The packages whose Requires-Python leaves out the oldest Python that the project promises."""
    return [name for name, pythons in needed.items() if not SpecifierSet(pythons).contains(oldest)]


def test_what_is_pinned_installs_on_the_oldest_python() -> None:
    # Debian 12 has 3.11.2: one pin that asked for 3.11.5 made every installation there fail.
    pinned = pins(read("constraints.txt"))
    installed = [d for d in distributions() if pinned.get(canonicalize_name(d.name)) == Version(d.version)]
    assert len(installed) > 50
    needed = {d.name: d.metadata.get("Requires-Python") or "" for d in installed}
    assert too_new(needed, PROJECT["requires-python"].removeprefix(">=") + ".0") == []


def test_a_pin_for_newer_pythons_is_noticed() -> None:
    assert too_new({"one": ">=3.11.5", "other": ">=3.10,!=3.14.1", "none": ""}, "3.11.0") == ["one"]


# -- version -------------------------------------------------------------------------------------------------------


def test_version_is_told_once() -> None:
    # The installed metadata: an editable install is older than pyproject.toml until `make` installs again.
    assert gn.__version__ == PROJECT["version"]


def test_changelog_has_a_section_for_what_comes_next() -> None:
    assert "\n## [Unreleased]\n" in read("CHANGELOG.md")


# -- commands ------------------------------------------------------------------------------------------------------


def targets() -> set[str]:
    """The targets that a person calls: those that the Makefile declares phony."""
    (line,) = re.findall(r"(?m)^\.PHONY: (.*)$", read("Makefile"))
    return set(line.split())


def commands(text: str) -> set[str]:
    """The targets named in a text: `make test` in backquotes or at the start of a line of code."""
    return set(re.findall(r"(?m)(?:`|^\s*\$? ?)make ([a-z][a-z-]*)", text))


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md"])
def test_documented_commands_exist(document: str) -> None:
    named = commands(read(document))
    assert {"lab", "test"} <= named
    assert named <= targets()


def test_unknown_command_is_noticed() -> None:
    assert commands("Run `make tea`, or\n\n    make coffee CUP=2\n\nand make sure.") == {"tea", "coffee"}


def test_help_lists_every_target() -> None:
    listed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert set(re.findall(r"(?m)^  make ([a-z-]+)", listed)) == targets()


def test_ci_runs_the_documented_test_command() -> None:
    assert "make test" in read(".ci/run").splitlines()


def test_ci_runs_the_notebooks_in_another_arithmetic_too() -> None:
    numbers = re.search(r'(?m)^make notebooks-elsewhere VARIANT=\w+ NB="([\d ]+)"$', read(".ci/run"))
    assert numbers
    assert all(len(list((ROOT / "notebooks").glob(f"{one}-*.ipynb"))) == 1 for one in numbers[1].split())


# -- licences ------------------------------------------------------------------------------------------------------


def test_code_is_mit() -> None:
    assert PROJECT["license"] == "MIT AND CC-BY-4.0"
    assert PROJECT["license-files"] == ["LICENSE", "notebooks/LICENSE", "book/LICENSE"]
    assert read("LICENSE").startswith("MIT License")
    assert "The gnewton authors" in read("LICENSE")


@pytest.mark.parametrize("folder", ["notebooks", "book"])
def test_text_is_cc_by(folder: str) -> None:
    notice = read(f"{folder}/LICENSE")
    assert "Creative Commons Attribution 4.0 International" in notice
    assert "https://creativecommons.org/licenses/by/4.0/" in notice
    assert "MIT" in notice
