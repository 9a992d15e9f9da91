"""Releases and classrooms: workflows, image, Binder and devcontainer call what is here, and linters accept them.

The image was built and run; workflows, Binder and devcontainer were not run where they are meant to: no GitHub and no Binder were at hand.
"""

import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
DOCKERFILE = ROOT / "deploy" / "Dockerfile"
PROBLEMS = runpy.run_path(str(ROOT / "tools" / "check_release.py"))["problems"]


def workflow(name: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / ".github" / "workflows" / f"{name}.yml").read_text(encoding="utf-8"))


def commands(content: dict[str, Any]) -> list[str]:
    """Each line that a workflow runs."""
    steps = [step for job in content["jobs"].values() for step in job.get("steps", [])]
    return [line.strip() for step in steps for line in step.get("run", "").splitlines()]


def targets() -> set[str]:
    (line,) = re.findall(r"(?m)^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"))
    return set(line.split())


def unknown(lines: list[str]) -> list[str]:
    """The lines that make does not run, or that are not the same call of Python as in the Makefile."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8").replace("$(BIN)/pytest", "$(BIN)/python -m pytest")
    strangers = []
    for line in lines:
        words = shlex.split(line)
        if words[0] == "make":
            named = [word for word in words[1:] if re.fullmatch(r"[a-z-]+", word)]
            known = bool(named) and set(named) <= targets()
        else:
            known = words[:2] == ["python", "-m"] and f"python -m {words[2]}" in makefile
        strangers += [] if known else [line]
    return strangers


# -- workflows -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_every_command_of_a_workflow_also_runs_from_make(path: Path) -> None:
    lines = commands(workflow(path.stem))
    assert lines
    assert unknown(lines) == []


def test_a_command_that_make_does_not_know_is_noticed() -> None:
    assert unknown(["make tea", "curl x", "python -m http.server", "make", "make dist"]) == [
        "make tea",
        "curl x",
        "python -m http.server",
        "make",
    ]


def test_the_matrix_covers_systems_pythons_and_torches() -> None:
    matrix = workflow("checks")["jobs"]["test"]["strategy"]["matrix"]
    assert matrix["os"] == ["ubuntu-latest", "macos-latest", "windows-latest"]
    assert matrix["python"] == ["3.11", "3.12", "3.13", "3.14"]
    assert f">={matrix['python'][0]}" == PROJECT["requires-python"]
    (oldest,) = {entry["torch"] for entry in matrix["include"]}
    (wanted,) = [line for line in PROJECT["dependencies"] if line.startswith("torch")]
    assert f"torch>={oldest.removesuffix('.0')}" == wanted
    assert {entry["os"] for entry in matrix["include"]} == set(matrix["os"])


def test_publishing_needs_no_password_and_asks_for_least() -> None:
    release = workflow("release")
    assert release["permissions"] == {"contents": "read"}
    assert release["jobs"]["publish"]["permissions"] == {"id-token": "write"}
    assert "secrets." not in "".join(path.read_text(encoding="utf-8") for path in WORKFLOWS)
    assert {"checks", "build", "publish", "pages"} == set(release["jobs"])


def run(*words: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([*map(str, words)], capture_output=True, text=True, check=False, cwd=ROOT)


def linter(name: str) -> str:
    beside = Path(sys.executable).with_name(name)
    path = str(beside) if beside.exists() else shutil.which(name)
    return path or pytest.skip(f"needs {name}: make lint-deploy installs it")


def test_actionlint_accepts_the_workflows_and_no_others(tmp_path: Path) -> None:
    done = run(linter("actionlint"), *WORKFLOWS)
    assert done.returncode == 0, done.stdout
    wrong = tmp_path / "wrong.yml"
    wrong.write_text(WORKFLOWS[0].read_text(encoding="utf-8").replace("runs-on: ubuntu-latest", "runs-on: ubuntu-none"))
    assert run(linter("actionlint"), wrong).returncode == 1


# -- image, Binder, devcontainer -----------------------------------------------------------------------------------


def test_hadolint_accepts_the_image_and_no_other(tmp_path: Path) -> None:
    done = run(linter("hadolint"), DOCKERFILE)
    assert done.returncode == 0, done.stdout
    wrong = tmp_path / "Dockerfile"
    wrong.write_text(DOCKERFILE.read_text(encoding="utf-8").replace("USER 1000", "RUN sudo true"))
    assert run(linter("hadolint"), wrong).returncode == 1


def test_image_is_slim_not_root_and_serves_the_course() -> None:
    text = DOCKERFILE.read_text(encoding="utf-8")
    assert set(re.findall(r"(?m)^FROM (\S+)", text)) == {"python:3.12-slim"}
    assert re.findall(r"(?m)^USER (\S+)", text) == ["1000"]
    assert text.index("USER 1000") < text.index("CMD")
    assert "EXPOSE 8888" in text
    from gnewton.__main__ import _parser

    words = json.loads(re.findall(r"(?m)^CMD (.*)$", text)[0])
    given, others = _parser().parse_known_args(words[3:])
    assert words[:3] == ["python", "-m", "gnewton"]
    assert (given.command, given.no_browser, given.port) == ("lab", True, 8888)
    assert others == ["--ServerApp.ip=0.0.0.0"]


def test_what_the_image_needs_is_sent_to_it() -> None:
    sent = (DOCKERFILE.with_name("Dockerfile.dockerignore")).read_text(encoding="utf-8").splitlines()
    assert sent[0] == "*"
    hook = (ROOT / "hatch_build.py").read_text(encoding="utf-8")
    for name in [
        *re.findall(r'"((?:book|notebooks)/[\w.]+)"', hook),
        "gnewton",
        "pyproject.toml",
        "README.md",
        "LICENSE",
    ]:
        assert any(f"!{name}" == line or f"!{name.partition('/')[0]}" == line for line in sent), name


@pytest.mark.skipif(os.name == "nt", reason="Binder runs Linux")
def test_binder_s_last_step_runs(tmp_path: Path) -> None:
    assert os.access(ROOT / "postBuild", os.X_OK)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    env = os.environ | {"SETTINGS": str(tmp_path), "PATH": path}
    done = subprocess.run([ROOT / "postBuild"], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "fetchNews" in (tmp_path / "overrides.json").read_text(encoding="utf-8")


def test_devcontainer_makes_what_the_makefile_makes() -> None:
    content = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text(encoding="utf-8"))
    assert content["postCreateCommand"] == "make .venv/.installed-test"
    assert "test" in PROJECT["optional-dependencies"]
    assert content["forwardPorts"] == [8888]


# -- release -------------------------------------------------------------------------------------------------------


def test_the_release_is_told_the_same_everywhere() -> None:
    assert PROBLEMS(ROOT, None) == []
    assert PROBLEMS(ROOT, f"v{PROJECT['version']}") == []


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("CITATION.cff", "\nversion: ", "\nversion: 9"),
        ("CHANGELOG.md", "## [0", "## [9"),
        ("pyproject.toml", 'version = "', 'version = "9'),
    ],
)
def test_another_story_is_noticed(tmp_path: Path, file: str, old: str, new: str) -> None:
    for name in ("CITATION.cff", "CHANGELOG.md", "pyproject.toml"):
        shutil.copyfile(ROOT / name, tmp_path / name)
    path = tmp_path / file
    path.write_text(path.read_text(encoding="utf-8").replace(old, new, 1), encoding="utf-8")
    assert PROBLEMS(tmp_path, None) != []
    assert PROBLEMS(ROOT, "v9.9.9") != []
