"""Follow the version to serve: load what the resolver names, check it, and let it answer."""

import logging
import threading
import time

from pipeline.errors import PipelineError
from pipeline.serving.current import MODELS, Current, read_current
from pipeline.serving.metrics import Metrics
from pipeline.serving.served_model import ModelHolder, load_served_model
from pipeline.serving.settings import ServeSettings

POLL_SECONDS, START_POLL_SECONDS = 0.5, 0.02
FRESH_SECONDS = 5.0  # a restarted server answers at once with a champion that was confirmed so recently
PATIENCE_SECONDS = 10.0  # at the start, for the registry; then the last known champion answers
LATE_SECONDS = 10.0  # without an answer of the registry, until the log says so
RETRY_SECONDS = 60.0  # until a version that was refused is tried again

Key = tuple[str, str | None, str | None]  # name, version and SHA-256

_LOGGER = logging.getLogger(__name__)


class Follower:
    """Keeps a ModelHolder at the version that the resolver names. `poll` is called by one thread."""

    def __init__(self, settings: ServeSettings, models: ModelHolder, metrics: Metrics, *, shadow: bool = False) -> None:
        """Create a follower; `start` starts its thread.

        Args:
            shadow: follow the challenger. It is not in the metrics.
        """
        self._settings, self._models, self._metrics = settings, models, metrics
        self._is_shadow, self._file = shadow, settings.challenger_file if shadow else settings.current_file
        self._started = time.time()
        self._served: Key | None = None
        self._refused: tuple[Key, float] | None = None
        self._is_late = False
        self._reported: str | None = None
        self._labels: tuple[str, str] | None = None

    def run(self) -> None:
        """Poll until the process ends."""
        while True:
            try:
                self.poll()
                self._report()
            except Exception:  # the thread must not end: nobody would follow any more
                _LOGGER.exception("cannot follow the registry")
            time.sleep(POLL_SECONDS)

    def start(self, wait: float = 0) -> None:
        """Poll until a model answers, but at most for `wait` seconds, then in a thread."""
        deadline = time.monotonic() + wait
        self.poll()
        while self._served is None and time.monotonic() < deadline:
            time.sleep(START_POLL_SECONDS)
            self.poll()
        threading.Thread(target=self.run, name="follower", daemon=True).start()

    def poll(self) -> None:
        """Look at the file of the resolver once, and load what is new."""
        current = read_current(self._file)
        if current is None:
            self._models.problem = self._models.problem or "the registry has not been asked yet"
            return
        self._note_age(current)
        if not self._is_confirmed(current):
            return
        key = current.name, current.version, current.sha256
        if key == self._served:
            self._models.problem, self._refused = current.problem, None
            return
        if current.version is None or current.sha256 is None:
            self._models.replace(None, current.problem or "there is no such version")
            self._served = key
            self._note_model(None)
            return
        if self._refused and self._refused[0] == key and time.monotonic() < self._refused[1] + RETRY_SECONDS:
            return
        self._load(current, key)

    def _report(self) -> None:
        """Log a new reason that no model, or not the newest, answers."""
        if self._models.problem and self._models.problem != self._reported and not self._is_shadow:
            _LOGGER.warning("%s", self._models.problem)
        self._reported = self._models.problem

    def _load(self, current: Current, key: Key) -> None:
        folder = self._settings.folder / MODELS / str(current.sha256)
        name, version = current.name, str(current.version)
        try:
            model = load_served_model(folder, name, version, threads=self._settings.threads)
        except (PipelineError, OSError) as error:
            problem = error.problem if isinstance(error, PipelineError) else str(error)
            self._refused = key, time.monotonic()
            self._models.problem = f"version {version} of {name} cannot be served: {problem}"
            self._count("refused")
            return
        self._models.replace(model, current.problem)
        self._served, self._refused = key, None
        self._count("loaded")
        self._note_model((version, model.sha256))
        what = "answers in the shadow" if self._is_shadow else "answers"
        _LOGGER.info("%s version %s %s (%s)", name, version, what, model.sha256[:12])

    def _is_confirmed(self, current: Current) -> bool:
        """Return False while a champion from before the start may have been replaced since."""
        if self._settings.version is not None or self._served is not None:
            return True
        now = time.time()
        is_fresh = current.checked_at is not None and now - current.checked_at < FRESH_SECONDS
        if is_fresh or now - self._started > PATIENCE_SECONDS:
            return True
        self._models.problem = "waiting for the registry to confirm the champion"
        return False

    def _note_age(self, current: Current) -> None:
        checked = self._models.checked_at = current.checked_at
        if self._is_shadow:
            return
        self._metrics.checked.set(checked or 0)
        is_late = checked is not None and time.time() - checked > LATE_SECONDS
        if is_late and not self._is_late:
            since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(checked))
            why = f" ({current.problem})" if current.problem else ""
            _LOGGER.warning("the registry has not answered since %s%s; the last known version answers on", since, why)
        elif self._is_late and not is_late:
            _LOGGER.info("the registry answers again")
        self._is_late = is_late

    def _count(self, outcome: str) -> None:
        if not self._is_shadow:
            self._metrics.swaps.labels(outcome).inc()

    def _note_model(self, labels: tuple[str, str] | None) -> None:
        if self._is_shadow:
            return
        if self._labels:
            self._metrics.models.labels(*self._labels).set(0)
        if labels:
            self._metrics.models.labels(*labels).set(1)
        self._labels = labels
