"""Faults of every kind, injected: nothing runs on, nothing is lost, and the next run is right."""

import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.conftest import Project
from tests.e2e import light
from tests.e2e.kills import RETRAIN, RUN, VICTIMS, kill_at_random, lost_of, processes_of
from tests.processes import wait_until

pytestmark = [pytest.mark.faults, pytest.mark.xdist_group("faults")]

COMMANDS = (RUN, RETRAIN) if find_spec("pipeline.retraining") else (RUN,)  # a project may be without this room
KILLS, CHAIN = len(VICTIMS), 3  # one of each; first of a run, then of a retraining
SEED = 5
SHORT_SECONDS = 5  # a quarter of the time for which SQLite waits by itself
PIPELINE_RUN = ("python", "-m", "pipeline.cli", "run")


@pytest.mark.timeout(900)
def test_random_kills_leave_nothing_behind_and_lose_nothing(tmp_path: Path) -> None:
    project = light.build(tmp_path / "project", tmp_path / "home")
    found = kill_at_random(project, KILLS, SEED, COMMANDS, chain=CHAIN)
    assert sum(found.kills.values()) == KILLS
    assert found.is_clean, found
    assert {kill.partition(":")[0] for kill in found.kills} == set(COMMANDS)
    assert found.moves >= found.models


@pytest.fixture(scope="module")
def lightly(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A light project for several tests, each with models of its own."""
    directory = tmp_path_factory.mktemp("lightly")
    return light.build(directory / "project", directory / "home")


def run_held(project: Project, fault: Callable[[], object]) -> tuple[int, str]:
    """Run the flow, with a fault while the training is in its first epoch. Returns exit code and output."""
    with light.held(project) as waits:
        running = project.start(*PIPELINE_RUN)
        wait_until(lambda: waits() or running.poll() is not None)
        fault()
    output, _ = running.communicate()
    return running.returncode, output


def test_a_stage_ends_with_its_flow_and_the_next_run_finishes(lightly: Project) -> None:
    lightly.set_params(**{"train.seed": 0})
    with light.held(lightly) as waits:
        running = lightly.start(*PIPELINE_RUN)
        wait_until(lambda: waits() or running.poll() is not None)
        running.kill()
        output, _ = running.communicate()
        wait_until(lambda: not processes_of(lightly))
        assert waits(), output
    lightly.run(*PIPELINE_RUN)
    assert lost_of(lightly, [0]) == []


def test_a_database_that_is_locked_for_a_while_delays_a_run(lightly: Project) -> None:
    lightly.set_params(**{"train.seed": 1})
    lock = sqlite3.connect(lightly.path / "mlflow.db", isolation_level=None, check_same_thread=False)
    unlock = threading.Timer(SHORT_SECONDS, lock.rollback)

    def fault() -> None:
        lock.execute("BEGIN IMMEDIATE")
        unlock.start()

    code, output = run_held(lightly, fault)
    unlock.join()
    lock.close()
    assert code == 0, output
    assert lost_of(lightly, [1]) == []


def test_a_database_that_stays_locked_stops_a_run_in_words(lightly: Project) -> None:
    lightly.set_params(**{"train.seed": 2})
    with closing(sqlite3.connect(lightly.path / "mlflow.db", isolation_level=None)) as lock:
        code, output = run_held(lightly, lambda: lock.execute("BEGIN IMMEDIATE"))
    assert code == 1
    assert "mlflow.db is locked" in output
    assert "Traceback" not in output
    lightly.run(*PIPELINE_RUN)
    assert lost_of(lightly, [2]) == []


def test_a_full_disk_below_the_artifacts_stops_a_run_in_words(lightly: Project) -> None:
    """Whatever is written to `/dev/full` finds no space left: here a file of the run that is being recorded."""
    lightly.set_params(**{"train.seed": 3})

    def trainings() -> set[Path]:
        return {path.parent for path in lightly.path.glob("mlruns/tiny/*/artifacts/source")}

    before = trainings()

    def fill() -> None:
        wait_until(lambda: trainings() - before)
        (artifacts,) = trainings() - before
        (artifacts / "training").mkdir()
        (artifacts / "training/settings.json").symlink_to("/dev/full")

    code, output = run_held(lightly, fill)
    assert code == 1
    assert "train failed: cannot read or write" in output
    assert "No space left on device" in output
    assert "Traceback" not in output
    lightly.run(*PIPELINE_RUN)
    assert lost_of(lightly, [3]) == []
