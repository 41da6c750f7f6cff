"""A background thread for MLflow's slow calls, so that they overlap with the training or the flow."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Background:
    """A queue of calls that one thread makes, in their order.

    Importing MLflow and opening its store takes 2 to 3 s. During a training this costs almost nothing, because
    TensorFlow computes without Python's interpreter lock.
    """

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="tracking")
        self._pending: list[Future[Any]] = []

    def start(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> "Future[T]":
        """Queue a call and return at once. Raises the error of an earlier call, so that the training stops."""
        finished = [future for future in self._pending if future.done()]
        self._pending = [future for future in self._pending if not future.done()]
        for future in finished:
            future.result()
        future = self._executor.submit(function, *args, **kwargs)
        self._pending.append(future)
        return future

    def finish(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Queue a call, wait for it and all earlier ones, and return its result. Raises the first error."""
        last = self.start(function, *args, **kwargs)
        for future in self._pending:
            future.result()
        self._pending.clear()
        return last.result()

    def close(self) -> None:
        """Wait for the running call and cancel the others."""
        self._executor.shutdown(wait=True, cancel_futures=True)


@contextmanager
def ended_with_block(end: Callable[[str], None]) -> Iterator[None]:
    """Call `end` after the block, with MLflow's status for the result of the block.

    FINISHED; FAILED on an exception; KILLED on Ctrl-C, an exit or Prefect's cancellation.
    """
    try:
        yield
    except BaseException as error:
        with suppress(Exception):  # the first error is raised, not that of the store
            end("FAILED" if isinstance(error, Exception) else "KILLED")
        raise
    end("FINISHED")
