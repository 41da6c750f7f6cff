"""A worker of a sweep: takes trials until the sweep is finished. TensorFlow is imported once for all of them.

    python -m pipeline.search.worker NAME

runs anywhere in a checkout with the code and the data of the sweep. Several may run at once, on several machines, if
the sweep is in a database. `pipeline sweep` starts its workers with `pipeline.process_lifetime`, so that they end with
it. TF_NUM_INTRAOP_THREADS limits the threads of a worker.
"""

import argparse
import sys
import time
from typing import TYPE_CHECKING, Any

from pipeline.errors import ModelError, ParamsError, PipelineError, WorkspaceError
from pipeline.garbage_collection import collect_rarely
from pipeline.proxies import bypass_proxy
from pipeline.search import claims, training
from pipeline.search.definition import Definition, digest_data, full_sections, read_definition, require_same
from pipeline.search.results import Result, training_key
from pipeline.search.space import create_pruner, params_of, suggest
from pipeline.search.store import explained, find_study, get_all
from pipeline.search.trial_runs import TrialRun, open_trial_run

if TYPE_CHECKING:
    from optuna import Study, Trial

    from pipeline.models.training import Epoch

POLL_SECONDS = 0.3
LONGEST_REASON = 500  # characters; TensorFlow's messages may be pages
FACTS = "facts"  # attribute of a finished trial
SEED = "seed"  # attribute of a trial that confirms another: its train.seed


def main() -> None:
    """Run the worker."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.search.worker", description="Work on a sweep.")
    parser.add_argument("name")
    parser.add_argument("--until", type=float, default=float("inf"), help="start no trial after this time (Unix)")
    parser.add_argument("--most", type=int, help="end after so many trials")
    arguments = parser.parse_args()
    collect_rarely()
    bypass_proxy()
    try:
        work(arguments.name, arguments.until, arguments.most)
    except PipelineError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)


def work(name: str, until: float = float("inf"), most: int | None = None) -> None:
    """Take trials until the sweep is finished, or until a time in seconds since 1970, or so many at most.

    While others work on the last trials, it waits: if one of them is killed, it takes the trial.
    """
    study = find_study(name)
    if study is None:
        raise WorkspaceError(f"there is no sweep {name}", remedy="pipeline sweep list")
    definition = read_definition(study.user_attrs[claims.DEFINITION])
    require_same(name, definition)
    training.silence_tensorflow()
    sections, machine, sweep = full_sections(definition), training.describe_machine(), definition.sweep
    confirms = "/" in name
    study.pruner = create_pruner(sweep, off=confirms)
    done = 0
    while time.time() < until and done != most:
        trial = claims.claim(study, draw=not confirms and sweep.sampler != "grid")
        if trial is not None:
            _work_on(study, trial, definition, sections, machine)
            done += 1
        elif claims.count_unfinished(study):
            time.sleep(POLL_SECONDS)
        else:
            return


def _work_on(
    study: "Study", trial: "Trial", definition: Definition, sections: dict[str, Any], machine: dict[str, Any]
) -> None:
    """Run one trial and record its end."""
    from optuna import TrialPruned

    from pipeline.models.backend import tf

    started, cpu = time.monotonic(), time.process_time()
    with explained():
        values = suggest(trial, definition.sweep, sections)
    seed = trial.user_attrs.get(SEED)
    print(f"trial {trial.number}: {values}" + (f", seed {seed}" if seed is not None else ""), flush=True)
    reported = get_all(study)[trial.number].last_step or 0  # before a kill
    facts: dict[str, Any] = {"threads": machine["threads"]}
    with open_trial_run(study, trial, definition, values) as run, claims.beating(trial):
        watch = _Watch(trial, run, reported)
        try:
            if digest_data() != definition.data:
                raise WorkspaceError(
                    "the splits changed during the sweep", remedy="dvc checkout; then the same command"
                )
            params = params_of(sections, values | ({} if seed is None else {"seed": seed}))
            watch.epochs = params.train.settings.epochs
            key = training_key(params, definition, machine)
            result, reused = training.train(params, key, watch)
            facts |= {"reused": reused, **_describe(result)}
            state, value = "COMPLETE", training.merit(training.best_epoch(training.epochs_of(result.history)))
        except TrialPruned:
            state, value = "PRUNED", None
        except (ModelError, ParamsError, MemoryError, tf.errors.OpError) as error:
            state, value = "FAIL", None
            reason = getattr(error, "problem", "") or str(error).partition("\n")[0] or "out of memory"
            trial.set_user_attr(claims.REASON, reason[:LONGEST_REASON])
        if watch.history:
            best = training.best_epoch(watch.history)
            facts |= {"validation_accuracy": best.validation_accuracy, "best_epoch": best.epoch}
            if state == "PRUNED":
                facts["reused"] = all(epoch.restored for epoch in watch.history)
        facts |= {"seconds": time.monotonic() - started, "cpu_seconds": time.process_time() - cpu}
        run.finish(state, facts)
        _tell(study, trial, state, value, facts)  # last: a trial that is told cannot be changed
    print(f"trial {trial.number}: {state}, {facts.get('validation_accuracy')}", flush=True)


class _Watch:
    """Reports the epochs of a trial to Optuna and MLflow, and ends it if the pruner says so."""

    def __init__(self, trial: "Trial", run: TrialRun, reported: int) -> None:
        self._trial, self._run, self._reported = trial, run, reported
        self.history: list[Epoch] = []
        self.epochs = 0  # of the whole training

    def __call__(self, epoch: "Epoch") -> None:
        from optuna import TrialPruned

        if epoch.epoch <= len(self.history):  # from an earlier result, and again from the training
            return
        self.history.append(epoch)
        with explained():
            if epoch.epoch > self._reported:
                self._trial.report(training.merit(epoch), epoch.epoch)
                self._run.log_epoch(epoch)
            if epoch.epoch >= self._reported and epoch.epoch < self.epochs and self._trial.should_prune():
                raise TrialPruned


def _tell(study: "Study", trial: "Trial", state: str, value: float | None, facts: dict[str, Any]) -> None:
    """Record the end of a trial, unless another worker has taken it."""
    from optuna.trial import TrialState

    with explained():
        if claims.is_own(study, trial):
            trial.set_user_attr(FACTS, facts)
            study.tell(trial, value, state=TrialState[state])


def _describe(result: Result) -> dict[str, Any]:
    return {"model_sha256": result.model_sha256, "right": result.right}


if __name__ == "__main__":
    main()
