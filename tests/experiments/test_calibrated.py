"""A small race in lockstep, the arithmetic of its report on made-up numbers, and the fresh networks."""

import json
import math

import pytest
import torch
from support.race import TINY, digits

from gnewton import experiments
from gnewton.experiments import calibrated, lockstep
from gnewton.experiments.fresh import FRESH
from gnewton.experiments.peers import ADAM, DEFAULTS, OURS, RATES
from gnewton.experiments.protocol import Plan
from gnewton.experiments.runs import network

# torch has Muon from 2.9 on.
OF_TORCH = [
    peer for peer in DEFAULTS if peer.name in ("adamw-cosine", *(["muon"] if hasattr(torch.optim, "Muon") else []))
]


def run(losses, averaged=None, seconds=1.0, share=0.0, diverged=False):
    epochs = range(1, len(losses) + 1)
    return {
        "losses": list(losses),
        "averaged_losses": list(averaged or losses),
        "cpu_seconds": [seconds * epoch for epoch in epochs],
        "averaging_seconds": [share * epoch for epoch in epochs],
        "diverged": diverged,
        "rate": 0.01,
        "test": [0.5, 0.75],
        "averaged_test": [0.25, 0.5],
    }


def one(ours, adam, others=None):
    names = [f"{peer.name}, {kind}, {budget} epochs" for peer, kind, budget in calibrated.CHOICES]
    runs = {"calibrated": [ours], "adam 0.01": [adam], "proposer 0.01": [adam], "annealed 0.01": [adam]}
    runs |= {peer.name: [others or adam] for peer in DEFAULTS}
    about = {"dozen": "fresh", "title": "a network", "parameters": 1, "steps_per_epoch": 10}
    return about | {"tuned": dict.fromkeys(names, 0.01), "runs": runs}


FALLING = [0.5**epoch for epoch in range(1, 11)]


def test_a_network_against_itself_has_the_ratio_one():
    quotients = calibrated.ratios(one(run(FALLING), run(FALLING)))
    of_each = {"after 3": 1, "after 10": 1, "best after 10": 1, "time": 1, "step": 1}
    others = {"steps": 1, "plain time": 1, "annealed after 10": 1}
    assert quotients == of_each | {f"proposer {key}": 1 for key in of_each} | others
    assert calibrated.against(one(run(FALLING), run(FALLING)), "prodigy") == {"after 3": 1, "after 10": 1, "time": 1}


def test_a_plain_peer_does_not_pay_for_an_average():
    # Its average costs half of its time: twice as slow as it was, its plain losses are reached in our full time.
    quotients = calibrated.ratios(one(run(FALLING), run(FALLING, share=0.5)))
    assert quotients["time"] == 1
    assert quotients["plain time"] == 2


def test_whoever_never_arrives_has_no_time():
    quotients = calibrated.ratios(one(run([0.5] * 10), run(FALLING)))
    assert quotients["time"] == math.inf
    assert quotients["after 10"] == pytest.approx(0.5 / FALLING[-1])


def test_the_test_part_is_that_of_the_parameters_which_each_would_use():
    ends = calibrated.on_test(one(run(FALLING), run(FALLING)))
    assert ends == {"calibrated": [0.25, 0.5], "adam": [0.25, 0.5], "annealed": [0.5, 0.75]}
    networks = {"a": condensed(one(run(FALLING), run(FALLING)))}
    assert calibrated.compare_tests(networks, "adam") == {"losses": [1], "accuracies": [0]}
    assert calibrated.compare_tests(networks, "annealed") == {"losses": [0.5], "accuracies": [-0.25]}


def condensed(one, dozen="fresh"):
    return one | {"dozen": dozen, "seeds": 1, "reported": calibrated.condense(one, TINY)}


def test_the_report_counts_what_was_asked():
    networks = {"a": condensed(one(run(FALLING), run(FALLING)))}
    networks |= {"b": condensed(one(run([0.5] * 10, diverged=True), run(FALLING)))}
    networks |= {"c": condensed(one(run(FALLING), run(FALLING)), "in sight")}
    text = calibrated.report({"networks": networks})
    assert "1 of 2 runs diverged" in text
    assert "on 1 of 2 (not b)" in text
    assert "Prodigy" in text
    json.dumps(networks, allow_nan=False)
    assert calibrated.figures({"networks": networks})["calibrated"].axes


@pytest.fixture(scope="module")
def small():
    entries = {peer.name: (peer, None) for peer in (OURS, *OF_TORCH)} | {"adam": (ADAM, 0.01), "wild": (ADAM, 1e30)}
    return lockstep.race(TINY, TINY.data(), entries, 0, 3), entries


def test_each_runs_as_it_would_alone(small):
    raced, entries = small
    for name in ("calibrated", "adam"):
        alone = lockstep.race(TINY, TINY.data(), {name: entries[name]}, 0, 3)
        assert alone[name]["losses"] == raced[name]["losses"]
        assert alone[name]["averaged_losses"] == raced[name]["averaged_losses"]


