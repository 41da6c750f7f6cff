"""Take trials from a sweep, so that none is lost or worked on twice, whatever happens to the workers.

A worker takes a trial under a lock that all machines share. A trial whose worker has ended goes back to the queue, with
its number and its values, and continues from its checkpoint.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from pipeline.errors import TrackingError
from pipeline.search.optuna_internals import put_back, set_attribute
from pipeline.search.store import claim_lock, explained, get_all
from pipeline.tracking.processes import is_running, this_process

if TYPE_CHECKING:
    from optuna import Study, Trial

TRIALS, DEFINITION = "trials", "definition"  # attributes of a study: number of trials to run, and `Definition.content`
WORKER, BEAT = "worker", "beat"  # attributes of a trial: its worker, and when that one was last alive
ATTEMPTS = "attempts"  # workers that took the trial since its last finished epoch, and that epoch
REASON = "reason"  # why a trial failed
MOST_ATTEMPTS = 3  # a trial that ended so many workers, such as by its memory, fails
BEAT_SECONDS = 20
LOST_SECONDS = 120  # a worker on another machine without a beat for so long is lost; clocks may differ by a minute


def claim(study: "Study", *, draw: bool = True) -> "Trial | None":
    """Take the next trial: one that waits, or else a new one. Returns None if there is nothing to take now.

    Args:
        draw: take new trials too, until the sweep has its number.
    """
    with claim_lock(study.study_name), explained():
        release_lost(study)
        trials = get_all(study)
        waiting = [trial for trial in trials if trial.state.name == "WAITING"]
        if not waiting and not (draw and len(trials) < study.user_attrs[TRIALS]):
            return None
        trial = study.ask()
        former = trials[trial.number] if trial.number < len(trials) else None
        attempts = _count_attempts(former) + 1 if former else 1
        trial.set_user_attr(WORKER, this_process())
        trial.set_user_attr(ATTEMPTS, [attempts, _last_epoch(former)])
        trial.set_user_attr(BEAT, time.time())
        return trial


def release_lost(study: "Study") -> None:
    """Put trials whose worker has ended back into the queue. Must hold the lock of the claims."""
    from optuna.trial import TrialState

    for trial in get_all(study):
        if trial.state.name != "RUNNING" or not is_lost(trial):
            continue
        if _count_attempts(trial) < MOST_ATTEMPTS:
            put_back(study, trial)
            continue
        reason = f"its worker ended {MOST_ATTEMPTS} times before it finished an epoch, maybe for lack of memory"
        set_attribute(study, trial, REASON, reason)
        study.tell(trial.number, state=TrialState.FAIL)


def is_lost(trial: Any) -> bool:
    """Return True if the worker of a running trial has ended."""
    worker = trial.user_attrs.get(WORKER)
    running = is_running(worker) if worker else False  # without: it was killed within the claim
    return time.time() - trial.user_attrs.get(BEAT, 0) > LOST_SECONDS if running is None else not running


def _count_attempts(trial: Any) -> int:
    """Return how many workers have ended in this trial without finishing an epoch."""
    attempts, epoch = trial.user_attrs.get(ATTEMPTS, (0, 0))
    return 0 if _last_epoch(trial) > epoch else int(attempts)


def _last_epoch(trial: Any) -> int:
    return (trial.last_step or 0) if trial else 0


def is_own(study: "Study", trial: "Trial") -> bool:
    """Return True unless another worker has taken the trial, because this one was stopped for long."""
    return bool(get_all(study)[trial.number].user_attrs.get(WORKER) == this_process())


def is_finished(study: "Study") -> bool:
    """Return True if the study has all of its trials, and none runs or waits."""
    return not count_unfinished(study) and len(get_all(study)) >= study.user_attrs.get(TRIALS, 0)


def count_unfinished(study: "Study") -> int:
    """Return the number of trials that run or wait."""
    return sum(not trial.state.is_finished() for trial in get_all(study))


@contextmanager
def beating(trial: "Trial") -> Iterator[None]:
    """Show other machines during the block that this worker is alive."""
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(BEAT_SECONDS):
            with suppress(TrackingError), explained():  # the next beat may succeed
                trial.set_user_attr(BEAT, time.time())

    thread = threading.Thread(target=beat, name="beat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
