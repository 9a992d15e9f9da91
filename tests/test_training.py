"""The loop trains with either kind of optimizer, keeps an honest record, and says one repeatable line."""

import io
import json
import math
import sys
from collections import deque

import nbclient
import nbformat
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gnewton as gn
from gnewton.training import History, fit

DTYPE = torch.float64
DATA = gn.datasets.teacher_student((3, 4, 1), samples=50, test_samples=20, dtype=DTYPE)


def student(seed=1):
    return gn.models.perceptron([3, 4, 1], generator=torch.Generator().manual_seed(seed), dtype=DTYPE)


def sgd(model, lr=0.1):
    return torch.optim.SGD(model.parameters(), lr=lr)


def newton(model, **options):
    return gn.GroupedNewton(
        gn.Partition.by_tensor(model), **{"lr": 0.5, "cubic": 1.0, "period": 1, "ridge": 1e-3} | options
    )


def batches(size=16, seed=0):
    return DATA.batches(size, torch.Generator().manual_seed(seed))


def run(make=sgd, model=None, loader=None, **options):
    model = model or student()
    options = {"loss_fn": F.mse_loss, "epochs": 3, "progress": False} | options
    return fit(model, make(model), batches() if loader is None else loader, **options)


MAKERS = {
    "SGD": sgd,
    "Adam": lambda m: torch.optim.Adam(m.parameters(), lr=0.02),
    "LBFGS": lambda m: torch.optim.LBFGS(m.parameters(), lr=0.1, max_iter=2),
    "GroupedNewton": newton,
    "StochasticNewton": lambda m: gn.StochasticNewton(gn.Partition.single(m), lr=0.1, lr_direction=0.1, ridge=0.1),
}


@pytest.mark.parametrize("name", MAKERS)
def test_every_kind_of_optimizer_reduces_the_loss(name):
    # On the whole data set at once, so that no batch's luck is in it.
    history = run(MAKERS[name], loader=batches(50), epochs=20, evaluate=(DATA.train_x, DATA.train_y))
    assert not history.diverged
    assert history.losses[-1] < 0.8 * history.losses[0]
    # The loss measured after an epoch is the one that the next epoch starts from.
    assert history.test_losses[:-1] == pytest.approx(history.losses[1:], rel=1e-12)


def test_the_loop_is_the_one_a_person_writes():
    model, twin = student(), student()
    history = run(model=model, loader=batches(seed=4))
    optimizer, losses = sgd(twin), []
    loader = batches(seed=4)
    for _ in range(3):
        for x, y in loader:
            optimizer.zero_grad()
            loss = F.mse_loss(twin(x), y)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert history.losses == losses
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), twin.parameters(), strict=True))


class Fields(dict):
    """A batch by names, which moves as a tensor does; its length is the number of names."""

    def to(self, device):
        return self