def test_clocks_run_and_a_wild_rate_diverges(small):
    raced, _ = small
    for name in ("calibrated", "adam"):
        assert raced[name]["losses"] != raced[name]["averaged_losses"]
    for one_run in raced.values():
        assert sorted(one_run["cpu_seconds"]) == one_run["cpu_seconds"]
        assert one_run["averaging_seconds"][-1] < one_run["cpu_seconds"][-1]
    assert [name for name, one_run in raced.items() if one_run["diverged"]] == ["wild"]
    assert raced["wild"]["losses"] == [None] * 3
    assert raced["calibrated"]["rate"] > 0
    assert raced["wild"]["test"] == raced["wild"]["averaged_test"] == [None, None]
    # Regression: no classes.
    assert raced["adam"]["test"][0] > 0
    assert raced["adam"]["test"][1] is None


def test_the_test_part_has_an_accuracy_where_there_are_classes():
    problem = digits()
    raced = lockstep.race(problem, problem.data(), {"adam": (ADAM, 0.01)}, 0, 2)["adam"]
    model, data = network(problem, 0), problem.data()
    (adam,), _ = ADAM.build(model, 0, 0.01)
    order = torch.Generator().manual_seed(1000)
    loader = data.batches(problem.batch, order)
    for x, y in (batch for _ in range(2) for batch in loader):
        adam.zero_grad()
        problem.loss(model(x), y).backward()
        adam.step()
    output = model(data.test_x)
    accuracy = (output.argmax(1) == data.test_y).double().mean().item()
    assert raced["test"] == pytest.approx([problem.loss(output, data.test_y).item(), accuracy], rel=1e-4)


def test_a_network_is_tuned_on_the_held_out_part_and_run_from_every_seed(tmp_path, monkeypatch):
    monkeypatch.setattr(calibrated, "DEFAULTS", OF_TORCH)
    outcome = calibrated.trials(TINY, Plan(tmp_path, seeds=2))
    assert set(outcome["tuned"].values()) <= set(RATES)
    assert {len(runs) for runs in outcome["runs"].values()} == {2}
    assert len(list((tmp_path / "calibrated" / "runs").iterdir())) == 3
    assert calibrated.trials(TINY, Plan(tmp_path, seeds=2)) == outcome


@pytest.mark.parametrize("name", FRESH)
def test_a_fresh_network_has_a_loss_on_its_data_and_is_the_seed_s_alone(name):
    problem = FRESH[name]
    x, y = next(iter(problem.data().batches(4, torch.Generator().manual_seed(0))))
    losses = []
    for _ in range(2):
        model = problem.network(torch.Generator().manual_seed(0)).eval()
        losses.append(problem.loss(model(x), y).item())
    assert math.isfinite(losses[0])
    assert losses[0] == losses[1]


# -- what is shipped, and what the book says of it ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def shipped():
    return experiments.load("calibrated")


def within(networks, name, most):
    return sum(
        one["reported"]["ratios"][name] is not None and one["reported"]["ratios"][name] <= most for one in networks
    )


def means(networks, peer, key):
    values = [one["reported"]["against"][peer][key] for one in networks]
    return calibrated.geometric([value for value in values if value])


def beyond(networks, name, most):
    """The networks whose ratio is larger, or that never arrive."""
    ratios = {key: one["reported"]["ratios"][name] for key, one in networks.items()}
    return {key for key, ratio in ratios.items() if ratio is None or ratio > most}


def mean(networks, name):
    """The geometric mean of a ratio, over the networks that arrive."""
    ratios = [one["reported"]["ratios"][name] for one in networks.values()]
    return calibrated.geometric([ratio for ratio in ratios if ratio])


# per dozen: means of the loss after 3 epochs, of the steps and of the time; those that come late by seconds, and by plain Adam's
DOZENS = {
    "in sight": (0.65, 0.70, 0.93, 8, 12),
    "fresh": (0.65, 0.70, 0.98, 8, 9),
    "later": (0.70, 0.74, 1.02, 7, 8),
    "small batches": (0.82, 0.71, 0.94, 8, 12),
}


@pytest.mark.parametrize("dozen", DOZENS)
def test_what_the_page_says_of_a_dozen_is_so(shipped, dozen):
    networks, (loss, steps, time, sooner, sooner_than_plain) = calibrated.of(shipped, dozen), DOZENS[dozen]
    assert len(networks) == 12
    assert beyond(networks, "after 3", 1.15) == ({"lstm"} if dozen == "small batches" else set())
    assert beyond(networks, "after 10", 1.1501) == set()
    means_of = [mean(networks, name) for name in ("after 3", "steps", "time")]
    assert means_of == pytest.approx([loss, steps, time], abs=0.006)
    assert within(networks.values(), "time", 1.0) == sooner
    assert within(networks.values(), "plain time", 1.0) == sooner_than_plain


