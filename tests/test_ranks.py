"""Several processes: means over the samples of all ranks, failures that all ranks hear of, and what is refused by name.

The processes are real ones (gloo, on 127.0.0.1), started once. Two by default; ``GNEWTON_RANKS=4`` for four.
"""

import contextlib
import copy
import io
import os
import signal
import subprocess
import sys

import pytest
import torch
from support import rank_jobs as jobs
from support.rank_pool import Pool

import gnewton as gn
from gnewton import ranks
from gnewton.interrupts import DeferredInterrupts
from gnewton.ranks import Part, Ranks
from gnewton.replicas import hash_of

pytestmark = [
    pytest.mark.skipif(
        not torch.distributed.is_available() or sys.platform == "win32",
        reason="this torch has no torch.distributed, or this system no signals between processes",
    ),
    pytest.mark.filterwarnings("ignore:no step was taken"),
]
RANKS = int(os.environ.get("GNEWTON_RANKS", "2"))
EVERY = range(RANKS)
ADAPTIVE, FIXED = {"period": 3}, {"cubic": 1e3, "period": 2}
CALIBRATED = {"policy": gn.policies.Calibrated(steps=8, period=3)}


@pytest.fixture(scope="module")
def pool():
    pool = Pool(RANKS, "support.rank_jobs", "torch.distributed.checkpoint", "torch._dynamo")
    yield pool
    pool.close()


# -- several processes are one -----------------------------------------------------------------------------------------


def distance(a, b):
    return float((a - b).abs().max() / b.abs().max())


def agrees(many, one, others):
    """As near to one process as another order of its samples is: that, too, changes nothing but roundings.

    Training amplifies roundings, by another factor for each: the largest of three, and ten times as much, is no worse.
    """
    allowed = max(1e-11, 10 * max(distance(other, one) for other in others))
    return distance(many, one) <= allowed


CASES = [
    ("ddp", "adam", ADAPTIVE, "batch"),
    ("plain", "rmsprop", ADAPTIVE, "batch"),
    ("ddp", "gradient", FIXED, "batch"),
    ("plain", "adam", FIXED, "batch"),
    ("ddp", "rmsprop", FIXED, "batch"),
    ("ddp", "gradient", ADAPTIVE, "data"),
    ("plain", "adam", ADAPTIVE, "curvature"),
    ("ddp", "adam", {**ADAPTIVE, "average": gn.average.Exponential(0.5)}, "batch"),
    ("ddp", "adam", {**FIXED, "average": gn.average.Windows(2, 1)}, "batch"),
    ("ddp", "adam", {**ADAPTIVE, "engine": "nested"}, "batch"),
    ("ddp", "adam", CALIBRATED, "batch"),
    ("plain", "gradient", CALIBRATED, "batch"),
]


@pytest.mark.parametrize(("how", "proposer", "settings", "kind"), CASES)
def test_twenty_steps_of_several_processes_are_those_of_one(pool, how, proposer, settings, kind):
    many = pool.run(jobs.train, how, proposer, settings, 20, kind)
    for other in many[1:]:
        # Bit for bit: learning rates, what the policy saw and decided, and the parameters.
        assert torch.equal(other["rates"], many[0]["rates"])
        assert repr(other["records"]) == repr(many[0]["records"])
        assert torch.equal(other["parameters"], many[0]["parameters"])
    one, *others = (jobs.train(0, how, proposer, settings, 20, kind, order) for order in range(4))
    assert agrees(many[0]["parameters"], one["parameters"], [other["parameters"] for other in others])
    assert distance(one["parameters"], jobs.flat(jobs.network())) > 1e-3, "it trained"


def test_the_comparison_sees_a_rank_whose_samples_weigh_too_much(pool):
    one, *others = (jobs.train(0, "ddp", "adam", ADAPTIVE, 20, "batch", order) for order in range(4))
    many = pool.run(jobs.train, "ddp", "adam", ADAPTIVE, 20, "unweighted")
    assert not agrees(many[0]["parameters"], one["parameters"], [other["parameters"] for other in others])


