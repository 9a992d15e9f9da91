"""`make gpu`, as far as it can be seen without a GPU: its sections run on the CPU, and what they find is told truly."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import gpu, gpu_notebook, gpu_report
from gnewton import datasets, models

CPU = torch.device("cpu")
HERE = torch.accelerator.is_available()


@pytest.mark.skipif(HERE, reason="there is an accelerator")
def test_without_one_it_lists_what_would_run_and_ends_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--folder", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "no accelerator found" in said
    assert set(re.findall(r"(?m)^\| (\w+)", said)) == {"section", *gpu.SECTIONS}
    assert list(tmp_path.iterdir()) == []


def test_agreement_holds_here_and_a_wrong_summary_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = gpu.agreement(CPU, ["tiny"], batch=5)
    assert [row["ok"] for row in rows] == [True] * len(rows)
    assert len({row["what"] for row in rows}) == len(rows) == 8
    right = gpu.summary
    monkeypatch.setattr(
        gpu,
        "summary",
        lambda net, groups: [t * (1 + (net.model[0].weight.dtype == torch.float32)) for t in right(net, groups)],
    )
    verdicts = {row["dtype"]: row["ok"] for row in gpu.agreement(CPU, ["tiny"], batch=5)}
    assert verdicts == {"float64": True, "float32": False}


def test_a_row_that_fails_says_why_and_hides_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "PRECISIONS", ("float32", "float8"))
    monkeypatch.setattr(gpu, "REPEATS", 1)
    real = gpu.build
    monkeypatch.setattr(gpu, "build", lambda name, *rest: real("none" if name == "lenet" else name, *rest))
    rows = gpu.timings(CPU, ["lenet", "tiny"], [8])
    assert [row["ok"] for row in rows] == [False, False, True, True]
    assert "KeyError" in rows[0]["why"]
    assert set(rows[2]["milliseconds"]) == set(gpu.steps(gpu.build("tiny")))
    assert min(rows[2]["milliseconds"].values()) > 0


@pytest.mark.parametrize("precision", gpu.PRECISIONS)
def test_every_precision_is_timed_or_refused_with_a_reason(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "REPEATS", 1)
    before = torch.get_float32_matmul_precision()
    row = gpu.attempted(lambda: gpu.timed_steps(CPU, "tiny", 8, precision))
    assert row["ok"] or row["why"]
    assert torch.get_float32_matmul_precision() == before


def test_notebooks_are_given_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (datasets, models):
        for name in list(vars(module)):
            monkeypatch.setattr(module, name, getattr(module, name))  # as before afterwards
    gpu_notebook.prefer("meta", datasets, models)
    assert models.perceptron([2, 3])[0].weight.is_meta
    assert datasets.digits().train_x.is_meta
    assert not models.perceptron([2, 3], device="cpu")[0].weight.is_meta


def test_the_notebooks_are_there() -> None:
    assert [name for name in gpu.NOTEBOOKS if not (gpu_notebook.FOLDER / f"{name}.ipynb").exists()] == []


def test_results_are_saved_and_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "REPEATS", 1)
    sections = {
        "agreement": (lambda device: gpu.agreement(device, ["tiny"], 5), 8),
        "timings": (lambda device: gpu.timings(device, ["tiny"], [8]), 3),
        "notebooks": (
            lambda device: [{"what": "03", "ok": None, "why": "not here"}, {"what": "10", "ok": False, "why": "E"}],
            2,
        ),
    }
    monkeypatch.setattr(gpu, "SECTIONS", sections)
    assert gpu.measure(CPU, list(sections), tmp_path) == 1
    assert "Not right: notebooks: 10" in capsys.readouterr().out
    (path,) = tmp_path.glob("*.json")
    assert json.loads(path.read_text())["device"] == "cpu"
    page = gpu_report.page(tmp_path)
    assert "* agreement: 8 of 8 right, 0 not run" in page
    assert "* notebooks: 0 of 1 right, 1 not run\n  * 10: E" in page
    assert "| tiny, batch 8, TF32" in page
    assert re.search(r"\| tiny +\| float64 +\| \de[-+]\d\d", page)


def test_without_results_the_page_says_so(tmp_path: Path) -> None:
    assert gpu_report.page(tmp_path) == gpu_report.NOT_MEASURED


def test_no_result_is_shipped_that_no_card_gave() -> None:
    devices = [json.loads(path.read_text())["device"] for path in gpu.FOLDER.glob("*.json")]
    assert "cpu" not in devices


def test_torch_and_numpy_are_enough() -> None:
    absent = ("matplotlib", "sklearn", "IPython", "nbclient", "nbformat", "pytest", "ipywidgets", "tqdm", "curvlinops")
    # None in sys.modules makes an import fail as if the package were not installed.
    code = f"import sys, torch; sys.modules.update(dict.fromkeys({absent})); from benchmarks import gpu; print(len(gpu.plan()) > 99)"
    done = subprocess.run([sys.executable, "-c", code], cwd=gpu.ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"
