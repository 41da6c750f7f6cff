"""One thread beside the caller's, so that what takes MLflow a while overlaps with training."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Background:
    """Does things one after another, in the order in which they were asked for.

    Importing MLflow and opening its store takes 2 to 3 s; beside a training they cost next to nothing, because
    TensorFlow computes without Python's interpreter lock.
    """

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="tracking")
        self._pending: list[Future[Any]] = []

    def start(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> "Future[T]":
        """Ask for something, and return at once. What went wrong before is raised here, so that nobody trains on."""
        finished = [future for future in self._pending if future.done()]
        self._pending = [future for future in self._pending if not future.done()]
        for future in finished:
            future.result()
        future = self._executor.submit(function, *args, **kwargs)
        self._pending.append(future)
        return future

    def finish(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Ask for something, wait for it and all before it, and return its result. The first error is raised."""
        last = self.start(function, *args, **kwargs)
        for future in self._pending:
            future.result()
        self._pending.clear()
        return last.result()

    def close(self) -> None:
        """Wait for what is being done, and drop the rest."""
        self._executor.shutdown(wait=True, cancel_futures=True)
