"""The thread beside a training."""

import threading

import pytest

from pipeline.tracking.background import Background


def test_things_are_done_in_the_order_in_which_they_were_asked_for() -> None:
    done: list[int] = []
    background = Background()
    for number in range(20):
        background.start(done.append, number)
    background.finish(done.append, 20)
    background.close()
    assert done == list(range(21))


def test_the_caller_does_not_wait() -> None:
    background, go_on = Background(), threading.Event()
    waiting = background.start(go_on.wait)
    assert not waiting.done()
    go_on.set()
    assert waiting.result()
    background.close()


def test_an_error_is_raised_at_the_next_call() -> None:
    background = Background()
    failed = background.start(int, "no number")
    failed.exception()
    with pytest.raises(ValueError, match="no number"):
        background.start(int, "1")
    assert background.finish(int, "2") == 2  # and only once
    background.close()


def test_finishing_raises_what_went_wrong_before() -> None:
    background, go_on = Background(), threading.Event()
    background.start(go_on.wait)
    background.start(int, "no number")
    threading.Timer(0.05, go_on.set).start()
    with pytest.raises(ValueError, match="no number"):
        background.finish(int, "1")
    background.close()


def test_closing_drops_what_was_not_begun() -> None:
    background, begun, go_on = Background(), threading.Event(), threading.Event()
    done: list[int] = []

    def wait() -> None:
        begun.set()
        go_on.wait()

    background.start(wait)
    background.start(done.append, 1)
    begun.wait()
    threading.Timer(0.05, go_on.set).start()
    background.close()
    assert done == []