@pytest.mark.parametrize("settings", [ADAPTIVE, FIXED])
def test_a_run_is_resumed_at_another_world_size(pool, settings):
    one, *others = (jobs.train(0, "ddp", "adam", settings, 20, "batch", order) for order in range(4))
    half = pool.run(jobs.train, "ddp", "adam", settings, 10)[0]["saved"]
    alone = jobs.train(0, "ddp", "adam", settings, 10, "batch", 0, half)
    half = jobs.train(0, "ddp", "adam", settings, 10)["saved"]
    together = pool.run(jobs.train, "plain", "adam", settings, 10, "batch", 0, half)[0]
    for resumed in (alone, together):
        assert agrees(resumed["parameters"], one["parameters"], [other["parameters"] for other in others])


def test_a_state_saved_by_all_ranks_together_is_loaded_by_one(pool, tmp_path):
    pool.run(jobs.save_together, str(tmp_path))
    many = pool.run(jobs.load_together, str(tmp_path))
    assert all(torch.equal(one, many[0]) for one in many)
    assert torch.equal(jobs.load_together(0, str(tmp_path)), many[0])
    assert not torch.equal(many[0][: jobs.flat(jobs.network()).numel()], jobs.flat(jobs.network()))


@pytest.mark.parametrize(
    "what",
    [
        "summary",
        "summary nested",
        "summary differences",
        "summary of data",
        "summary gauss-newton",
        "gradient",
        "suggestion",
        "stochastic",
        "exact",
    ],
)
def test_every_door_takes_the_mean_over_all_samples(pool, what):
    if what == "suggestion" and RANKS != 2:
        pytest.skip("its batches are laid out for two ranks")
    many, one = pool.run(jobs.answers, what), jobs.answers(0, what)
    # One sum in another order; differences divide its rounding by their step, and five steps amplify it a little.
    tolerance = {"summary differences": 1e-4}.get(what, 1e-11)
    for key, expected in one.items():
        assert all(torch.equal(other[key], many[0][key]) for other in many)
        torch.testing.assert_close(many[0][key], expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))


def test_batch_norm_has_each_ranks_statistics_and_the_first_ranks_buffers(pool):
    ranks = pool.run(jobs.batch_norm)
    assert all(torch.equal(other["buffers"], ranks[0]["own buffers"]) for other in ranks)
    assert RANKS == 1 or not torch.equal(ranks[1]["own buffers"], ranks[0]["own buffers"])
    mean = sum(one["gradient"] * one["samples"] for one in ranks) / sum(one["samples"] for one in ranks)
    torch.testing.assert_close(ranks[0]["mean gradient"], mean, rtol=1e-12, atol=1e-14)


def test_a_rank_without_samples_takes_part(pool):
    gradients = pool.run(jobs.without_samples)
    expected = jobs.without_samples(0)
    assert all(torch.equal(other, gradients[0]) for other in gradients)
    torch.testing.assert_close(gradients[0], expected, rtol=1e-12, atol=1e-14)


def test_one_all_reduce_carries_a_summary_and_one_a_gradient(pool):
    """A header of five numbers before each; P numbers for a gradient, S + S^2 + S + 1 for a summary."""
    P, S = jobs.flat(jobs.network()).numel(), len(gn.Partition.by_tensor(jobs.network()))
    counts = pool.run(jobs.traffic)[0]
    assert counts["gradient"] == (2, 8 * (5 + P))
    assert counts["summary"] == (2, 8 * (5 + 1 + 2 * S + S**2))


# -- a gradient in buckets ----------------------------------------------------------------------------------------------

