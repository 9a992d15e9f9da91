"""The benchmarks measure what they say: right networks, peers that agree, clocks and marks that tell the truth."""

import doctest
import importlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import nbformat
import pytest
import torch

from benchmarks import __main__ as front
from benchmarks import (
    agreement,
    exact,
    figures,
    growth,
    measure,
    networks,
    one_sample,
    peers,
    process,
    profile,
    real,
    real_networks,
    report,
    sections,
    steps,
    widgets,
)
from benchmarks.plan import Plan

S_BY_TENSOR = {
    "perceptron": 8,
    "20x256": 42,
    "20x1024": 42,
    "lenet": 10,
    "vgg11": 22,
    "residual": 29,
    "transformer": 26,
    "tiny": 4,
    "small": 6,
    "chain-5-8": 10,
}


@pytest.mark.parametrize("module", ["agreement", "growth", "measure", "report", "widgets"])
def test_examples(module: str) -> None:
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    result = doctest.testmod(importlib.import_module(f"benchmarks.{module}"), optionflags=flags)
    assert result.attempted > 0
    assert result.failed == 0


# -- networks ------------------------------------------------------------------------------------------------------


def test_seven_networks_and_a_tiny_one() -> None:
    assert set(networks.NETWORKS) == set(S_BY_TENSOR) - {"chain-5-8"}
    assert len(networks.SEVEN) == 7


@pytest.mark.parametrize("name", S_BY_TENSOR)
def test_a_network_has_its_groups_and_a_finite_loss(name: str) -> None:
    network = networks.build(name, batch=2)
    assert len(networks.partition("by tensor", network.model)) == S_BY_TENSOR[name]
    assert len(networks.partition("single", network.model)) == 1
    assert network.loss().isfinite()


def test_both_dtypes_hold_the_same_numbers_and_the_random_state_stays() -> None:
    before = torch.get_rng_state()
    narrow, wide = (networks.build("tiny", dtype=dtype) for dtype in (torch.float32, torch.float64))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(narrow.batch[0].double(), wide.batch[0])
    for p, q in zip(narrow.model.parameters(), wide.model.parameters(), strict=True):
        assert torch.equal(p.double(), q)


@pytest.mark.parametrize("s", [1, 3, 10])
def test_consecutive_groups(s: int) -> None:
    parts = networks.partition(f"in {s}", networks.build("chain-5-8", batch=2).model)
    labels = [parts.label(name) for name in parts.parameters]
    assert labels == sorted(labels)
    assert len(parts) == s


def test_every_group_of_the_direction_has_norm_one() -> None:
    network = networks.build("tiny", dtype=torch.float64)
    parts = networks.partition("by layer", network.model)
    u = networks.direction(network, parts)
    norms = parts.sums({name: part**2 for name, part in u.items()})
    torch.testing.assert_close(norms, torch.ones_like(norms))


# -- peers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", networks.PARTITIONS)
@pytest.mark.parametrize("peer", peers.PEERS)
def test_a_peer_agrees_with_the_oracle(peer: str, groups: str) -> None:
    orders = [(peer, order) for order in peers.PEERS[peer].orders]
    result = agreement.agree("tiny", groups, 5, orders)
    assert agreement.passes(result)
    assert not agreement.disagreeing(result)
    assert all(set(errors) >= {"2"} for errors in result["peers"].values())


def test_a_peer_that_is_wrong_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*arguments: Any) -> peers.Result:
        gradient, hessian, third = peers.paper(*arguments)
        return gradient, hessian * (1 + 1e-8), third

    monkeypatch.setitem(peers.PEERS, "paper", replace(peers.PEERS["paper"], run=wrong))
    result = agreement.agree("tiny", "by tensor", 5, [("paper", 2), ("tightened", 2)])
    assert agreement.disagreeing(result) == ["paper 2"]
    with pytest.raises(RuntimeError, match="tiny, by tensor: paper 2"):
        sections.require_agreement([result])


@pytest.mark.parametrize(
    ("float64", "float32", "oracle32", "met"),
    [(1e-11, 9e-6, 0.0, True), (2e-10, 0.0, 0.0, False), (0.0, 2e-5, 4e-6, False), (0.0, 2e-5, 6e-6, True)],
)
def test_what_passes(float64: float, float32: float, oracle32: float, met: bool) -> None:
    result = {"float64": {"1": float64}, "float32": {"1": float32}, "oracle32": {"1": oracle32}}
    assert agreement.passes(result) is met


# -- measures ------------------------------------------------------------------------------------------------------


