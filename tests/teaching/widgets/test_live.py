"""Live training: what it computes is plain and needs no event loop; what runs in one gives it back and can be stopped."""

import asyncio
import itertools
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.widgets import geometric

import gnewton as gn
from gnewton.teaching import LiveTraining
from gnewton.teaching.widgets.live import CHUNK


def live(make=geometric, settings=None, **more):
    return LiveTraining(make, settings or {"rate": (0.5, 0.9, 0.1)}, **more)


def curve(widget, which=-1):
    return widget.now.numbers[which]["y"]


def run_for(coroutine):
    return asyncio.run(coroutine)


async def until(condition, seconds=10.0):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        await asyncio.sleep(0.01)
    assert condition()


def test_advance_makes_steps_without_an_event_loop():
    widget = live(steps=8)
    widget.advance(3)
    np.testing.assert_allclose(widget.losses, [0.5, 0.25, 0.125])
    np.testing.assert_allclose(curve(widget), widget.losses)
    assert "3 of 8 steps, loss 0.1, paused" in widget.sentence
    widget.advance(100)
    assert len(widget.losses) == 8
    assert widget.ended
    assert "done" in widget.sentence


def test_it_trains_as_a_plain_loop_does():
    data = gn.datasets.digits()

    def make(lr):
        draw = torch.Generator().manual_seed(0)
        model = gn.models.perceptron([64, 8, 10], generator=draw)
        optimizer = gn.GroupedNewton(gn.Partition.by_tensor(model), lr=lr, period=1)
        batches = itertools.chain.from_iterable(itertools.repeat(data.batches(100, draw)))

        def step():
            x, y = next(batches)
            return float(optimizer.step(lambda: F.cross_entropy(model(x), y)))

        return step

    widget, plain = live(make, {"lr": (0.3, 0.1)}), make(0.3)
    torch.rand(7)  # the global random state is nobody's business here
    widget.advance(4)
    assert widget.losses == [plain() for _ in range(4)]
    assert widget.settings["lr"].value == 0.3


def test_a_slider_changes_nothing_until_reset():
    widget = live()
    widget.advance(2)
    picture = widget.png
    widget.settings["rate"].value = 0.9
    assert len(widget.losses) == 2
    assert widget.sentence.startswith("rate 0.5")
    assert "reset for the new settings" in widget.sentence
    widget.act("Reset")
    widget.act("Step")
    np.testing.assert_allclose(widget.losses, [0.1])
    assert widget.png != picture
    np.testing.assert_allclose(curve(widget, 0), [0.5, 0.25])  # the earlier run, in grey


@pytest.mark.parametrize("rate", [0.5, 0.9, 0.1])
def test_a_run_begun_with_a_value_is_the_run_that_the_slider_reaches(rate):
    given, moved = live(values={"rate": rate}), live()
    moved.settings["rate"].value = rate
    moved.reset()
    for widget in (given, moved):
        widget.advance(5)
    assert given.losses == moved.losses
    assert repr(given) == repr(moved)


def test_start_runs_to_the_end_in_the_background_and_redraws():
    async def scene():
        widget = live(steps=50)
        widget.start()
        assert widget.running
        assert not widget.losses  # nothing has run yet: start returns at once
        await until(lambda: not widget.running)
        return widget

    widget = run_for(scene())
    assert len(widget.losses) == 50
    assert "50 of 50" in widget.sentence
    assert len(curve(widget)) == 50


def test_the_loop_is_given_back_between_chunks():
    def slow(rate):
        def step():
            time.sleep(0.004)
            return 1.0

        return step

    async def scene():
        widget, turns = live(slow, steps=100), 0
        widget.start()
        while widget.running:
            await asyncio.sleep(0)
            turns += 1
        return turns

    # 100 steps of 4 ms: a chunk holds about 12 of them, so another task gets several turns before the end.
    assert run_for(scene()) >= 100 * 0.004 / CHUNK / 2


def test_starting_twice_is_one_run():
    async def scene():
        widget = live(steps=30)
        widget.start()
        first = widget._task
        widget.act("Start")
        assert widget._task is first
        await until(lambda: not widget.running)
        return widget

    assert len(run_for(scene()).losses) == 30


def endless(rate):
    return lambda: 1.0


