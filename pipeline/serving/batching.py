"""Micro-batching: one thread answers the images of all requests that wait, together.

It never waits for more requests: without load, an image is answered at once, alone. While the model computes, the event
loop reads further requests.
"""

import asyncio
import threading
from dataclasses import dataclass
from queue import SimpleQueue

import numpy as np

from pipeline.errors import PipelineError
from pipeline.serving.errors import NotAvailable, RequestError
from pipeline.serving.images import describe_shape
from pipeline.serving.metrics import Metrics
from pipeline.serving.served_model import ModelHolder, ServedModel


@dataclass(frozen=True)
class _Request:
    images: np.ndarray
    answer: "asyncio.Future[tuple[ServedModel, np.ndarray]]"


class Batcher:
    """Answers requests in batches. `predict` belongs to one event loop."""

    def __init__(self, models: ModelHolder, metrics: Metrics, *, max_batch: int, max_waiting: int) -> None:
        """Create a batcher; `start` starts its thread.

        Args:
            max_batch: images of several requests that are answered together. A request is never divided.
            max_waiting: images that may wait. Beyond it, requests are refused.
        """
        self._models, self._metrics = models, metrics
        self._max_batch, self._max_waiting, self._waiting = max_batch, max_waiting, 0
        self._requests: SimpleQueue[_Request | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)

    def start(self) -> None:
        """Start the thread of the model."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def stop(self) -> None:
        """Answer what waits, and end the thread."""
        self._requests.put(None)
        self._thread.join()

    async def predict(self, images: np.ndarray) -> tuple[ServedModel, np.ndarray]:
        """Return the model and its probabilities for images uint8 [n, *shape]: float32 [n, classes].

        Raises:
            NotAvailable: too many images wait, or no model is loaded.
            RequestError: the model was replaced by one of another shape.
        """
        if self._waiting and self._waiting + len(images) > self._max_waiting:
            raise NotAvailable(
                "the server has more requests than it can answer",
                expected=f"at most {self._max_waiting:,} waiting images",
                found=f"{self._waiting:,}",
                remedy="send the request again later",
            )
        self._waiting += len(images)
        self._metrics.waiting.set(self._waiting)
        try:
            request = _Request(images, self._loop.create_future())
            self._requests.put(request)
            return await request.answer
        finally:
            self._waiting -= len(images)
            self._metrics.waiting.set(self._waiting)

    def _run(self) -> None:
        """Answer requests until the None of `stop`."""
        is_ending = False
        while not is_ending:
            batch: list[_Request] = []
            count = 0
            while count < self._max_batch and not (batch and self._requests.empty()):
                request = self._requests.get()
                if request is None:
                    is_ending = True
                    break
                batch.append(request)
                count += len(request.images)
            if batch:
                self._answer(batch)

    def _answer(self, batch: list[_Request]) -> None:
        answers: list[tuple[ServedModel, np.ndarray] | PipelineError]
        try:
            model = self._models.current()
            fitting = [request for request in batch if request.images.shape[1:] == model.contract.shape]
            found = iter(self._predict(model, fitting) if fitting else ())
            answers = [
                next(found) if request.images.shape[1:] == model.contract.shape else _refuse(model, request.images)
                for request in batch
            ]
        except Exception as error:  # each request is answered, and the thread goes on
            failure = error if isinstance(error, PipelineError) else NotAvailable("the model failed", found=str(error))
            answers = [failure] * len(batch)
        self._loop.call_soon_threadsafe(_resolve, batch, answers)

    def _predict(self, model: ServedModel, batch: list[_Request]) -> list[tuple[ServedModel, np.ndarray]]:
        images = np.concatenate([request.images for request in batch]) if len(batch) > 1 else batch[0].images
        probabilities = model.predict(images)
        if not np.isfinite(probabilities).all():
            raise NotAvailable("the model's answer is not a number")
        self._metrics.observe_batch(model, probabilities)
        ends = np.cumsum([len(request.images) for request in batch])
        return [
            (model, probabilities[end - len(request.images) : end]) for end, request in zip(ends, batch, strict=True)
        ]


def _refuse(model: ServedModel, images: np.ndarray) -> RequestError:
    return RequestError(
        "the model was replaced by one that takes other images",
        expected=describe_shape(model.contract),
        found=str(list(images.shape)),
    )


def _resolve(batch: list[_Request], answers: "list[tuple[ServedModel, np.ndarray] | PipelineError]") -> None:
    for request, answer in zip(batch, answers, strict=True):
        if request.answer.done():  # its task was cancelled
            continue
        if isinstance(answer, PipelineError):
            request.answer.set_exception(answer)
        else:
            request.answer.set_result(answer)
