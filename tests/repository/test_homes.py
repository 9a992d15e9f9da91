"""Where a file of the package is tested is found by its name: tests/ROOM/test_NAME.py, or the table below says where and why."""

from collections.abc import Iterable, Mapping
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# reason -> pattern of package files -> their home
ELSEWHERE: dict[str, dict[str, str]] = {
    "one table of laws, generated over all files of the folder": {
        "derivatives/rules/*.py": "derivatives/test_sweep.py",
        "contraction.py": "test_keywords.py",
        "margins.py": "test_keywords.py",
        "teaching/derivations/*.py": "teaching/derivations/test_derivation.py",
        "teaching/exercises/notebook_*.py": "teaching/exercises/test_exercise.py",
    },
    "parts of one engine, whose law is that of the engine: the numbers of the oracle": {
        "derivatives/complex_pairs.py": "derivatives/test_tape.py",
        "derivatives/accumulator.py": "derivatives/test_sweep.py",
        "derivatives/group_tangents.py": "derivatives/test_sweep.py",
        "derivatives/graph.py": "derivatives/test_proof.py",
        "derivatives/operation.py": "derivatives/test_tape.py",
        "derivatives/record.py": "derivatives/test_tape.py",
        "derivatives/recorder.py": "derivatives/test_tape.py",
        "secular.py": "test_cubic.py",
        "exact/sample_directions.py": "exact/test_newton.py",
        "exact/loss.py": "exact/test_hessian.py",
        "exact/reduced.py": "exact/test_spectrum.py",
        "exact/shortcuts.py": "exact/test_newton.py",
        "exact/riccati.py": "exact/test_newton.py",
        "exact/passes.py": "exact/test_network.py",
        "exact/gauss_newton.py": "exact/test_saddle_free.py",
    },
    "parts of one optimizer step, whose laws are those of the step": {
        "held.py": "policies/test_policy.py",
        "line.py": "policies/test_policy.py",
        "proposer.py": "test_direction.py",
        "undo.py": "test_optimizer.py",
        "policies/outcome.py": "policies/test_policy.py",
        "policies/reuse_rates.py": "policies/test_policy.py",
    },
    "parts of several processes, whose laws are those of the ranks": {
        "buckets.py": "test_ranks.py",
        "interrupts.py": "test_ranks.py",
        "replicas.py": "test_ranks.py",
    },
    "a widget without laws of its own": {
        "teaching/widgets/four_rates.py": "teaching/widgets/test_figure_widget.py",
    },
    "what a command line calls: tested by typing it": {
        "__main__.py": "course/test_command.py",
        "console.py": "course/test_command.py",
        "course/environment.py": "course/test_command.py",
        "course/lab.py": "course/test_command.py",
        "course/place.py": "course/test_command.py",
        "course/grading.py": "course/test_graders.py",
        "experiments/__main__.py": "experiments/test_front.py",
        "experiments/experiment.py": "experiments/test_front.py",
        "experiments/processes.py": "experiments/test_scaling.py",
        "experiments/race.py": "experiments/test_front.py",
        "experiments/registry.py": "experiments/test_front.py",
        "experiments/results.py": "experiments/test_front.py",
        "teaching/collect.py": "teaching/test_report.py",
    },
    "data of the experiments, seen where they are run or shown": {
        "experiments/methods.py": "experiments/test_protocol.py",
        "experiments/networks.py": "experiments/test_protocol.py",
        "experiments/pictures.py": "experiments/test_report.py",
        "experiments/twins.py": "experiments/test_untuned.py",
        "experiments/unseen.py": "experiments/test_untuned.py",
        "experiments/fresh.py": "experiments/test_calibrated.py",
        "experiments/lockstep.py": "experiments/test_calibrated.py",
        "experiments/peers.py": "experiments/test_calibrated.py",
        "models/device.py": "models/test_networks.py",
    },
}
HOMES = {pattern: home for homes in ELSEWHERE.values() for pattern, home in homes.items()}


def own(file: str) -> str:
    """cubic.py -> test_cubic.py; exact/tape.py -> exact/test_tape.py."""
    return str(Path(file).with_name(f"test_{Path(file).name}"))


def homeless(files: Iterable[str], tests: Iterable[str], elsewhere: Mapping[str, str]) -> list[str]:
    """The package files without a test file of their name or a line in the table."""
    known = set(tests)
    return [file for file in files if own(file) not in known and not any(fnmatch(file, one) for one in elsewhere)]


def listing(folder: str) -> list[str]:
    paths = sorted((ROOT / folder).rglob("*.py"))
    return [str(path.relative_to(ROOT / folder)) for path in paths if path.name != "__init__.py"]


FILES, TESTS = listing("gnewton"), listing("tests")


def test_every_file_has_its_home() -> None:
    assert not homeless(FILES, TESTS, HOMES), "write tests/ROOM/test_NAME.py, or say in ELSEWHERE where it is tested"


@pytest.mark.parametrize(("pattern", "home"), HOMES.items())
def test_a_line_of_the_table_is_needed_and_true(pattern: str, home: str) -> None:
    assert home in TESTS
    assert [file for file in FILES if fnmatch(file, pattern) and own(file) not in TESTS], "this line can go"


def test_a_file_without_a_home_is_noticed() -> None:
    assert homeless(["a.py", "b.py", "c/d.py", "c/e.py"], ["test_a.py", "c/test_d.py"], {"c/*.py": "x"}) == ["b.py"]