def register(monkeypatch: pytest.MonkeyPatch, run: Any) -> str:
    monkeypatch.setitem(peers.PEERS, "mock", peers.Peer("mock", run))
    return "mock"


def test_time_is_counted_in_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    def three_gradients(network: networks.Network, *_: Any) -> None:
        for _ in range(3):
            torch.autograd.grad(network.loss(), list(network.model.parameters()))

    peer = register(monkeypatch, three_gradients)
    result = measure.time("tiny", "by tensor", [(peer, 2)], seconds=0.3)
    (row,) = result["rows"]
    assert row["low"] <= row["ratio"] <= row["high"]
    # CPU time of three runs against one; other programs on the machine may disturb it, hardly by a factor of 1.5.
    assert 2 < row["ratio"] < 4.5


def test_a_peer_that_cannot_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise RuntimeError("no second derivative\nof this")

    (row,) = measure.time("tiny", "single", [(register(monkeypatch, refuse), 2)])["rows"]
    assert row["why"] == "RuntimeError: no second derivative of this"


def test_a_mistake_of_ours_is_not_taken_for_a_limit_of_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TypeError):
        measure.time("tiny", "single", [(register(monkeypatch, lambda: None), 2)])


def test_patience_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    def forever(*_: Any) -> None:
        while True:
            pass

    (row,) = measure.time("tiny", "single", [(register(monkeypatch, forever), 2)], patience=0.1)["rows"]
    assert row["why"] == "not done after 0 s"


TOUCH = """
import torch
from benchmarks import measure, peers

# 64 MiB, written to and let go.
peers.PEERS["mock"] = peers.Peer("mock", lambda *_: torch.ones(2**26 // 4))
print(measure.memory("tiny", "single", "mock")["bytes"])
"""


def test_peak_memory_sees_what_was_freed_again() -> None:
    # In a process of its own, as the benchmark measures: this one may hold that much, resident and free, from earlier tests.
    process = subprocess.run(
        [sys.executable, "-c", TOUCH], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True
    )
    assert 2**25 < int(process.stdout) < 2**27


def test_sizes_of_a_tape() -> None:
    sizes = measure.tape("tiny", "by tensor")
    hidden, logits, scalar = 32 * 32 * 4, 32 * 10 * 4, 4
    assert sizes["recorded"] == 2 * hidden + 2 * logits + scalar
    assert sizes["alive"] == 2 * hidden  # tanh: its input and its output
    assert (sizes["S"], sizes["missing"]) == (4, None)


def test_bound_of_the_memory() -> None:
    assert sections.bound(gradient=100, recorded=10, alive=2, s=5) == 140


@pytest.mark.parametrize("threads", [1, 2])
def test_a_task_has_its_own_process_and_threads(threads: int) -> None:
    result = process.run("time", threads, network="tiny", groups="single", subjects=[("oracle", 2)], seconds=0.01)
    assert result["threads"] == threads
    assert result["rows"][0]["why"] is None


def test_a_task_that_fails_tells_its_last_words() -> None:
    with pytest.raises(RuntimeError, match="KeyError: 'teapot'"):
        process.run("tape", network="teapot", groups="single")


# -- report --------------------------------------------------------------------------------------------------------


def test_a_section_is_printed_and_saved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = report.table(["a", "b"], [[1, "x"]])
    report.save(tmp_path / "results", "section", text, [1, 2])
    assert capsys.readouterr().out.startswith(text)
    assert (tmp_path / "results" / "section.md").read_text() == text + "\n"
    assert (tmp_path / "results" / "section.json").read_text().split() == ["[", "1,", "2", "]"]


