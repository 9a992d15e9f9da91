"""Run pytest as another processor would: ``python tools/elsewhere.py [VARIANT ...] -- PYTEST_ARGUMENT ...``.

Each processor adds in another order, and a training run amplifies the last bit. What is printed or asserted must not depend
on it. A failure is named by pytest, with what was expected and what was got; a table of the variants closes the run.

=========  ===========================================================================
sse        the oldest kernels of torch, MKL, oneDNN and numpy
avx2       torch and oneDNN keep to AVX2
threads    two threads: sums are split
perturbed  training data of the notebooks times 1 + 1e-7 z, z standard normal
=========  ===========================================================================

Without a variant all of them run. The first two need an x86 processor, the second one with AVX2.
"""

import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

import numpy as np

PERTURB = Path(__file__).with_name("perturb.py")
VARIANTS: dict[str, dict[str, str]] = {
    "sse": {
        "ATEN_CPU_CAPABILITY": "default",
        "MKL_CBWR": "COMPATIBLE",
        "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        # Only names that this numpy found here: it warns of others.
        "NPY_DISABLE_CPU_FEATURES": " ".join(np.show_config("dicts")["SIMD Extensions"].get("found", [])),
    },
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
    # Passive: threads of several test runners that wait for each other must not spin.
    "threads": {"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE"},
    "perturbed": {},
}
ARITHMETIC = (
    "import torch; print(torch.backends.cpu.get_cpu_capability(), 'kernels,', torch.get_num_threads(), 'threads')"
)


@dataclass(frozen=True)
class Outcome:
    """What one run of pytest found: its exit status, the number of tests, the names of those that failed."""

    status: int
    tests: int
    failures: list[str]


def main(variants: list[str], arguments: list[str]) -> int:
    """Run all variants, close with the table; return 0 if every one of them passed."""
    if unknown := set(variants) - set(VARIANTS):
        sys.exit(f"expected variants out of {', '.join(VARIANTS)}, got {', '.join(sorted(unknown))}")
    outcomes = {variant: run(variant, arguments) for variant in variants or VARIANTS}
    print(table(outcomes))
    return max(outcome.status for outcome in outcomes.values())


def run(variant: str, arguments: list[str]) -> Outcome:
    """Run pytest in the variant's environment."""
    with tempfile.TemporaryDirectory() as folder:
        env = os.environ | VARIANTS[variant] | (perturbed(Path(folder)) if variant == "perturbed" else {})
        arithmetic = subprocess.run([sys.executable, "-c", ARITHMETIC], env=env, capture_output=True, text=True)
        print(f"== {variant}: {arithmetic.stdout.strip()}{arithmetic.stderr}", flush=True)
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", f"--junitxml={report}", *arguments]
        return outcome(subprocess.run(command, env=env).returncode, report)


def perturbed(folder: Path) -> dict[str, str]:
    """An IPython folder whose kernels perturb the training data before the first cell."""
    startup = folder / "profile_default" / "startup"
    startup.mkdir(parents=True)
    (startup / "perturb.py").write_text(f"__import__('runpy').run_path({str(PERTURB)!r})\n", encoding="utf-8")
    return {"IPYTHONDIR": str(folder)}


def outcome(status: int, report: Path) -> Outcome:
    """Read pytest's JUnit report; it is missing where pytest did not start."""
    cases = list(ElementTree.parse(report).iter("testcase")) if report.exists() else []
    failed = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    return Outcome(status, len(cases), [f"{case.get('classname')} {case.get('name')}" for case in failed])


def table(outcomes: dict[str, Outcome]) -> str:
    """One line a variant: tests, failures, and which."""
    lines = ["variant     tests  failed"]
    for variant, outcome in outcomes.items():
        which = "; ".join(outcome.failures) if outcome.tests else f"pytest ran no test, exit status {outcome.status}"
        lines.append(f"{variant:10} {outcome.tests:6} {len(outcome.failures):7}  {which}".rstrip())
    return "\n".join(lines)


if __name__ == "__main__":
    if "--" not in sys.argv:
        sys.exit("usage: elsewhere.py [VARIANT ...] -- PYTEST_ARGUMENT ...")
    split = sys.argv.index("--")
    sys.exit(main(sys.argv[1:split], sys.argv[split + 1 :]))
