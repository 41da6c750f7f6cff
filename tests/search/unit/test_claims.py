"""Trials of a journal are taken once, go back to the queue when their worker has ended, and are never lost."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest

from pipeline.search import claims, results, store
from pipeline.tracking.processes import this_process
from tests.conftest import REPOSITORY

DEAD = this_process().rsplit(" ", 2)[0] + " 4194304 1.00"  # no process has this id
ELSEWHERE = "other-machine 1 1.00"


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[optuna.Study]:
    """A sweep of three trials in a journal."""
    (tmp_path / "dvc.yaml").touch()
    monkeypatch.chdir(tmp_path)
    for name in ("PIPELINE_SWEEP_STORE", "MLFLOW_TRACKING_URI", "DVC_ROOT"):
        monkeypatch.delenv(name, raising=False)
    study = store.create_study("some")
    study.set_user_attr(claims.TRIALS, 3)
    return study


def claim(study: optuna.Study) -> Any:
    return claims.claim(store.find_study(study.study_name))  # type: ignore[arg-type]  # as another process would


def test_each_trial_is_taken_once_and_no_more_than_planned(study: optuna.Study) -> None:
    assert [claim(study).number for _ in range(3)] == [0, 1, 2]
    assert claim(study) is None
    assert claims.count_unfinished(study) == 3


def test_a_trial_of_an_ended_worker_is_taken_again_with_its_number(study: optuna.Study) -> None:
    trial = claim(study)
    trial.suggest_float("momentum", 0, 1)
    trial.set_user_attr(claims.WORKER, DEAD)
    again = claim(study)
    assert (again.number, again.params) == (0, trial.params)
    assert again.user_attrs[claims.WORKER] == this_process()
    assert claim(study).number == 1


def test_a_trial_of_another_machine_is_taken_when_it_is_silent(study: optuna.Study) -> None:
    trial = claim(study)
    trial.set_user_attr(claims.WORKER, ELSEWHERE)
    assert claim(study).number == 1
    trial.set_user_attr(claims.BEAT, trial.user_attrs[claims.BEAT] - claims.LOST_SECONDS - 1)
    assert claim(study).number == 0
    assert not claims.is_own(store.find_study("some"), claim_of(ELSEWHERE, study, 1))  # type: ignore[arg-type]


def claim_of(worker: str, study: optuna.Study, number: int) -> Any:
    trial = study.trials[number]
    claims.set_attribute(study, trial, claims.WORKER, worker)
    return trial


def test_a_trial_that_ends_its_workers_fails(study: optuna.Study) -> None:
    for _ in range(claims.MOST_ATTEMPTS):
        assert claim(study).number == 0
        claim_of(DEAD, study, 0)
    assert claim(study).number == 1
    assert study.trials[0].state.name == "FAIL"
    assert "ended 3 times" in study.trials[0].user_attrs[claims.REASON]


def test_a_trial_that_gets_further_each_time_does_not_fail(study: optuna.Study) -> None:
    for epoch in range(1, 2 + claims.MOST_ATTEMPTS):
        trial = claim(study)
        assert trial.number == 0
        trial.report(0.5, epoch)
        claim_of(DEAD, study, 0)
    assert claim(study).number == 0


def test_a_truncated_line_of_the_journal_is_removed(study: optuna.Study) -> None:
    journal = store.directory("some") / store.JOURNAL
    with journal.open("ab") as file:
        file.write(b'{"op_code":4,"worker')
    assert claim(study).number == 0
    assert claim(study).number == 1


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "ü"])
def test_a_name_that_is_no_file_name_is_refused(name: str) -> None:
    with pytest.raises(store.WorkspaceError, match="cannot be the name of a sweep"):
        store.require_name(name)


def test_only_postgresql_is_a_shared_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert store.database() is None
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql+psycopg2://me@host/mlflow")
    assert store.database() == "postgresql+psycopg2://me@host/mlflow"
    monkeypatch.setenv(store.STORE_VARIABLE, "postgres://me@host/own")
    assert store.database() == "postgresql+psycopg2://me@host/own"
    monkeypatch.setenv(store.STORE_VARIABLE, "mysql://me@host/own")
    with pytest.raises(store.WorkspaceError, match="PIPELINE_SWEEP_STORE is not usable"):
        store.database()


def test_answers_survive_packing() -> None:
    for count in (1, 8, 200, 6000):
        right = np.random.default_rng(count).random(count) < 0.9
        assert (results.unpack(results.pack(right)) == right).all()
    assert len(results.pack(np.random.default_rng(0).random(6000) < 0.9)) < 1000


def test_the_page_names_every_option() -> None:
    page = (REPOSITORY / "docs/search.md").read_text()
    options = ("--name", "--join", "--trials", "--workers", "--minutes", "--preset", "--confirm", "--json")
    assert [option for option in options if option not in page] == []