PECULIAR = [
    "plain",
    "frozen",
    "tied",
    "unused on one",
    "no samples on one",
    "no gradient",
    "sparse",
    "two dtypes",
    "reentrant",
]


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("kind", PECULIAR)
def test_a_gradient_in_buckets_is_that_of_one_piece(pool, kind):
    ranks = pool.run(jobs.gradient_in_buckets, kind)
    for one in ranks:
        assert torch.equal(one["buckets"], ranks[0]["buckets"])
        # The sum of several ranks may be in another order.
        torch.testing.assert_close(one["buckets"], one["whole"], rtol=1e-12, atol=1e-14)
        in_buckets, whole = one["sent"]
        assert in_buckets >= whole + 3
    assert float(ranks[0]["whole"].abs().max()) > 1e-3


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_a_gradient_that_is_completed_in_parts_is_not_sent_too_soon(pool):
    """The negative control of a reentrant checkpoint, whose layer is read twice."""
    assert pool.run(jobs.sent_too_soon) == ["'net.2.bias'"] * RANKS


def test_buckets_are_sent_while_the_gradient_is_computed(pool):
    """A header, four buckets from the last parameter to the first, and a header."""
    for total, begun in pool.run(jobs.sent_on_the_way, False):
        assert begun[0] == 1, "nothing before the last layer"
        assert begun[-1] == 4, "three buckets before the first layer's weight"
        assert total == 6
    # Where a device's work is queued in several streams they wait for the end.
    assert pool.run(jobs.sent_on_the_way, True) == [(6, [1, 1, 1])] * RANKS


def test_steps_in_buckets_are_those_in_one_piece(pool):
    case = ("ddp", "adam", FIXED, 5, "batch")
    many, whole = pool.run(jobs.in_buckets, jobs.train, *case), pool.run(jobs.train, *case)
    assert many[0]["collectives"] > whole[0]["collectives"]
    assert all(torch.equal(other["parameters"], many[0]["parameters"]) for other in many)
    # Five steps hardly amplify the rounding of a sum in another order.
    assert distance(many[0]["parameters"], whole[0]["parameters"]) < 1e-10


# -- failures -----------------------------------------------------------------------------------------------------------

PERIOD_1 = {"period": 1}
# A first step evaluates the loss for the gradient, for the summary and after the step; a later one records both at once.
FAULTS = [
    *((fault, at, 0, PERIOD_1) for fault in ("exception", "memory", "interrupt", "signal") for at in (1, 2, 3)),
    *((fault, at, 1, PERIOD_1) for fault in ("exception", "interrupt") for at in (1, 2)),
    *((fault, 1, 1, FIXED) for fault in ("exception", "nan")),
    *(("nan", at, 0, PERIOD_1) for at in (1, 2)),
    ("nan gradient", 1, 1, PERIOD_1),
    ("signal while waiting", 0, 1, PERIOD_1),
    *((place, 0, 1, PERIOD_1) for place in ("proposer", "solver", "move", "commit")),
    *((place, 0, 3, CALIBRATED) for place in ("proposer", "commit")),
    *((place, 0, 1, FIXED) for place in ("proposer", "move of old rates", "commit")),
]


@pytest.mark.parametrize(("fault", "at", "step", "settings"), FAULTS)
@pytest.mark.parametrize("who", EVERY)
def test_a_failure_on_one_rank_is_one_on_all_and_changes_nothing(pool, who, fault, at, step, settings):
    check_failure(pool.run(jobs.fail, who, fault, at, step, settings, seconds=20), who)


IN_BUCKETS = [
    *((fault, 1) for fault in ("exception", "nan", "nan gradient", "signal")),
    *(
        (f"{fault} in backward of {layer}", 0)
        for fault in ("exception", "memory", "signal", "nan")
        for layer in (0, 3, 5)
    ),
    ("signal while waiting", 0),
]


@pytest.mark.parametrize(("fault", "at"), IN_BUCKETS)
@pytest.mark.parametrize("who", EVERY)
def test_a_failure_while_buckets_are_sent_is_one_on_all(pool, who, fault, at):
    check_failure(pool.run(jobs.in_buckets, jobs.fail, who, fault, at, 1, FIXED, seconds=20), who)


