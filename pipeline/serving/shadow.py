"""Answers of the challenger in the shadow: logged beside those of the champion, and never sent to a client."""

import logging
import queue
import threading

import numpy as np

from pipeline.errors import PipelineError
from pipeline.serving.served_model import ModelHolder
from pipeline.serving.traffic_log import TrafficLog
from pipeline.serving.traffic_rows import ShadowAnswers

MOST_WAITING = 256  # requests; beyond it, requests are logged without the challenger's answers

_LOGGER = logging.getLogger(__name__)
_Request = tuple[str, str, str, np.ndarray, np.ndarray]  # the arguments of `TrafficLog.add`


class Shadow:
    """A traffic log that first asks the challenger, in a thread of its own. `TrafficLog` describes the methods."""

    def __init__(self, challenger: ModelHolder, log: TrafficLog) -> None:
        """Start the thread."""
        self._challenger, self._log = challenger, log
        self._requests: queue.Queue[_Request | None] = queue.Queue(MOST_WAITING)
        self._thread = threading.Thread(target=self._run, name="shadow", daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """Images that the log could not take."""
        return self._log.dropped

    def add(self, request_id: str, version: str, sha256: str, images: np.ndarray, probabilities: np.ndarray) -> None:
        """Ask the challenger and log both answers. Returns at once."""
        request = (request_id, version, sha256, images, probabilities)
        try:
            self._requests.put_nowait(request)
        except queue.Full:
            self._log.add(*request)

    def close(self) -> None:
        """Log what waits, and close the log."""
        self._requests.put(None)
        self._thread.join()
        self._log.close()

    def _run(self) -> None:
        while (request := self._requests.get()) is not None:
            self._log.add(*request, shadow=self._ask(request[1], request[3]))

    def _ask(self, version: str, images: np.ndarray) -> ShadowAnswers | None:
        try:
            model = self._challenger.current()
            if model.version == version or images.shape[1:] != model.contract.shape:
                return None
            return ShadowAnswers(model.version, model.sha256, model.predict(images))
        except PipelineError:  # there is no challenger
            return None
        except Exception:  # the thread must not end: nothing would be logged any more
            _LOGGER.exception("the challenger cannot answer")
            return None
