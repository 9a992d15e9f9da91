"""Models in FSDP2's ``fully_shard``: summaries are those of one process, weights come and go, failures are everybody's.

The processes are real ones (gloo, on 127.0.0.1), started once. Two by default; ``GNEWTON_RANKS=4`` for four.
"""

import inspect
import os
import sys

import pytest
import torch
from support import sharded_jobs as jobs
from support.rank_pool import Pool
from torch import nn

import gnewton as gn
from gnewton import sharded

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available() or sys.platform == "win32",
    reason="this torch has no torch.distributed, or this system no signals between processes",
)
RANKS = int(os.environ.get("GNEWTON_RANKS", "2"))
EVERY = range(RANKS)


@pytest.fixture(scope="module")
def pool():
    pool = Pool(
        RANKS, "support.sharded_jobs", "torch.distributed.fsdp", "torch.distributed.checkpoint", "torch._dynamo"
    )
    yield pool
    pool.close()


@pytest.fixture(scope="module")
def trains(pool):
    return all(pool.run(jobs.fsdp_trains))


@pytest.fixture
def fsdp(trains):
    if not trains:
        pytest.skip("this torch's FSDP2 does not train on processors")


def distance(a, b):
    return float((a - b).abs().max() / b.abs().max().clamp(min=1e-300))


def same_bits(many):
    return all(all(map(torch.equal, one["summary"], many[0]["summary"])) for one in many)


CASES = [
    ("perceptron", "by_layer", {"order": 2}),
    ("perceptron", "by_row", {}),
    ("perceptron", "by_layer", {"order": 1}),
    ("perceptron", "by_kind", {"full_third": True, "engine": "nested"}),
    # Blocks of groups: each rank's own samples ask for others, and they must agree.
    ("perceptron", "by_tensor", {"full_third": True, "max_memory": 4000.0}),
    ("tied", "by_tensor", {"full_third": True}),
    ("tied", "by_layer", {"order": 2, "max_memory": 6000.0}),
    ("tied", "single", {"engine": "nested"}),
    ("attention", "by_layer", {"full_third": True}),
    ("attention", "by_kind", {"order": 2}),
    ("convolutions", "by_tensor", {"full_third": True}),
    ("perceptron", "by_name", {}),
    ("forces", "by_layer", {"engine": "nested"}),
    ("vectorized", "by_layer", {"engine": "nested"}),
]


@pytest.mark.parametrize(("name", "factory", "options"), CASES)
def test_the_summary_is_that_of_one_process_with_all_samples(pool, name, factory, options):
    many, one = pool.run(jobs.summary, name, factory, options), jobs.summary(0, name, factory, options)
    assert many[0]["names"] == one["names"]
    expected = "nested" if options.get("order") == 1 else options.get("engine", "tape")
    assert {s["engine"] for s in (*many, one)} == {expected}
    assert same_bits(many)
    # One sum in another order, and products of matrices in other shapes.
    assert max(distance(a, b) for a, b in zip(many[0]["summary"], one["summary"], strict=True)) < 1e-10
    for other in many:
        assert all(torch.equal(g, many[0]["gradient"][n]) for n, g in other["gradient"].items())
    for parameter, g in one["gradient"].items():
        torch.testing.assert_close(many[0]["gradient"][parameter], g, rtol=1e-10, atol=1e-12)


def test_the_comparison_sees_samples_that_are_not_weighed(pool):
    many, one = pool.run(jobs.summary, "perceptron", "by_layer", {"order": 2}, False), jobs.summary(0, *CASES[0])
    assert all(distance(a, b) > 1e-6 for a, b in zip(many[0]["summary"], one["summary"], strict=True))


def test_batches_are_averaged_over_all_ranks(pool):
    many, one = pool.run(jobs.of_batches), jobs.of_batches(0)
    assert same_bits(many)
    assert all(distance(a, b) < 1e-10 for a, b in zip(many[0]["summary"], one["summary"], strict=True))


def test_gauss_newton_is_that_of_one_process(pool):
    many, one = pool.run(jobs.gauss_newton), jobs.gauss_newton(0)
    for other in many:
        assert all(map(torch.equal, other, many[0]))
    assert all(distance(a, b) < 1e-10 for a, b in zip(many[0], one, strict=True))


STEPS = [
    ("perceptron", "by_layer", "adam", {"period": 2}, "batch"),
    ("tied", "by_tensor", "gradient", {"cubic": 10.0, "period": 2}, "batch"),
    ("perceptron", "by_row", "momentum", {"cubic": 10.0}, "batch"),
    ("attention", "by_kind", "adam", {"average": gn.average.Exponential(0.5)}, "batch"),
    ("perceptron", "by_layer", "gradient", {"engine": "nested"}, "data"),
    ("perceptron", "by_layer", "adam", {"policy": gn.policies.Calibrated(steps=4, period=2)}, "batch"),
]


