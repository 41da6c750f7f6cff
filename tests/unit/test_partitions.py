"""A function applied to partitions: in order, few at a time, with the errors of the workers."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from pipeline import partitions
from pipeline.errors import DataError, PipelineError
from pipeline.partitions import AHEAD, Executor, map_partitions
from pipeline.rooms import Room


def square(value: int) -> int:
    time.sleep(0.02 * (value % 3 == 0))  # later partitions end first
    return value * value


def refuse(value: int) -> int:
    if value == 3:
        raise DataError("image 3 is damaged", remedy="delete it")
    return value


def end(value: int) -> int:
    if value == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return value


def return_process_id(_value: int) -> int:
    return os.getpid()


@pytest.mark.parametrize("workers", [1, 2, None])
def test_results_have_the_order_of_the_partitions(workers: int | None) -> None:
    assert list(map_partitions(square, range(40), workers=workers)) == [value * value for value in range(40)]
    assert list(map_partitions(square, [], workers=workers)) == []


def test_one_worker_is_this_process() -> None:
    assert set(map_partitions(return_process_id, range(3), workers=1)) == {os.getpid()}
    assert os.getpid() not in set(map_partitions(return_process_id, range(3), workers=2))


@pytest.mark.parametrize("workers", [1, 2])
def test_few_partitions_are_read_before_they_are_needed(workers: int) -> None:
    read: list[int] = []
    results = map_partitions(square, (read.append(value) or value for value in range(1000)), workers=workers)
    assert read == []
    assert [next(results) for _ in range(3)] == [0, 1, 4]
    assert len(read) <= 3 + AHEAD * workers
    results.close()  # type: ignore[attr-defined]
    assert len(read) <= 3 + AHEAD * workers


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_comes_after_the_results_before_it(workers: int) -> None:
    results = map_partitions(refuse, range(10), workers=workers)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(DataError, match="image 3 is damaged\n  remedy:   delete it") as caught:
        next(results)
    if workers > 1:
        assert "in refuse" in str(caught.value.__cause__)  # the traceback of the worker


def test_a_worker_that_was_killed_is_an_error_that_names_the_partition() -> None:
    with pytest.raises(PipelineError, match=r"cannot compute partition \d of end: a worker ended"):
        list(map_partitions(end, range(10), workers=2))


def test_a_room_may_compute_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []

    def submit(function: Callable[[int], int], partition: int) -> SimpleNamespace:
        events.append(f"submitted {partition}")
        return SimpleNamespace(result=lambda: function(partition))

    @contextmanager
    def cluster() -> Iterator[Executor]:
        yield Executor(1, submit)
        events.append("closed")

    rooms = {
        "without": Room(),
        "not-configured": Room(executor="builtins:print"),  # returns None
        "scale": Room(executor="this:cluster"),
    }
    monkeypatch.setattr(partitions, "find_rooms", lambda: rooms)
    monkeypatch.setattr(partitions, "resolve_name", {"builtins:print": print, "this:cluster": cluster}.get)
    assert list(map_partitions(square, range(2))) == [0, 1]
    assert events == ["submitted 0", "submitted 1", "closed"]
