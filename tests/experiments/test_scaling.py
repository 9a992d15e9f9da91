"""The experiment with several processes: its counts are those of the algorithm, its model is the formula of its page."""

import json
import math

import pytest
import torch

from gnewton import experiments
from gnewton.buckets import cut
from gnewton.experiments import scaling
from gnewton.experiments.processes import METHODS, run_processes
from gnewton.experiments.protocol import Plan
from gnewton.models import perceptron

SHIPPED = experiments.load("scaling")


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")
def test_what_one_process_raises_ends_all_of_them():
    with pytest.raises(torch.multiprocessing.ProcessRaisedException, match="rank 1 has no data"):
        run_processes(2, fail)


def fail(rank):
    if rank == 1:
        raise ValueError("rank 1 has no data")
    return {}


def test_the_shipped_counts_are_those_of_the_algorithm():
    """A header of 40 bytes before each question; P float32 numbers for a gradient, 1 + 2S + S^2 float64 for a summary."""
    two = {name: method["processes"]["2"] for name, method in SHIPPED["methods"].items()}
    P, S = two["adam"]["scalars"], two["adam"]["groups"]
    header, gradient = 40, 4 * P
    summary, rates = 8 * (1 + 2 * S + S**2), 8 * (3 + S)
    assert two["adam"]["bytes"] == gradient
    assert (two["reuse"]["collectives"], two["reuse"]["bytes"]) == (3, 2 * header + gradient)
    # A look costs one more header with a loss: at every step that finds the rate, at every tenth afterwards.
    first, later = two["calibrated-first"], two["calibrated"]
    assert (first["collectives"], first["bytes"]) == (4, 3 * header + gradient)
    assert later["collectives"] == pytest.approx(3.1)
    assert later["bytes"] == pytest.approx(2.1 * header + gradient)
    # A step with a summary: gradient, summary, rates, at least one loss, and the end of the step.
    fresh = two["adaptive-1"]
    questions = fresh["collectives"] - 3
    assert questions >= 5
    assert fresh["bytes"] == pytest.approx(gradient + summary + rates + header * questions, rel=1e-12)
    tenth = two["reuse-10"]
    assert tenth["collectives"] == pytest.approx(3 + 5 / 10)
    assert tenth["bytes"] == pytest.approx(gradient + header * 2 + (summary + rates + 3 * header) / 10)


def test_one_process_sends_nothing_but_what_distributed_data_parallel_does():
    assert all(method["processes"]["1"]["bytes"] == 0 for name, method in SHIPPED["methods"].items() if name != "adam")


@pytest.mark.parametrize("name", METHODS)
def test_the_model_is_the_formula(name):
    link, method = SHIPPED["link"], SHIPPED["methods"][name]["processes"]
    sent = method["2"]
    for devices in (2, 8, 10_000):
        seconds = link["latency"] * sent["collectives"] * math.log2(devices)
        seconds += link["seconds_per_byte"] * sent["bytes"] * 2 * (devices - 1) / devices
        assert scaling.predict(SHIPPED, name, devices) == pytest.approx(
            method["1"]["processor_ms"] + 1000 * seconds, rel=1e-12
        )


def test_the_slowest_process_counts_and_the_fastest_block(monkeypatch, tmp_path):
    def pretended(size, job, *arguments):
        if job is scaling.measure_link:
            return [{"latency": 1e-4, "seconds_per_byte": 1e-9}] * size
        if job is scaling.measure_gradient:
            way = {"ms": 100 / 3, "processor_ms": 2.0}
            return [{"alone": way, "one piece": way, "buckets": way, "scalars": 7, "all-reduces": 2}] * size
        counts = {"bytes": 10.0, "collectives": 1.0, "scalars": 3, "groups": 2}
        return [
            {
                name: counts | {"seconds": [0.1 + rank, 0.3, 0.2 + rank], "processor": [0.2, 0.1 + rank, 0.3]}
                for name in METHODS
            }
            for rank in range(size)
        ]

    monkeypatch.setattr(scaling, "run_processes", pretended)
    numbers = scaling.measure(Plan(tmp_path, quick=True), "python -m gnewton.experiments scaling")
    assert json.loads(json.dumps(numbers))["methods"]["adam"]["processes"]["2"] == {
        "ms": 300.0,
        "processor_ms": 200.0,
        "bytes": 10.0,
        "collectives": 1.0,
        "scalars": 3,
        "groups": 2,
    }
    assert list(numbers["methods"]["adam"]["processes"]) == ["1", "2"]
    assert numbers["gradient"]["buckets"] == {"ms": 33.333, "processor_ms": 2.0}
    assert numbers["gradient"]["scalars"] == 7


def test_the_shipped_gradient_was_sent_in_several_buckets():
    with torch.device("meta"):
        parameters = dict(perceptron([1024] * 9).named_parameters())
    assert SHIPPED["gradient"]["all-reduces"] == len(cut(parameters)) > 1
    assert SHIPPED["gradient"]["scalars"] == sum(p.numel() for p in parameters.values())


def test_the_table_has_a_line_for_each_method():
    text = scaling.report(SHIPPED)
    assert all(text.count(f"| {title} |") == 2 for title, _ in METHODS.values())