class Reader(nn.Module):
    """Reads rows, sequences or named rows: the mean of each sample, times a number."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones((), dtype=DTYPE))

    def forward(self, x):
        if isinstance(x, Fields):
            x = x["rows"]
        if isinstance(x, nn.utils.rnn.PackedSequence):
            x = nn.utils.rnn.pad_packed_sequence(x, batch_first=True)[0]
        return self.scale * x.flatten(1).mean(1)


ROWS = {
    "a tensor": lambda x: x,
    "packed sequences": lambda x: nn.utils.rnn.pack_sequence(list(x[:, :, None])),
    "rows by name": lambda x: Fields(rows=x, mask=x > 0, more=x),
}


@pytest.mark.parametrize("kind", ROWS)
def test_an_epoch_s_loss_weighs_batches_by_their_samples(kind):
    generator = torch.Generator().manual_seed(0)
    pairs = [(torch.rand(n, 3, generator=generator, dtype=DTYPE), torch.zeros(n, dtype=DTYPE)) for n in (10, 1, 5)]
    model = Reader()
    history = fit(model, sgd(model, 0.0), [(ROWS[kind](x), y) for x, y in pairs], loss_fn=F.mse_loss, progress=False)
    losses = [F.mse_loss(model(x), y).item() for x, y in pairs]
    assert history.train_losses == pytest.approx([(10 * losses[0] + losses[1] + 5 * losses[2]) / 16], rel=1e-12)


def test_the_record_has_an_entry_per_step_and_per_epoch():
    history = run(evaluate=DATA)
    # 50 samples in batches of 16: three whole ones and one of 2, which weighs 2/50 in the epoch's mean.
    assert history.epoch_steps == [4, 8, 12]
    assert len(history.losses) == len(history.seconds) == 12
    assert history.seconds == sorted(history.seconds)
    assert history.seconds[0] > 0
    weighted = sum(n * loss for n, loss in zip([16, 16, 16, 2], history.losses[:4], strict=True)) / 50
    assert history.train_losses[0] == pytest.approx(weighted, rel=1e-12)
    assert history.epoch_seconds == [history.seconds[3], history.seconds[7], history.seconds[11]]
    assert (len(history.test_losses), history.test_accuracies, history.learning_rates) == (3, [], [])


def test_evaluation_costs_no_training_time(monkeypatch):
    # A clock that ticks once per reading, and a test loss that takes a thousand ticks.
    ticks = [0.0]

    def clock():
        ticks[0] += 1
        return ticks[0]

    def loss_fn(output, y):
        ticks[0] += 0 if output.requires_grad else 1000
        return F.mse_loss(output, y)

    monkeypatch.setattr("time.perf_counter", clock)
    history = run(loss_fn=loss_fn, evaluate=DATA)
    assert ticks[0] > 3000
    assert history.seconds == [float(n) for n in range(1, 13)]


def test_the_test_part_is_measured_in_evaluation_mode_after_each_epoch():
    model = nn.Sequential(nn.Linear(3, 1, dtype=DTYPE), nn.Dropout(0.9))
    with torch.random.fork_rng():
        history = run(model=model, evaluate=DATA, epochs=1)
    with torch.no_grad():
        expected = F.mse_loss(model.eval()(DATA.test_x), DATA.test_y).item()
    assert history.test_losses == [expected]


def test_a_pair_and_a_data_set_measure_the_same():
    assert run(evaluate=DATA).test_losses == run(evaluate=(DATA.test_x, DATA.test_y)).test_losses


def test_classes_have_an_accuracy():
    x = torch.randn(60, 3, generator=torch.Generator().manual_seed(0), dtype=DTYPE)
    y = (x[:, 0] > 0).long()
    model = gn.models.perceptron([3, 2], generator=torch.Generator().manual_seed(1), dtype=DTYPE)
    history = fit(model, sgd(model, 1.0), [(x, y)], epochs=5, evaluate=(x, y), progress=False)
    with torch.no_grad():
        right = (model(x).argmax(dim=1) == y).sum().item()
    assert history.test_accuracies[-1] == pytest.approx(right / 60, rel=1e-14)
    assert len(history.test_accuracies) == 5


def test_a_class_that_the_loss_ignores_has_no_part_in_the_accuracy():
    x = torch.randn(60, 3, generator=torch.Generator().manual_seed(0), dtype=DTYPE)
    y = (x[:, 0] > 0).long()
    y[::3] = 2

    def accuracy(loss_fn, x, y):
        model = gn.models.perceptron([3, 3], generator=torch.Generator().manual_seed(1), dtype=DTYPE)
        return fit(model, sgd(model, 0.0), [(x, y)], loss_fn=loss_fn, evaluate=(x, y), progress=False).test_accuracies[
            0
        ]

    known = y != 2
    ignoring = accuracy(nn.CrossEntropyLoss(ignore_index=2), x, y)
    assert ignoring == accuracy(nn.CrossEntropyLoss(), x[known], y[known])
    assert ignoring != accuracy(nn.CrossEntropyLoss(), x, y)


def test_an_optimizer_of_some_of_the_parameters_is_enough():
    # The control of the refusal: a frozen body, a head that is trained.
    run(make=lambda model: sgd(model[2]))
    with pytest.raises(TypeError, match=r"expected a torch\.nn\.Module to train, got function"):
        fit(lambda x: x, sgd(student()), batches(), progress=False)


# Outputs and targets with equally many entries on the axes that would be broadcast.
TARGETS = {
    "classes": ((6, 3), (6,), True),
    "classes of places": ((6, 3, 4), (6, 4), True),
    "classes of pixels": ((6, 3, 4, 6), (6, 4, 6), True),
    "two classes": ((6, 2), (6,), True),
    "columns of whole numbers": ((6, 1), (6, 1), False),
    "whole numbers": ((6,), (6,), False),
    "one column": ((6, 1), (6,), False),
    "scores of places last": ((6, 4, 3), (6, 4), False),
    "rows of marks": ((6, 3), (6, 3), False),
    "rows of marks, square": ((6, 6), (6, 6), False),
}


@pytest.mark.parametrize("kind", [torch.int64, torch.int32, torch.bool, DTYPE])
@pytest.mark.parametrize("name", TARGETS)
def test_an_accuracy_is_measured_where_targets_are_classes_and_nowhere_else(name, kind):
    outputs, shape, classes = TARGETS[name]
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(outputs, generator=generator, dtype=DTYPE)
    y = torch.randint(2, shape, generator=generator).to(kind)

    def loss_fn(output, _):
        return output.square().mean()

    class Scores(nn.Module):
        def __init__(self):
            super().__init__()
            self.factor = nn.Parameter(torch.ones((), dtype=DTYPE))

        def forward(self, x):
            return self.factor * x

    model = Scores()
    history = fit(model, sgd(model), [(scores, y)], loss_fn=loss_fn, evaluate=(scores, y), progress=False)
    # By hand, one decision after the other.
    right = [
        max(range(outputs[1]), key=lambda c, at=at: scores[at[0], c][tuple(at[1:])].item()) == int(y[tuple(at)])
        for at in torch.cartesian_prod(*map(torch.arange, shape)).reshape(-1, len(shape)).tolist()
        if classes
    ]
    expected = [sum(right) / len(right)] if classes and kind != DTYPE else []
    assert history.test_accuracies == pytest.approx(expected, rel=1e-14)


def test_modes_are_restored_module_by_module():
    model = nn.Sequential(student(), nn.Dropout(0.0), nn.Dropout(0.0))
    model[1].eval()
    before = [m.training for m in model.modules()]
    seen = []
    model[1].register_forward_hook(lambda module, *_: seen.append(module.training))
    run(model=model, evaluate=DATA, epochs=1)
    assert seen == [True] * 4 + [False]
    assert [m.training for m in model.modules()] == before
    with pytest.raises(ValueError, match="loader with batches"):
        run(model=model, loader=[])
    assert [m.training for m in model.modules()] == before


def test_the_global_random_state_does_not_move():
    before = torch.get_rng_state()
    run(newton, evaluate=DATA, curvature=batches(40))
    assert torch.equal(torch.get_rng_state(), before)


def test_learning_rates_are_the_optimizer_s_and_counted_from_this_run():
    model = student()
    optimizer = newton(model, period=5)
    for _ in range(2):  # a second run counts its own steps; the period goes on where it was
        history = run(lambda _: optimizer, model=model, epochs=3)
        known = {u.step for u in optimizer.history}
        start = optimizer.history[-1].step - history.learning_rate_steps[-1]
        assert {start + s for s in history.learning_rate_steps} <= known
        assert history.learning_rates[-1] == optimizer.history[-1].learning_rates.tolist()
        assert history.group_names == ["0.weight", "0.bias", "2.weight", "2.bias"]
        assert 2 <= len(history.learning_rates) < 12
    assert start == 12


def test_summaries_may_come_from_a_loader_of_their_own():
    drawn = []

    class Spy:
        def __iter__(self):
            for x, y in batches(40):
                drawn.append(len(x))
                yield x, y

    model = student()
    optimizer = newton(model)
    run(lambda _: optimizer, model=model, epochs=1, curvature=Spy())
    assert drawn == [40, 10, 40, 10]  # four steps, two passes
    again = student()
    x, y = next(iter(batches(40)))
    assert optimizer.history[0].value == pytest.approx(F.mse_loss(again(x), y).item(), rel=1e-12)


def test_a_run_that_diverges_ends_and_says_so():
    history = run(lambda m: sgd(m, 1e6), epochs=200)
    assert history.diverged
    assert history.reason.startswith(f"step {len(history.losses)}: expected a finite loss, got")
    assert all(map(math.isfinite, history.losses))
    assert len(history.train_losses) == len(history.epoch_steps) < 200
    assert "diverged: step" in repr(history)


class Words(nn.Module):
    """A model with a parameter whose gradient may be sparse, and one of a gradient that may be None."""

    def __init__(self, sparse=False, dtype=DTYPE):
        super().__init__()
        self.table = nn.Embedding(5, 3, sparse=sparse, dtype=dtype)
        self.unused = nn.Parameter(torch.ones(2, dtype=dtype))

    def forward(self, x):
        return self.table(x)


TORCH = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.1, eps=1e-4),  # the usual eps is 0 in float16
    "SparseAdam": lambda p: torch.optim.SparseAdam(p, lr=0.1),
    "LBFGS": lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=1),
}


class Spoiled(torch.autograd.Function):
    """Its value and its gradient times a number each."""

    @staticmethod
    def forward(ctx, value, of_value, of_gradient):
        ctx.factor = of_gradient
        return value * of_value

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.factor, None, None


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", TORCH)
@pytest.mark.parametrize("factors", [(math.nan, 1), (math.inf, 1), (1, math.nan), (1, -math.inf), (1, 1)], ids=str)
def test_what_is_not_finite_never_reaches_the_parameters(name, factors, dtype):
    torch.manual_seed(0)
    model, steps = Words(name == "SparseAdam", dtype), iter([(1, 1), factors, (1, 1)])
    seen = []

    def loss_fn(output, y):
        seen.append([p.detach().clone() for p in model.parameters()])
        return Spoiled.apply((output.float() - y).square().mean(), *next(steps))

    batch = (torch.tensor([0, 1, 1]), torch.ones(3, 3))
    history = run(lambda m: TORCH[name](m.table.parameters()), model, [batch] * 3, loss_fn=loss_fn, epochs=1)
    assert history.diverged == (factors != (1, 1))
    assert len(history.losses) == (1 if history.diverged else 3)
    after = list(model.parameters())
    assert all(p.isfinite().all() for p in after)
    assert all(map(torch.equal, seen[-1], after)) == history.diverged
    if history.diverged:
        what = "loss" if factors[1] == 1 else "gradient"
        assert history.reason.startswith(f"step 1: expected a finite {what}, got")
        assert what == "loss" or "table.weight" in history.reason


def test_finite_gradients_whose_sum_overflows_are_taken():
    model = Words(dtype=torch.float16)
    history = run(
        lambda m: sgd(m, 1e-6),
        model,
        [(torch.arange(5), torch.zeros(5, 3))],
        loss_fn=lambda output, y: (6e4 * (output - output.detach())).float().sum(),
        epochs=1,
    )
    assert not model.table.weight.grad.sum().isfinite()
    assert not history.diverged


def test_a_search_along_a_line_may_try_what_is_not_finite():
    # -log(1 - w) from 0.5 with a first step of 1.5: the loss there is nan, and the search comes back.
    model = nn.Linear(1, 1, bias=False, dtype=DTYPE)
    nn.init.constant_(model.weight, 0.5)
    values = []

    def loss_fn(output, y):
        values.append((-torch.log(1 - output)).mean() + 4 * (1 - output).mean())
        return values[-1]

    def lbfgs(m):
        return torch.optim.LBFGS(m.parameters(), lr=1.5, max_iter=2, line_search_fn="strong_wolfe")

    history = run(lbfgs, model, [(torch.ones(1, 1, dtype=DTYPE),) * 2], loss_fn=loss_fn, epochs=1)
    assert not all(value.isfinite() for value in values)
    assert not history.diverged
    assert model.weight.isfinite().all()


def test_inputs_that_are_not_finite_end_a_grouped_newton_run_with_its_reason():
    model = student()
    before = [p.clone() for p in model.parameters()]
    x = torch.full((4, 3), float("nan"), dtype=DTYPE)
    history = run(newton, model=model, loader=[(x, x[:, :1])])
    assert history.diverged
    assert "step 0: expected a finite loss, got nan" in history.reason
    assert history.losses == history.train_losses == []
    assert all(torch.equal(p, q) for p, q in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize("make", [sgd, newton])
def test_schedulers_are_stepped_once_per_epoch(make):
    model = student()
    optimizer = make(model)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.5)
    first = optimizer.param_groups[0]["lr"]
    run(lambda _: optimizer, model=model, epochs=4, scheduler=scheduler)
    assert optimizer.param_groups[0]["lr"] == first / 4


def test_a_plateau_scheduler_sees_the_training_loss():
    model = student()
    optimizer = sgd(model)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
    history = run(lambda _: optimizer, model=model, scheduler=scheduler)
    assert scheduler.best == min(history.train_losses)


def test_the_record_survives_json():
    history = run(newton, evaluate=DATA)
    assert History(**json.loads(json.dumps(history.to_dict()))) == history


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_outside_a_terminal_there_is_one_repeatable_line(capsys):
    printed = []
    for _ in range(2):
        history = run(evaluate=DATA, progress=True)
        printed.append(capsys.readouterr())
    assert printed[0] == printed[1]
    loss, test = history.train_losses[-1], history.test_losses[-1]
    assert printed[0].out == f"3 epochs: training loss {loss:.2g}, test loss {test:.2g}\n"
    assert printed[0].err == ""


def test_in_a_terminal_the_bar_moves_and_goes(capsys, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    run(progress=True)
    states = sys.stderr.getvalue().split("\r")
    assert any("0/12" in state for state in states)
    assert states[-2].strip() == states[-1].strip() == ""  # wiped
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_progress_false_is_silent(capsys):
    run(progress=False)
    assert capsys.readouterr() == ("", "")


NOTEBOOK = """
import torch.nn.functional as F, torch, gnewton as gn
data = gn.datasets.teacher_student((3, 4, 1), samples=50)
def run(**options):
    model = gn.models.perceptron([3, 4, 1], generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = data.batches(16, torch.Generator().manual_seed(0))
    return gn.training.fit(model, optimizer, loader, loss_fn=F.mse_loss, epochs=3, **options)
class Shell:  # a kernel whose request names its cell, as JupyterLab's do
    kernel = True
    def get_parent(self): return {"metadata": {"cellId": "a"}}
"""
WATCHED = """
import IPython; from unittest.mock import patch
with patch("IPython.get_ipython", Shell): run()
"""


@pytest.fixture(scope="module")
def notebook(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setenv("IPYTHONDIR", str(tmp_path_factory.mktemp("ipython")))
    sources = [NOTEBOOK, "history = run()", "a = run(); b = run()", "run(progress=False);", WATCHED]
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    nb = nbformat.v4.new_notebook(cells=cells)
    nbclient.NotebookClient(nb, kernel_name="python3", timeout=120).execute()
    patch.undo()
    return [cell.outputs for cell in nb.cells]


def test_a_notebook_cell_keeps_the_one_line(notebook):
    (line,) = notebook[1]
    assert line.data["text/plain"].startswith("3 epochs: training loss ")
    assert set(line.data) == {"text/plain"}
    assert notebook[2] == [line, line]
    assert notebook[3] == []


def test_where_somebody_watches_the_line_takes_the_bar_s_place(notebook):
    assert notebook[4] == notebook[1]


@pytest.mark.parametrize("metadata", [{"cellId": "a"}, {}], ids=["watched", "unwatched"])
def test_only_a_watched_cell_first_shows_the_bar(monkeypatch, metadata):
    from IPython import display

    shown = []

    class Handle:
        def update(self, data, raw):
            shown.append(data["text/plain"])

    def first(data, raw, display_id):
        shown.append(data["text/plain"])
        return Handle()

    class Shell:
        kernel = True

        def get_parent(self):
            return {"metadata": metadata}

    monkeypatch.setattr(display, "display", first)
    monkeypatch.setattr("IPython.get_ipython", Shell)
    history = run(progress=True)
    assert shown[-1] == repr(history)
    # nbval compares the first state of an output: where nobody watches it must be the last.
    assert "0/12" in shown[0] if metadata else len(shown) == 1


NO_PAIRS = [
    ((DATA.train_x, DATA.train_y, DATA.train_y), "a tuple of 3 entries"),
    ([DATA.train_x], "a list of 1 entries"),
    ({"x": DATA.train_x, "y": DATA.train_y}, "a dict of 2 entries"),
    (torch.stack([DATA.train_x[:4], DATA.train_x[:4]]), "a Tensor"),
]


class Pair:
    """What a collate function of one's own may return."""

    def __init__(self, x, y):
        self.x, self.y = x, y

    def __iter__(self):
        return iter((self.x, self.y))


@pytest.mark.parametrize("kind", [tuple, list, deque, lambda pair: Pair(*pair), iter])
def test_a_batch_is_whatever_gives_two(kind):
    loader = [(DATA.train_x, DATA.train_y)] * 2
    assert run(loader=(kind(pair) for pair in loader), epochs=1).losses == run(loader=loader, epochs=1).losses


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"epochs": 0}, ValueError, "expected at least one epoch, got 0"),
        ({"loader": []}, ValueError, "expected a loader with batches for every epoch"),
        *(({"loader": [batch]}, TypeError, text) for batch, text in NO_PAIRS),
        *(({"make": newton, "curvature": [batch]}, TypeError, text) for batch, text in NO_PAIRS),
        ({"make": newton, "full_batch": True, "loader": [(DATA.train_x,) * 3]}, TypeError, "got a tuple of 3 entries"),
        ({"loader": iter([(DATA.train_x, DATA.train_y)])}, ValueError, "a generator is used up after one pass"),
        ({"make": lambda m: "sgd"}, TypeError, "expected a torch.optim optimizer or GroupedNewton, got str"),
        ({"curvature": []}, TypeError, "expected no curvature loader with SGD"),
        ({"make": newton, "curvature": []}, ValueError, "expected a curvature loader with batches"),
        ({"evaluate": (DATA.test_x,)}, ValueError, "expected evaluate as a Dataset or"),
    ],
)
def test_unfit_arguments_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        run(**options)