def test_pause_stops_and_start_goes_on():
    async def scene():
        widget = live(endless, steps=10**7)
        widget.start()
        await until(lambda: len(widget.losses) > 2)
        widget.act("Pause")
        here = len(widget.losses)
        await asyncio.sleep(0.05)
        assert len(widget.losses) == here
        assert "paused" in widget.sentence
        widget.start()
        await until(lambda: len(widget.losses) > here)
        widget.pause()

    run_for(scene())


def test_start_with_other_settings_begins_anew():
    async def scene():
        widget = live(steps=40)
        widget.advance(5)
        widget.settings["rate"].value = 0.9
        widget.start()
        await until(lambda: widget.ended)
        return widget

    widget = run_for(scene())
    assert len(widget.losses) == 40
    assert widget.losses[0] == pytest.approx(0.1)


def test_the_cell_run_again_stops_the_old_run():
    async def scene():
        old = live(endless, steps=10**7)
        other = live(endless, steps=10**7, name="another")
        old.start(), other.start()
        new = live(endless, steps=10**7)
        assert not old.running
        assert other.running
        assert not new.running
        other.pause()

    run_for(scene())


def failing(rate):
    def step():
        raise ValueError("no batch left")

    return step


def test_an_error_in_the_background_shows_in_the_status_line():
    async def scene():
        widget = live(failing)
        widget.start()
        await until(lambda: not widget.running)
        return widget

    assert "no batch left" in run_for(scene())._problem


def test_an_error_behind_a_button_shows_in_the_status_line():
    widget = live(failing)
    widget.act("Step")
    assert "ValueError" in widget._problem
    with pytest.raises(ValueError, match="no batch left"):
        widget.advance(1)


@pytest.mark.parametrize("closing", [lambda widget: widget.close(), lambda widget: type(widget).close_all()])
def test_what_is_closed_trains_no_more(closing):
    async def scene():
        widget = live(steps=10**9)
        widget.start()
        await until(lambda: len(widget.losses) > 1)
        closing(widget)
        made = len(widget.losses)
        await asyncio.sleep(3 * CHUNK)
        assert not widget.running
        assert len(widget.losses) == made
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run_for(scene())


def test_a_widget_that_was_not_made_is_closed_in_silence():
    with pytest.raises(ValueError, match="no batch left"):
        live(lambda rate: failing(rate)())
    LiveTraining.__new__(LiveTraining).close()


@pytest.mark.parametrize("behind", ["a button", "a task"])
def test_every_error_is_a_change_that_the_page_sees(behind):
    seen = []

    async def scene():
        widget = live(failing)
        widget.observe(lambda change: seen.append(change["new"]), names="_problem")
        for _ in range(3):
            widget.act("Step" if behind == "a button" else "Start")
            await until(lambda: not widget.running)
            assert "paused" in widget._answer["sentence"]

    run_for(scene())
    assert [bool(text) for text in seen] == [True, False, True, False, True]


def test_a_button_that_works_again_takes_the_error_away():
    widget = live()
    widget.act("no button")
    widget.act("Step")
    assert widget._problem == ""
    assert "1 of" in widget._answer["sentence"]


def test_without_an_event_loop_start_says_what_to_do():
    widget = live()
    with pytest.raises(RuntimeError, match=r"advance\(n\)"):
        widget.start()
    widget.act("Start")
    assert "advance(n)" in widget._problem


@pytest.mark.parametrize("last", [float("nan"), float("inf"), FloatingPointError("not finite")])
def test_a_loss_that_is_not_finite_ends_the_run(last):
    def make(rate):
        losses = iter([1.0, 100.0, last])

        def step():
            loss = next(losses)
            if isinstance(loss, Exception):
                raise loss
            return loss

        return step

    widget = live(make, reach=(1e-2, 10.0))
    widget.advance(9)
    assert widget.losses == [1.0, 100.0]
    assert list(curve(widget)) == [1.0, 10.0]  # what is higher than the picture stays at its edge
    assert "no finite loss" in widget.sentence


def test_only_a_few_earlier_runs_are_kept():
    widget = live()
    for _ in range(6):
        widget.advance(2)
        widget.reset()
    assert len(widget._earlier) == 3


def test_every_button_and_slider_is_shown():
    widget = live()
    assert widget._spec["actions"] == ["Start", "Pause", "Step", "Reset"]
    assert [control.label for control in widget.scene.controls] == ["rate"]
    assert widget.settings["rate"] is widget.set_rate


def test_what_is_no_button_shows_in_the_status_line():
    widget = live()
    widget.act("Stop")
    assert "KeyError" in widget._problem
