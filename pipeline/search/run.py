"""`pipeline sweep`: create, continue or join a sweep, confirm its best trials, and record the result."""

from contextlib import closing
from typing import TYPE_CHECKING

from pipeline.errors import WorkspaceError
from pipeline.search import claims
from pipeline.search.definition import (
    Definition,
    define,
    full_sections,
    read_definition,
    require_same,
    require_same_params,
)
from pipeline.search.progress import Progress
from pipeline.search.report import import_plots, log_report
from pipeline.search.space import list_grid
from pipeline.search.store import claim_lock, create_study, explained, find_study, get_all, require_name
from pipeline.search.summary import CONFIRMS, Summary, summarise
from pipeline.search.trial_runs import announce_sweep_run, open_sweep_run, run_attribute
from pipeline.search.worker import SEED
from pipeline.search.workers import Workers, supervise
from pipeline.tracking.background import Background, ended_with_block

if TYPE_CHECKING:
    from optuna import Study
    from rich.console import Console

DEFAULT_TRIALS = 20
MOST_CANDIDATES = 5  # that are confirmed


def confirmation_of(name: str) -> str:
    """Return the name of the study with the confirmations of a sweep."""
    return f"{name}/confirm"


def create(name: str, trials: int | None, preset: str | None) -> tuple["Study", Definition]:
    """Create a sweep with the parameters, data and code of the current directory, or find it to continue.

    Args:
        trials: number of trials in all; None: as before, or DEFAULT_TRIALS.

    Raises:
        WorkspaceError: it was started with other parameters, data or code.
    """
    require_name(name)
    definition = define(preset)
    study = create_study(name)
    with claim_lock(name), explained():
        recorded = study.user_attrs.get(claims.DEFINITION)
        if recorded:
            require_same(name, read_definition(recorded))
            require_same_params(name, read_definition(recorded), definition)
        if trials is not None or claims.TRIALS not in study.user_attrs:
            study.set_user_attr(claims.TRIALS, trials or DEFAULT_TRIALS)
        study.set_user_attr(claims.DEFINITION, definition.content)
        if definition.sweep.sampler == "grid":
            _enqueue_grid(study, definition)
    return study, definition


def join(name: str) -> tuple["Study", Definition]:
    """Find a sweep to work on with its recorded parameters.

    Raises:
        WorkspaceError: there is none, or the data or the code here differ.
    """
    study = find_study(name)
    if study is None or claims.DEFINITION not in study.user_attrs:
        raise unknown(name)
    definition = read_definition(study.user_attrs[claims.DEFINITION])
    require_same(name, definition)
    return study, definition


def unknown(name: str) -> WorkspaceError:
    """Return the error for a sweep that does not exist."""
    return WorkspaceError(f"there is no sweep {name}", remedy="pipeline sweep list")


def read_summary(name: str) -> Summary:
    """Read a sweep and its result so far.

    Raises:
        WorkspaceError: there is none.
    """
    study = find_study(name)
    if study is None or claims.DEFINITION not in study.user_attrs:
        raise unknown(name)
    with explained():
        return summarise(study, find_study(confirmation_of(name)))


def prepare_confirmation(study: "Study", definition: Definition, seeds: int) -> None:
    """Enqueue the candidates of a sweep with more seeds: the best trial, and those within noise of it.

    Raises:
        WorkspaceError: no trial is complete.
    """
    name = study.study_name
    candidates = summarise(study, None).within_noise[:MOST_CANDIDATES]
    if not candidates:
        raise WorkspaceError(f"the sweep {name} has no complete trial to confirm", remedy=f"pipeline sweep show {name}")
    confirming = create_study(confirmation_of(name))
    with claim_lock(name), explained():
        confirming.set_user_attr(claims.DEFINITION, definition.content)
        if run := study.user_attrs.get(run_attribute()):
            confirming.set_user_attr(run_attribute(), run)
        known = {(trial.user_attrs[CONFIRMS], trial.user_attrs[SEED]) for trial in get_all(confirming)}
        first = definition.sections["train"]["seed"]
        for row in candidates:
            for seed in range(first + 1, first + 1 + seeds):
                if (row.number, seed) not in known:
                    stored = get_all(study)[row.number].params
                    confirming.enqueue_trial(stored, user_attrs={CONFIRMS: row.number, SEED: seed})


def search(
    study: "Study", definition: Definition, workers: Workers, confirm: int | None, console: "Console", *, quiet: bool
) -> Summary:
    """Run a sweep to its end, confirm it if asked to, and record the result in its MLflow run.

    Args:
        confirm: number of other seeds for the candidates; None: do not confirm.
        quiet: show no progress.

    Raises:
        FlowError: the workers fail.
        TrackingError: MLflow's store or the database cannot be used.
    """
    name, background = study.study_name, Background()
    announce_sweep_run(study)
    opened = background.start(open_sweep_run, study, definition)  # takes seconds, in which the workers start
    with closing(background), ended_with_block(lambda status: opened.result().end(status)):
        background.start(import_plots)

        def supervise_shown(study: "Study") -> None:
            if claims.is_finished(study):
                return
            progress = Progress(study, console, workers.count, quiet=quiet)

            def poll() -> None:
                progress.update()
                if opened.done():
                    opened.result()  # raises the error of the store, if there was one

            with progress.show():
                supervise(study, workers, poll)
                progress.update(now=True)
            if progress.prefect.problem and not quiet:
                problem = f"Prefect has no table of the trials: {progress.prefect.problem}"
                console.print(problem, style="yellow", markup=False)

        supervise_shown(study)
        if confirm and claims.is_finished(study):
            opened.result()  # the runs of the confirmation are nested under it
            prepare_confirmation(study, definition, confirm)
        confirming = find_study(confirmation_of(name))
        if confirming:
            supervise_shown(confirming)
        summary = read_summary(name)
        log_report(opened.result(), study, summary)
    return summary


def _enqueue_grid(study: "Study", definition: Definition) -> None:
    """Enqueue the combinations of the grid that are not there yet, up to the number of trials."""
    combinations = list_grid(definition.sweep, full_sections(definition))[: study.user_attrs[claims.TRIALS]]
    study.set_user_attr(claims.TRIALS, len(combinations))
    for combination in combinations[len(get_all(study)) :]:
        study.enqueue_trial(combination)