@pytest.mark.filterwarnings("ignore:the direction is theta_before", "ignore:no step was taken")
@pytest.mark.parametrize("case", STEPS)
def test_steps_of_sharded_models_are_those_of_one_process(pool, case):
    many = pool.run(jobs.stepped, *case)
    for other in many[1:]:
        assert all(torch.equal(other[what], many[0][what]) for what in ("parameters", "rates"))
        assert other["records"] == many[0]["records"]
    # Training amplifies roundings: no more than another order of the samples does in one process.
    one, *others = (jobs.stepped(0, *case, order) for order in range(4))
    allowed = max(1e-11, 10 * max(distance(other["parameters"], one["parameters"]) for other in others))
    assert distance(many[0]["parameters"], one["parameters"]) <= allowed
    assert distance(one["before"], one["parameters"]) > 1e-3


def test_steps_with_samples_that_are_not_weighed_are_others(pool):
    case = STEPS[0][:4]
    many, one = pool.run(jobs.stepped, *case, "unweighed"), jobs.stepped(0, *case)
    assert distance(many[0]["parameters"], one["parameters"]) > 1e-6


def test_suggested_rates_are_those_of_one_process(pool):
    many, one = pool.run(jobs.suggested), jobs.suggested(0)
    for what, expected in one.items():
        assert all(torch.equal(other[what], many[0][what]) for other in many)
        torch.testing.assert_close(many[0][what], expected, rtol=1e-8, atol=1e-12)