# -- full batches and several schedules ---------------------------------------------------------------------------------


def test_a_full_batch_epoch_is_one_step_along_the_mean():
    one, other = (run(newton, loader=batches(size), epochs=4, full_batch=True, evaluate=DATA) for size in (7, 50))
    assert len(one.losses) == len(one.train_losses) == len(one.test_losses) == 4
    assert one.train_losses == one.losses
    assert one.losses == pytest.approx(other.losses, rel=1e-9)


def test_full_batch_is_for_grouped_newton_alone():
    with pytest.raises(TypeError, match="got SGD"):
        run(sgd, full_batch=True)
    with pytest.raises(TypeError, match="got a curvature loader"):
        run(newton, curvature=batches(), full_batch=True)


def test_several_schedulers_are_stepped_after_each_epoch():
    model = student()
    optimizer = newton(model, lr=0.8, cubic=8.0)
    schedulers = [
        torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5),
        torch.optim.lr_scheduler.StepLR(gn.AsRate(optimizer, "cubic"), 2, gamma=0.1),
    ]
    run(lambda m: optimizer, model, epochs=2, scheduler=schedulers)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.2)
    assert optimizer.param_groups[0]["cubic"] == pytest.approx(0.8)


class Stream(torch.utils.data.IterableDataset):
    """The training samples one by one, with a length that nobody knows."""

    def __iter__(self):
        return iter(zip(DATA.train_x, DATA.train_y, strict=True))