LOOPS = [(fault, at) for fault in ("exception", "interrupt", "no pair", "no tensors", "nan") for at in (0, 2)]


@pytest.mark.parametrize(("fault", "at"), [*LOOPS, ("no batches", 0), ("no curvature", 0)])
@pytest.mark.parametrize("who", EVERY)
def test_a_training_loop_that_fails_on_one_rank_ends_alike_on_all(pool, who, fault, at):
    ends = pool.run(jobs.fit, who, fault, at, seconds=20)
    assert all(one["seconds"] < 5 for one in ends)
    assert all(one["unchanged"] for one in ends)
    assert len({one["after"] for one in ends}) == 1
    # What is not finite is recorded, anything else is raised, and by the others with the rank's name.
    assert all(one["diverged"] == (fault == "nan") for one in ends), ends
    for rank, one in enumerate(ends):
        assert bool(one["raised"]) == (fault != "nan")
        assert (f"RankError: rank {who} of {RANKS} stopped" in one["raised"]) == (rank != who and fault != "nan")


def test_a_training_loop_in_which_nothing_fails_ends_well_on_all(pool):
    ends = pool.run(jobs.fit, 0, "nothing", 0, seconds=20)
    assert not any(one["diverged"] or one["raised"] or one["unchanged"] for one in ends)


def check_failure(ranks, who):
    """All raise soon, the others name the rank, and nothing has changed on any."""
    assert all(one["raised"] for one in ranks), ranks
    assert all(one["seconds"] < 5 for one in ranks)
    for rank, one in enumerate(ranks):
        assert (f"rank {who} of {RANKS} stopped" in one["raised"]) == (rank != who), one["raised"]
    assert all(one["unchanged"] for one in ranks)
    # The next step is taken, and the ranks are still alike.
    assert all(one["after"] == ranks[0]["after"] for one in ranks)
    assert all(all(map(torch.equal, one["model"], ranks[0]["model"])) for one in ranks)


def test_a_step_in_which_nothing_fails_raises_nothing_and_changes_something(pool):
    ranks = pool.run(jobs.fail, 0, "exception", 1000, 1, PERIOD_1)
    assert not any(one["raised"] or one["unchanged"] for one in ranks)


# -- what is refused -----------------------------------------------------------------------------------------------------

SENTENCES = {
    "other seed": "expected the parameters of rank 0 on every rank, got others; seed every rank alike",
    "other settings": "expected the settings of rank 0 on every rank",
    "other settings later": "expected the same call on all ranks",
    "other groups": "expected the partition",
    "wrapper of another": "reaches none of them; build the Partition anew",
    "fewer batches then another call": "the same number of batches",
    "fewer batches": "the same number of batches",
    "no samples": "expected a sample on some rank",
    "negative samples": "expected samples >= 0",
}
ON_ITS_OWN = {
    "not said": "build it on DistributedDataParallel(model), or write partition.over(",
    "not said exactly": "build it on DistributedDataParallel(model), or write partition.over(",
    "wrapper inside": "expected the DistributedDataParallel itself, got a module around it (in 0)",
    "synchronized": "got SyncBatchNorm in 1",
    "joint": 'got "joint"',
    "another object": "expected a process group, got 'gloo'",
}


@pytest.mark.parametrize("what", [*SENTENCES, *ON_ITS_OWN])
def test_it_is_refused_by_name_on_every_rank(pool, what):
    said = pool.run(jobs.refused, what, seconds=20)
    if what == "fewer batches":
        said = said[:1]  # the others have ended
    if what == "fewer batches then another call" and RANKS > 2:
        said = [text for text in said if text]
    assert said
    assert all(said), said
    assert any((SENTENCES | ON_ITS_OWN)[what] in text for text in said), said
    wrong_kind = what == "another object"
    assert all(text.startswith("TypeError" if wrong_kind else ("ValueError", "RankError")) for text in said), said


def test_a_group_without_this_process_is_refused(pool):
    said = pool.run(jobs.refused, "a group of others")
    assert said[0] == ""
    assert all("with this rank in it" in text for text in said[1:])