def test_what_the_page_says_of_those_that_come_late_is_so(shipped):
    networks = shipped["networks"]
    assert beyond(networks, "steps", 1.0) == {"rare", "lstm", "encoder", "convolved"}
    assert beyond(networks, "time", 1.4) == {"wine", "rare", "encoder", "convolved"}
    late = [networks[name]["reported"]["ratios"]["time"] for name in ("wine", "rare", "encoder", "convolved")]
    assert [round(ratio, 1) for ratio in late] == [1.5, 1.6, 1.6, 2.2]
    assert round(networks["lstm"]["reported"]["ratios"]["after 3"], 1) == 1.7
    assert within(networks.values(), "time", 1.0) == 31
    assert within(networks.values(), "plain time", 1.0) == 41
    in_sight = calibrated.of(shipped, "in sight")
    assert beyond(in_sight, "time", 1.0) == {"tanh", "elu", "relu", "residual"}
    assert beyond(in_sight, "time", 1.041) == set()


def test_what_the_page_says_of_the_proposer_alone_is_so(shipped):
    dozens = [calibrated.of(shipped, dozen) for dozen in calibrated.DOZENS]
    assert round(mean(shipped["networks"], "proposer after 3"), 2) == 0.96
    assert beyond(shipped["networks"], "proposer after 3", 2.5) == set()
    times = [mean(networks, "proposer time") for networks in dozens]
    assert times == pytest.approx([1.12, 1.145, 1.25, 1.15], abs=0.01)


def test_what_the_page_says_of_ten_epochs_is_so(shipped):
    dozens = [calibrated.of(shipped, dozen) for dozen in calibrated.DOZENS]
    assert [within(networks.values(), "after 10", 0.5) for networks in dozens] == [9, 6, 6, 6]
    best = [mean(networks, "best after 10") for networks in dozens]
    assert best == pytest.approx([0.22, 0.36, 0.35, 0.16], abs=0.006)
    assert [within(networks.values(), "proposer after 10", 1) for networks in dozens] == [9, 8, 10, 10]
    assert [within(networks.values(), "proposer best after 10", 1) for networks in dozens] == [8, 7, 6, 8]
    best = [mean(networks, "proposer best after 10") for networks in dozens]
    assert best == pytest.approx([0.61, 0.75, 0.76, 0.34], abs=0.006)


def test_what_the_page_says_of_a_schedule_is_so(shipped):
    networks = shipped["networks"]
    for dozen in calibrated.DOZENS:
        assert 4.5 < 1 / mean(calibrated.of(shipped, dozen), "annealed after 10") < 8.3
    assert beyond(networks, "annealed after 10", 1.0) == {"encoder", "convolved"}
    assert beyond(networks, "annealed after 10", 1.08) == set()


def test_what_the_page_says_of_the_test_part_is_so(shipped):
    networks = shipped["networks"]
    losses = [
        calibrated.geometric(calibrated.compare_tests(calibrated.of(shipped, dozen), "adam")["losses"])
        for dozen in calibrated.DOZENS
    ]
    assert losses == pytest.approx([0.89, 1.23, 0.77, 1.30], abs=0.006)
    adam, annealed = (calibrated.compare_tests(networks, name) for name in ("adam", "annealed"))
    assert [sum(loss > 1 for loss in one["losses"]) for one in (adam, annealed)] == [28, 25]
    assert max(adam["losses"]) < 2.9
    gains = adam["accuracies"]
    assert [len(gains), sum(gain > 0 for gain in gains), sum(gain < 0 for gain in gains)] == [38, 20, 17]
    assert sum(gain > 0 for gain in annealed["accuracies"]) == 28


def test_what_the_page_says_of_seeds_is_so(shipped):
    assert {one["seeds"] for one in shipped["networks"].values()} == {5}
    assert len(shipped["networks"]) == 48


def test_what_the_page_says_of_prices_is_so(shipped):
    networks = shipped["networks"]
    assert sum(one["reported"]["diverged"] for one in networks.values()) == 0
    assert 1.24 < mean(networks, "step") < 1.28
    assert 1.17 < mean(networks, "proposer step") < 1.21
    assert round(mean(calibrated.of(shipped, "in sight"), "proposer step"), 2) == 1.15
    large = {key: one for key, one in networks.items() if one["reported"]["milliseconds"][1] > 2}
    assert len(large) == 16
    assert beyond(large, "proposer step", 1.16) == {"lstm-text"}
    assert beyond(networks, "proposer step", 1.43) == set()


def test_what_the_page_says_of_rules_without_a_rate_is_so(shipped):
    for dozen in calibrated.DOZENS:
        networks = list(calibrated.of(shipped, dozen).values())
        assert 1.85 < means(networks, "prodigy", "after 3") < 2.2
        assert 2.9 < means(networks, "prodigy", "after 10") < 7.1
        for name in ("schedule-free", "d-adaptation", "adamw-cosine", "muon"):
            assert min(means(networks, name, key) for key in ("after 3", "after 10")) > 3
    for name, count in (("prodigy", 36), ("schedule-free", 5), ("d-adaptation", 15)):
        times = [one["reported"]["against"][name]["time"] for one in shipped["networks"].values()]
        assert sum(time is not None for time in times) == count