def test_a_loader_that_does_not_know_its_length_trains_as_one_that_does():
    stream = torch.utils.data.DataLoader(Stream(), batch_size=16)
    with pytest.raises(TypeError):
        len(stream)
    listed = list(zip(DATA.train_x.split(16), DATA.train_y.split(16), strict=True))
    assert run(loader=stream).losses == run(loader=listed).losses


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"epochs": 2.5}, ValueError, "at least one epoch, got 2.5; ask for a whole number"),
        ({"evaluate": torch.utils.data.DataLoader([1, 2])}, ValueError, "got DataLoader; pass evaluate="),
        ({"evaluate": 3}, ValueError, "got int; pass evaluate="),
        ({"evaluate": (DATA.test_x.tolist(), DATA.test_y)}, TypeError, "tensors x and y, got list and Tensor"),
        ({"loader": [(DATA.train_x, DATA.train_y.numpy())]}, TypeError, "tensors x and y, got Tensor and ndarray"),
        ({"make": newton, "loader": [({"x": DATA.train_x}, DATA.train_y)]}, TypeError, "got dict and Tensor"),
        ({"loss_fn": nn.MSELoss(reduction="none")}, ValueError, r"the mean over the batch, .* got shape \(16, 1\)"),
        ({"loss_fn": lambda output, y: 0.0}, ValueError, "the mean over the batch, .* got float"),
        ({"loss_fn": "mse"}, TypeError, r"expected loss_fn\(output, y\), got str"),
        ({"scheduler": 0.1}, TypeError, r"a scheduler of torch\.optim\.lr_scheduler, got float"),
        ({"scheduler": [None, "step"]}, TypeError, "lr_scheduler, got str"),
        (
            {"make": lambda model: sgd(student())},
            ValueError,
            "of the model's parameters, got one that moves none of them",
        ),
        ({"make": lambda model: newton(student())}, ValueError, "got one that moves none of them"),
        ({"loader": DATA}, TypeError, r"got Dataset; a Dataset gives them by \.batches"),
        ({"make": newton, "curvature": DATA}, TypeError, "a curvature loader as batches, got Dataset"),
    ],
)
def test_what_is_no_loader_or_pair_is_refused_before_the_first_step(options, error, message):
    model = student()
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(error, match=message):
        run(model=model, **options)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


def test_the_class_of_a_scheduler_is_refused_before_anything_moves():
    model = gn.models.perceptron([3, 2])
    before = [p.detach().clone() for p in model.parameters()]
    batch = torch.ones(4, 3), torch.zeros(4, dtype=torch.int64)
    with pytest.raises(TypeError, match=r"got the class StepLR; write StepLR\(optimizer, ...\)"):
        fit(model, sgd(model, 0.1), [batch], scheduler=torch.optim.lr_scheduler.StepLR, progress=False)
    assert all(map(torch.equal, before, model.parameters()))
