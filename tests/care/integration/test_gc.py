"""`pipeline gc` on DVC's cache, in a project of stand-in stages: it keeps the data of branches and the workspace."""

import os

import pytest
import yaml

from pipeline.workspace import lock
from tests.conftest import Project, stages_that_ran

pytestmark = pytest.mark.faults

BRANCH = "retrain/20261124T030000Z"


def cached(project: Project) -> set[str]:
    cache = project.path / ".dvc/cache/files/md5"
    return {path.relative_to(cache).as_posix() for path in cache.glob("??/*")}


def outputs(project: Project, revision: str) -> set[str]:
    """The objects that the `dvc.lock` of a revision refers to."""
    lock = yaml.safe_load(project.run("git", "show", f"{revision}:dvc.lock").stdout)
    digests = [out["md5"] for stage in lock["stages"].values() for out in stage["outs"]]
    return {f"{digest[:2]}/{digest[2:]}" for digest in digests}


@pytest.fixture
def crowded(stand_ins: Project) -> Project:
    """A project with outputs of `main`, of a branch, and of params that were not committed."""
    stand_ins.run("git", "checkout", "--quiet", "-b", BRANCH)
    stand_ins.set_params(**{"train.seed": 2})
    stand_ins.repro()
    stand_ins.commit()
    stand_ins.run("git", "checkout", "--quiet", "main")
    stand_ins.set_params(**{"train.seed": 3})
    stand_ins.repro()
    stand_ins.run("git", "checkout", "--quiet", ".")
    stand_ins.run("dvc", "checkout", "--quiet")
    return stand_ins


def test_only_unreferenced_objects_are_deleted(crowded: Project) -> None:
    before = cached(crowded)
    shown = crowded.run("pipeline", "gc").stdout
    assert "objects of DVC's cache" in shown
    assert "nothing was deleted: pipeline gc --yes" in shown
    assert cached(crowded) == before
    with lock("the flow", wait=0, remedy="", root=crowded.path):
        refused = crowded.run("pipeline", "gc", "--yes", check=False)
    assert refused.returncode == 1
    assert "another process holds the lock of the-flow" in refused.stdout
    assert cached(crowded) == before

    checkpoint = crowded.path / ".pipeline/checkpoints/0123.npz"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()
    training = crowded.path / ".pipeline/trainings/4567.json"
    training.parent.mkdir()
    training.touch()
    os.utime(training, (0, 0))
    of_a_killed_backup = crowded.path / ".pipeline/backup.partial"
    of_a_killed_backup.mkdir()
    crowded.run("pipeline", "gc", "--yes")
    assert not of_a_killed_backup.exists()
    assert cached(crowded) < before
    assert checkpoint.exists()  # of today: its training may resume
    assert not training.exists()
    assert "up to date" in crowded.run("dvc", "status").stdout
    assert outputs(crowded, "main") | outputs(crowded, BRANCH) <= cached(crowded)
    assert outputs(crowded, BRANCH) - outputs(crowded, "main")
    assert "nothing to delete" in crowded.run("pipeline", "gc", "--yes").stdout  # nor in the run-cache

    crowded.set_params(**{"train.seed": 3})
    assert stages_that_ran(crowded.repro().stdout) == [
        "train",
        "evaluate",
        "register",
    ]  # nothing is restored