# -- one process -----------------------------------------------------------------------------------------------------------


def test_one_process_sends_nothing_and_copies_nothing():
    partition = gn.Partition.by_tensor(jobs.network())
    assert partition.here is partition
    part = Part(1.0, [torch.ones(2)], 3.0)
    assert partition.ranks.mean("anything", lambda: part) is part
    partition.ranks.commit()
    assert (partition.ranks.sent, partition.ranks.collectives) == (0, 0)


def test_more_ranks_must_be_said(monkeypatch):
    monkeypatch.setattr(ranks, "world_size", lambda: 4)
    partition = gn.Partition.by_tensor(jobs.network())
    x = torch.zeros(2, 8, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"4 ranks .*over\(None\)"):
        gn.summarize(lambda: partition.module(x).sum(), partition)
    alone = partition.over(None)
    gn.summarize(lambda: alone.module(x).sum(), alone)
    assert repr(alone.coarsen([list(range(len(alone)))]).ranks) == "Ranks(alone)"


def test_ranks_are_shared_by_copies_of_a_partition():
    partition = gn.Partition.by_tensor(jobs.network()).over(None)
    assert copy.deepcopy(partition).ranks is partition.ranks
    assert isinstance(partition.ranks, Ranks)


def test_a_hash_tells_every_single_change():
    values = torch.randn(50, dtype=torch.float64)
    known = hash_of({"values": values, "words": ["a", 1.0]})
    for i in range(50):
        other = values.clone()
        other[i] = torch.nextafter(other[i], other[i] + 1)
        assert hash_of({"values": other, "words": ["a", 1.0]}) != known
    assert hash_of({"values": values, "words": ["a", 1.5]}) != known
    assert hash_of({"values": values.clone(), "words": ("a", 1.0)}) == known
    for kind in (torch.bfloat16, torch.bool, torch.complex128, torch.int64):
        assert hash_of(torch.ones(2, dtype=kind)) != hash_of(torch.zeros(2, dtype=kind))


def test_an_interrupt_that_nobody_heard_comes_at_the_end():
    said = []
    with pytest.raises(KeyboardInterrupt):
        _interrupt(said, heard=False)
    with pytest.raises(KeyboardInterrupt):
        _interrupt(said, heard=True)
    assert said == ["after"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def _interrupt(said, heard):
    with DeferredInterrupts() as interrupts, interrupts.listen() if heard else contextlib.nullcontext():
        signal.raise_signal(signal.SIGINT)
        said.append("after")


def test_saved_states_hold_no_ranks():
    one = jobs.train(0, "ddp", "adam", ADAPTIVE, 2)["saved"]
    assert torch.load(io.BytesIO(one), weights_only=True)


# -- the end ------------------------------------------------------------------------------------------------------------

ENDING = """if True:
    import gc, weakref
    import torch, gnewton as gn
    from torch import distributed as dist

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    group = weakref.ref(dist.group.WORLD)
    model = gn.models.perceptron([2, 2])
    partition = gn.Partition.single(model).over(dist.group.WORLD)
    optimizer = gn.GroupedNewton(partition, torch.optim.SGD(model.parameters(), lr=1.0))
    optimizer.step(lambda: model(torch.eye(2)).square().sum())
    other = {other}
    dist.destroy_process_group()
    gc.collect()
    print("held" if group() else "ended")
    partition.ranks.group
"""


@pytest.mark.parametrize(("other", "said"), [("None", "ended"), ("group()", "held")])
def test_a_group_ends_though_a_partition_knows_it(other, said):
    # In a process of its own: what torch imports for its optimizers comes after the group there. Gloo's threads go on as long
    # as anything holds the group, and abort a process that ends before them.
    process = subprocess.run([sys.executable, "-c", ENDING.format(other=other)], capture_output=True, text=True)
    assert process.stdout.strip() == said
    assert ("ValueError: expected the process group" in process.stderr) == (said == "ended")