def test_a_section_from_measurement_to_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With times made up: the targets are compared, the misses are listed."""

    def made_up(task: str, threads: int = 1, **arguments: Any) -> dict[str, Any]:
        times = {"engine": 2.5, "paper": 10.0}
        rows = [
            {"peer": p, "order": o, "why": None, "ratio": (t := times.get(p, 5.0)), "low": t, "high": t}
            for p, o in arguments["subjects"]
        ]
        return {"network": arguments["network"], "groups": "by tensor", "S": 8, "threads": threads, "rows": rows}

    monkeypatch.setattr(sections, "run", made_up)
    plan = Plan(networks=["perceptron"], quick=True, folder=tmp_path)
    sections.work(plan)
    assert plan.failures == ["order 2: perceptron, work", "order 3: perceptron, gain"]
    assert "| 2.5 (2.5 to 2.5) |" in (tmp_path / "work-order-2.md").read_text()


@pytest.mark.parametrize("name", [real.LSTM, real.GRU])
def test_a_recurrent_network_has_groups_and_a_finite_loss(name: str) -> None:
    network, parts, u = measure._problem(name, "by tensor")
    assert len(parts) == len(u) == 11
    assert network.loss().isfinite()


@pytest.mark.parametrize("name", [n for n in real_networks.REAL if "layers" not in n])
def test_a_network_of_transformers_has_the_groups_of_its_row(name: str) -> None:
    if real.transformers_is_missing():
        pytest.skip("transformers cannot be imported")
    sizes = {real.GPT: 15, real.RESNET: 107, real.IN_PLACE: 107}
    network, groups = real_networks.build_real(name), "by block" if name == real.GPT else "by layer"
    parts = real_networks.by_block(network.model) if groups == "by block" else networks.partition(groups, network.model)
    assert len(parts) == sizes.get(name, len(parts))
    assert network.loss().isfinite()


def test_every_kind_of_step_is_timed_beside_adams(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "run", lambda task, **arguments: steps.times("tiny", 0.01))
    steps.step_times(Plan(folder=tmp_path))
    milliseconds = json.loads((tmp_path / "steps.json").read_text())["milliseconds"]
    assert {"Adam", "Calibrated", "GroupedNewton"} <= set(milliseconds)
    assert all(ms > 0 for ms in milliseconds.values())
    assert "| Adam " in (tmp_path / "steps.md").read_text()


def test_a_profile_says_what_each_operation_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile, "run", lambda task, **arguments: profile.times("tiny", arguments["order"]))
    monkeypatch.setattr(profile, "NETWORKS", ("tiny",))
    profile.profile(Plan(networks=["tiny"], folder=tmp_path))
    (second, third) = json.loads((tmp_path / "profile.json").read_text())
    assert {"linear", "tanh", "log_softmax"} <= set(second["operations"]) == set(third["operations"])
    assert 0 < second["rules"] < second["all"]
    with profile.timed_rules() as spent:
        pass
    assert not spent


def test_real_networks_from_measurement_to_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With times made up: a miss is listed, and without transformers its networks are left out."""

    def made_up(task: str, **arguments: Any) -> dict[str, Any]:
        if task == "memory":
            return {"bytes": 2**20, "why": None}
        times = {"engine": 3.0, "oracle": 2.0}
        rows = [
            {"peer": p, "order": o, "why": None, "ratio": times[p], "low": times[p], "high": times[p]}
            for p, o in arguments["subjects"]
        ]
        return {"network": arguments["network"], "groups": arguments["groups"], "S": 11, "threads": 1, "rows": rows}

    monkeypatch.setattr(real, "run", made_up)
    monkeypatch.setattr(real, "transformers_is_missing", lambda: True)
    plan = Plan(folder=tmp_path)
    real.real(plan)
    assert plan.failures == [f"real: {n}, by tensor, order {o}" for n in (real.LSTM, real.GRU) for o in (2, 3)]
    assert (tmp_path / "real.md").read_text().count("| 2 (2 to 2) ") == 4


def test_an_accelerator_that_is_not_there_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"expected a device of type abacus, got .*: nothing was measured"):
        front.main(["--device", "abacus"])


