"""A worker's trials: complete, pruned or failed, each with its reason, and none of them ends the worker."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline.search import claims, run, summary, worker
from tests.conftest import Project

RATES = [0.03, 1e30, 1e-9]  # trains well; diverges; hardly learns


def work(project: Project, name: str) -> list[summary.Row]:
    """Run a sweep over RATES in this process. It has no parent run in MLflow."""
    run.create(name, None, None)
    worker.work(name, most=1)
    assert [row.state for row in run.read_summary(name).rows] == ["complete", "waiting", "waiting"]
    worker.work(name)
    return list(run.read_summary(name).rows)


@pytest.fixture
def here(template: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project whose grid has the RATES. The current directory is in it."""
    project = template.copy_to(tmp_path / "project")
    space = {"learning_rate": {"choices": RATES}}
    project.set_params(**{"sweep.space": space, "sweep.sampler": "grid", "sweep.pruner": "asha"})
    monkeypatch.chdir(project.path)
    for name in ("PIPELINE_SWEEP_STORE", "MLFLOW_TRACKING_URI", "DVC_ROOT"):
        monkeypatch.delenv(name, raising=False)
    return project


def test_trials_are_pruned_fail_repeat_and_are_confirmed(here: Project) -> None:
    good, diverged, poor = work(here, "first")
    assert (good.state, diverged.state, poor.state) == ("complete", "failed", "pruned")
    assert "the loss is not finite after epoch" in (diverged.reason or "")
    assert (good.epoch, poor.epoch) == (3, 1)
    assert run.read_summary("first").best == good
    assert list((here.path / ".pipeline/trainings").glob("*.npz")) == []  # no checkpoint is left

    again = work(here, "second")
    assert [_compared(row) for row in again] == [_compared(row) for row in (good, diverged, poor)]
    assert [row.reused for row in again] == [True, False, True]  # the pruner decides the same, without a training

    study, definition = run.join("first")
    run.prepare_confirmation(study, definition, 2)
    run.prepare_confirmation(study, definition, 2)  # as after a kill: nothing is doubled
    worker.work(run.confirmation_of("first"))
    found = run.read_summary("first")
    assert [(row.confirms, row.seed, row.state) for row in found.confirming] == [(0, 2, "complete"), (0, 3, "complete")]
    (confirmation,) = found.confirmations
    assert confirmation.values == tuple(row.value for row in found.confirming)  # without the seed of the search
    assert len({row.model_sha256 for row in (good, *found.confirming)}) == 3


def _compared(row: summary.Row) -> tuple[Any, ...]:
    return row.number, row.params, row.state, row.value, row.epoch, row.model_sha256


def test_a_workspace_with_other_data_or_code_is_refused(here: Project) -> None:
    study, definition = run.create("first", 1, None)
    for change in ({"code": "0" * 64}, {"data": dict.fromkeys(definition.data, "0" * 64)}):
        study.set_user_attr(claims.DEFINITION, definition.content | change)
        with pytest.raises(run.WorkspaceError, match="is not (that|the data) of the sweep first"):
            worker.work("first")
    assert json.loads(json.dumps(definition.content)) == definition.content
    shutil.rmtree(here.path / "data/splits")
    with pytest.raises(run.WorkspaceError, match="a sweep trains on the splits"):
        run.create("other", 1, None)