@pytest.mark.usefixtures("fsdp")
def test_a_monitor_says_of_fsdp_what_it_says_of_one_process(pool):
    many, one = pool.run(jobs.monitored), jobs.monitored(0)
    assert all(other == many[0] for other in many)
    torch.testing.assert_close(torch.tensor(many[0]), torch.tensor(one), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("settings", [{"period": 2}, {"policy": gn.policies.Calibrated(steps=4, period=2)}])
def test_a_run_goes_on_from_what_each_rank_saved(pool, settings):
    for whole, resumed in pool.run(jobs.resumed, settings):
        assert torch.equal(whole, resumed)


# Who saves and who loads: all ranks, all but one, one process with whole weights, replicas.
LAYOUTS = [("shards", RANKS), ("replicas", RANKS), ("shards", max(RANKS - 1, 1)), ("whole", 1)]
PASSAGES = [
    *((LAYOUTS[0], other) for other in LAYOUTS),
    *((other, LAYOUTS[0]) for other in LAYOUTS[1:]),
    (LAYOUTS[1], LAYOUTS[3]),
]
POLICIES = [{"period": 2}, {"policy": gn.policies.Calibrated(steps=4, period=2)}]


@pytest.mark.parametrize("settings", POLICIES)
@pytest.mark.parametrize(("saves", "loads"), dict.fromkeys(PASSAGES))
def test_a_run_goes_on_at_another_number_of_ranks(pool, tmp_path, settings, saves, loads):
    from torch.distributed import checkpoint

    if 1 in (saves[1], loads[1]) and "no_dist" not in inspect.signature(checkpoint.load).parameters:
        pytest.skip("this torch cannot save or load in one of many processes")
    ends = pool.run(jobs.through_checkpoint, str(tmp_path), settings, saves, loads)
    assert sum(end is not None for end in ends) == loads[1]
    one, *others = (jobs.six_steps(settings, order) for order in range(4))
    # No more than the order of the samples in one process, which changes nothing but roundings.
    allowed = max(1e-10, 10 * max(distance(other, one) for other in others))
    assert allowed < 1e-6
    assert all(torch.equal(end, ends[0]) for end in ends if end is not None)
    assert distance(ends[0], one) <= allowed


MISLOADED = {
    "another policy": "ValueError: expected a state whose policy is Calibrated(",
    "shards of no parameter": "TypeError: expected shards of the parameters' shapes in the optimizer's state, got others in state.",
    "another rank": "load what each rank saved by itself, or write gn.save_checkpoint(folder, model, optimizer)",
}


@pytest.mark.parametrize("what", MISLOADED)
def test_a_state_of_others_is_refused_and_changes_nothing(pool, tmp_path, what):
    for said, unchanged in pool.run(jobs.misloaded, str(tmp_path), what):
        assert MISLOADED[what] in said
        assert unchanged


def test_few_weights_are_whole_at_once(pool):
    """Of 24 layers: the weights that were read last, the one in use and the direction along it."""
    for rank in pool.run(jobs.living, sharded._RECENT):
        assert all(share < 6 / 24 for share in rank["peaks"].values()), rank
        assert rank["left"] == 0
    # The counting sees weights that are kept.
    assert all(share > 0.9 for rank in pool.run(jobs.living, 1000) for share in rank["peaks"].values())


@pytest.mark.parametrize("name", ["perceptron", "tied", "attention"])
@pytest.mark.parametrize("what", ["gradient", "tape", "nested", "step"])
def test_nothing_keeps_a_model(pool, name, what):
    assert all(pool.run(jobs.freed, name, what))


def test_a_model_that_its_graph_keeps_is_seen(pool):
    assert not any(pool.run(jobs.freed, "perceptron", "tape", True))


@pytest.mark.usefixtures("fsdp")
@pytest.mark.parametrize("name", ["perceptron", "attention"])
def test_training_by_fsdp_goes_on_as_if_nothing_had_been_asked(pool, name):
    asked, alone = pool.run(jobs.trained, name, True), pool.run(jobs.trained, name, False)
    for rank in EVERY:
        assert all(torch.equal(p, alone[rank][n]) for n, p in asked[rank].items())


FAULTS = [
    "forward",
    "value",
    "signal",
    "sweep",
    "interrupt in waiting",
    *(f"gradient in {w}" for w in ("forward", "slope", "backward")),
    *(f"step in {w}" for w in ("value", "slope", "sweep", "proposer", "solver", "commit")),
]


@pytest.mark.parametrize("where", FAULTS)
@pytest.mark.parametrize("who", EVERY)
def test_a_failure_on_one_rank_is_one_on_all_and_changes_nothing(pool, trains, who, where):
    ranks = pool.run(jobs.fail, who, where, trains, seconds=20)
    assert all(one["seconds"] < 5 for one in ranks)
    for rank, one in enumerate(ranks):
        assert one["raised"], where
        assert (f"rank {who} of {RANKS} stopped" in one["raised"]) == (rank != who), one["raised"]
    assert all(one["unchanged"] for one in ranks)
    assert all(one["works"] for one in ranks)
    assert same_bits(ranks)
    assert len({one["loss"] for one in ranks}) == 1


def test_where_nothing_fails_nothing_is_raised(pool, trains):
    assert not any(one["raised"] for one in pool.run(jobs.fail, RANKS, "forward", trains))


REFUSED = {
    "mixed precision": "TypeError: expected fully_shard without mixed precision",
    "two dimensions": "TypeError: expected every parameter in fully_shard(model), on a mesh of one dimension, got a mesh of 2",
    "tensor parallel": "TypeError: expected whole tensors, got a DTensor for 0.weight",
    "root left out": "TypeError: expected every parameter in fully_shard(model), on a mesh of one dimension, got a whole tensor",
    "recurrent": "TypeError: expected modules that read their weights as attributes, got a recurrent one in 0",
    "loose": "TypeError: expected whole tensors, got a DTensor for w",
    "another group": "ValueError: expected the ranks that hold the shards",
    "alone": "ValueError: expected the ranks that hold the shards",
    "plain direction": "ValueError: expected 0.weight of the direction sharded as its parameter is",
    "differences": 'ValueError: expected engine "auto", "tape" or "nested" for sharded parameters',
    "custom function": "NotImplementedError: expected a loss whose backward passes torch wrote",
    "fetched outside": "got one that reads the shards of 0.weight",
    "written into": "got one that wrote into 0.weight",
    "written into aside": "got one that wrote into 5.bias",
    "replaced": "got one that replaces weight",
    "other model": "build the Partition anew",
    "functional call": "got one that replaces weight; call the module itself",
    **{f"func {name}": "without derivatives by torch.func" for name in ("grad", "vjp", "jvp", "jacrev", "hessian")},
    "stochastic": "TypeError: expected whole parameters, got shards",
}


@pytest.mark.parametrize("what", REFUSED)
def test_it_is_refused_by_name(pool, what):
    for said in pool.run(jobs.refused, what, seconds=20):
        assert REFUSED[what] in said


@pytest.mark.parametrize("what", ["other paths", "fewer batches"])
def test_ranks_that_read_other_weights_are_told_so(pool, what):
    assert all("expected the same call on all ranks" in said for said in pool.run(jobs.refused, what, seconds=20))


class DTensor(nn.Parameter):
    """A stand-in by name: the real one on another device wants that device."""

    device_mesh = type("Mesh", (), {"ndim": 1, "device_type": "cuda"})
    placements = (type("Shard", (), {"is_shard": lambda self: True})(),)


def test_shards_on_another_device_are_refused():
    model = nn.Linear(2, 2)
    with pytest.raises(TypeError, match=r"CPUOffloadPolicy.*leave offload_policy out"):
        sharded.check_shards(model, {"weight": DTensor(model.weight.detach())})


def test_whole_models_are_left_alone():
    model = gn.models.perceptron([3, 2])
    partition = gn.Partition.by_layer(model)
    with partition.gathered() as same:
        assert same is partition
    assert partition.shards is None
    u = {"a": torch.ones(2)}
    assert partition.whole(u) is u
    assert partition.on_any_rank(True) is True