def test_exact_directions_from_measurement_to_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With times made up: cubes of the width, and a sweep that is slower than asked."""
    pytest.importorskip("matplotlib")
    made_up = {"gradient": 1e-6, "sweep alone": 4e-6, "one by one": 9e-5, "solves": 1e-6, "shortcut alone": 1e-7}

    def fake(task: str, **arguments: Any) -> Any:
        if task == "one sample agrees":
            return 1e-15
        facts = {name: arguments[name] for name in ("width", "hidden", "batch", "dtype")} | {"parameters": 10}
        size = arguments["width"] ** 3
        return facts | {"ways": {w: {"seconds": made_up.get(w, 1e-5) * size, "why": None} for w in arguments["ways"]}}

    monkeypatch.setattr(exact, "run", fake)
    plan = Plan(quick=True, folder=tmp_path)
    exact.exact(plan)
    assert plan.failures == [f"exact: sweep / its solves, width {w}, {d}" for d in exact.DTYPES for w in (16, 32, 64)]
    text = (tmp_path / "exact.md").read_text()
    assert "| width   | 1  | float64 | sweep    | 3    | 3   |" in text
    assert (tmp_path / "exact.png").stat().st_size > 1000


def test_no_times_where_the_exact_ways_disagree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact, "run", lambda task, **_: 1e-3)
    with pytest.raises(RuntimeError, match="expected ways that agree"):
        exact.exact(Plan(folder=tmp_path))


@pytest.mark.parametrize("batch", [1, 3])
def test_every_exact_way_is_timed_or_says_why_not(batch: int) -> None:
    timings = one_sample.time(5, 1, batch, "float64", list(one_sample.WAYS), seconds=0.01)
    assert all(way["seconds"] > 0 for way in timings["ways"].values())
    deep = one_sample.time(5, 2, batch, "float32", ["sweep", "shortcut"], seconds=0.01)
    assert deep["ways"]["shortcut"]["why"].startswith("ValueError: expected a network of one or two layers")


@pytest.mark.parametrize("hidden", [1, 3])
def test_the_exact_ways_agree(hidden: int) -> None:
    assert one_sample.disagreement(6, hidden, 4) < exact.TOLERANCE


def test_every_control_of_a_widget_is_moved_and_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ipywidgets")
    cells = ["from gnewton.teaching import QuadraticBowl", "bowl = QuadraticBowl()"]
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])
    nbformat.write(book, tmp_path / "one.ipynb")
    monkeypatch.setattr(widgets, "NOTEBOOKS", tmp_path)
    monkeypatch.setattr(widgets, "MOVES", 2)
    monkeypatch.setattr(widgets, "run", lambda task, notebook: widgets.redraw(notebook))
    monkeypatch.setattr(widgets, "ASKED", 0.0)
    plan = Plan(folder=tmp_path)
    widgets.widgets(plan)
    assert plan.failures == [f"redraw: one, QuadraticBowl, {c}" for c in ("condition", "angle", "start")]


@pytest.mark.parametrize("section", [widgets, figures])
def test_what_is_saved_is_what_its_numbers_say(section: Any) -> None:
    name = section.__name__.rpartition(".")[2]
    numbers = json.loads((report.RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    assert (report.RESULTS / f"{name}.md").read_text(encoding="utf-8") == section.report(numbers) + "\n"


def test_the_words_about_figures_follow_the_numbers() -> None:
    page = [{"page": "p", "figure": i, "source": "table", "ms": ms} for i, ms in enumerate(([1.0, 2.0, 9.0], [9.0]))]
    lab = [{"page": "p", "figure": 0, "ms": [30.0, 41.0, 42.0]}]
    said = figures.report({"page": page, "lab": lab})
    assert "medians of 2.0 to 9.0 ms of script a frame, at most 8 asked, which 1 of 2 figures meet" in said
    assert "medians of 41 to 41 ms, at most 40 asked, which 0 of 1 meet" in said
    assert "Other work" not in said
    assert "load average was 6.5." in figures.report({"page": page, "lab": lab, "load": 6.5})
    rows = [line.split("|")[3:-1] for line in said.splitlines()[-2:]]
    cells = [[cell.strip() for cell in row] for row in rows]
    assert cells == [["table", "2.0", "9.0", "yes", "41.0", "42.0", "NO"], ["table", "9.0", "9.0", "NO", "-", "-", "-"]]


def test_a_cell_that_fails_is_not_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ipywidgets")
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 / 0")]), tmp_path / "one.ipynb")
    monkeypatch.setattr(widgets, "NOTEBOOKS", tmp_path)
    with pytest.raises(ZeroDivisionError):
        widgets.redraw("one")


@pytest.mark.parametrize("exponent", [-1.0, 0.0, 1.5])
def test_slope_of_a_power(exponent: float) -> None:
    x = [2, 4, 8, 64]
    assert growth.slope(x, [3 * v**exponent for v in x]) == pytest.approx(exponent, abs=1e-12)


def test_growth_figure(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    rows = [{"peer": "engine", "order": o, "why": None, "seconds": 1.0, "gradient_seconds": 0.1} for o in (2, 3)]
    slow = {"peer": "engine", "order": 2, "why": "not done after 5 s"}
    points = [(2, {"rows": rows}), (4, {"rows": [slow, *rows]}), (8, {"rows": [slow]})]
    growth.figure({"S": points, "depth": points}, ["engine"], tmp_path)
    assert (tmp_path / "growth.png").stat().st_size > 1000


def test_partial_runs_leave_the_published_results_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, Path]] = []
    fake = {name: lambda plan, name=name: seen.append((name, plan.folder)) for name in front.SECTIONS}
    monkeypatch.setattr(front, "SECTIONS", fake)
    monkeypatch.setattr(front, "_machine", lambda folder: None)
    front.main(["--only", "tiny", "--quick"])
    front.main([])
    assert seen[:2] == [("agreement", report.PARTIAL), ("tiny", report.PARTIAL)]
    assert seen[2:] == [(name, report.RESULTS) for name in front.SECTIONS]
