"""Versions reproduced from their records: clean, dirty, older, tampered with, without their sources, interrupted."""

import json
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import yaml

from tests.conftest import Project, read_idx
from tests.e2e.test_repro import aliases_of, lock_of, runs_of

pytestmark = [pytest.mark.faults, pytest.mark.xdist_group("reproduction")]

BATCH = "data/incoming/week 48 (1).npz"


@pytest.fixture(scope="session")
def history_template(template: Project, shared: Callable[[str, Callable[[Path], Any]], Path]) -> Project:
    """Version 1 from a clean commit; version 2 from edited code, with a batch that git does not know; then a commit
    with other params. Not to be changed: use `history`."""

    def build(path: Path) -> None:
        project = with_own_records(template, path / "project")
        add_batch(project)
        train = project.path / "pipeline/stages/train.py"
        train.write_text(train.read_text().replace("params.train.seed\n", "params.train.seed + 100\n", 1))
        project.set_params(**{"train.epochs": 4})
        project.repro()
        (project.path / BATCH).unlink()
        project.run("git", "stash", "--include-untracked", "--quiet")
        project.set_params(**{"split.seed": 5, "train.seed": 9})
        project.commit("other params")

    path = shared("reproduction", build)
    return Project(path / "project", path / "project-home")


@pytest.fixture
def history(history_template: Project, tmp_path: Path) -> Project:
    """A copy of it for a test to change."""
    return with_own_records(history_template, tmp_path / "project")


def with_own_records(project: Project, path: Path) -> Project:
    """Copy a project and rewrite the absolute addresses in its MLflow store."""
    copy = project.copy_to(path)
    addresses = {
        "experiments": "artifact_location",
        "runs": "artifact_uri",
        "logged_models": "artifact_location",
        "model_versions": "storage_location",
    }
    with closing(sqlite3.connect(copy.path / "mlflow.db")) as store, store:
        for table, column in addresses.items():
            roots = (project.path.as_uri(), copy.path.as_uri())
            store.execute(f"UPDATE {table} SET {column} = replace({column}, ?, ?)", roots)
    return copy


def add_batch(project: Project) -> None:
    images = read_idx(project.path / "data/raw/train-images-idx3-ubyte")
    labels = read_idx(project.path / "data/raw/train-labels-idx1-ubyte")
    chosen = np.concatenate([np.flatnonzero(labels == label)[:4] for label in range(10)])
    brighter = np.where(images[chosen] > 0, np.minimum(images[chosen].astype(int) + 9, 255), 0).astype(np.uint8)
    np.savez(project.path / BATCH, images=brighter, labels=labels[chosen])
    project.run("dvc", "add", BATCH)


def reproduce(project: Project, version: str) -> tuple[int, dict[str, Any]]:
    """Exit code, and what `--json` printed."""
    done = subprocess.run(
        ["pipeline", "reproduce", version, "--json"],
        cwd=project.path,
        env=project.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def query(project: Project, statement: str, *arguments: str) -> list[Any]:
    """Run a statement in the project's MLflow store."""
    with closing(sqlite3.connect(project.path / "mlflow.db")) as store, store:
        return store.execute(statement, arguments).fetchall()


def version_tags(project: Project, version: str) -> dict[str, str]:
    return dict(query(project, "SELECT key, value FROM model_version_tags WHERE version = ?", version))


def users_state(project: Project) -> dict[str, Any]:
    """The state that a reproduction must not change: files, git, DVC's cache, runs, versions, aliases."""
    # git touches an object that it finds there already, whoever borrows it
    ours = (".pipeline", "mlflow.db", "mlruns", ".git/index", ".git/objects/")
    files = {
        path.relative_to(project.path).as_posix(): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in project.path.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    return {
        "files": {name: state for name, state in files.items() if not name.startswith(ours)},
        "git": project.run("git", "status", "--short").stdout
        + project.run("git", "worktree", "list").stdout
        + project.run("git", "for-each-ref").stdout,
        "runs": runs_of(project),
        "versions": query(project, "SELECT name, version, storage_location FROM model_versions"),
        "aliases": aliases_of(project),
    }


def leftovers(project: Project) -> list[Path]:
    place = project.path / ".pipeline/reproductions"
    return list(place.iterdir()) if place.exists() else []


def run_of(project: Project, version: str) -> str:
    return str(query(project, "SELECT run_id FROM model_versions WHERE version = ?", version)[0][0])


def run_tags(project: Project, version: str) -> dict[str, str]:
    return dict(query(project, "SELECT key, value FROM tags WHERE run_uuid = ?", run_of(project, version)))


def batch_digest(project: Project, version: str) -> str:
    (batch,) = (key for key in run_tags(project, version) if key.startswith("data.batch."))
    return batch.removeprefix("data.batch.")


def edit_run_tag(project: Project, version: str, key: str, value: str) -> None:
    """Tamper with the record of a run."""
    edit = "UPDATE tags SET value = ? WHERE run_uuid = ? AND key = ? RETURNING key"
    assert query(project, edit, value, run_of(project, version), key) == [(key,)]


def test_a_clean_older_commit_with_other_params_is_reproduced(history: Project) -> None:
    (history.path / "pipeline/models/training.py").write_text("an edit under way")
    add_unfinished = history.path / "data/incoming/unfinished.npz"
    add_unfinished.write_bytes(b"a batch that version 1 never had, without a pointer")
    before = users_state(history)
    code, verdict = reproduce(history, "champion")
    assert (code, verdict["outcome"], verdict["version"]) == (0, "identical", "1")
    assert [(stage["outcome"], stage["compared"], stage["differences"]) for stage in verdict["stages"]] == [
        ("ran", True, [])
    ] * 5
    assert users_state(history) == before
    assert leftovers(history) == []
    assert version_tags(history, "1")["reproduction"] == "identical"
    (kept,) = (history.path / "mlruns").rglob("reproduction/verdict.json")
    assert json.loads(kept.read_text())["outcome"] == "identical"


def test_a_dirty_tree_is_reproduced_with_its_code_and_its_batch(history: Project) -> None:
    assert not (history.path / f"{BATCH}.dvc").exists()
    before = users_state(history)
    code, verdict = reproduce(history, "2")
    assert (code, verdict["outcome"]) == (0, "identical")
    assert users_state(history) == before


def test_a_tampered_record_is_not_reproduced_and_the_stage_is_named(history: Project) -> None:
    head = history.run("git", "rev-parse", "HEAD").stdout.strip()
    edit_run_tag(history, "1", "mlflow.source.git.commit", head)  # whose split has another seed
    code, verdict = reproduce(history, "1")
    assert (code, verdict["outcome"]) == (4, "not reproduced")
    assert verdict["reason"].startswith("split is the first stage whose output differs: data/splits/")
    differing = {stage["stage"] for stage in verdict["stages"] if stage["differences"]}
    assert differing == {"split", "train", "evaluate"}
    assert verdict["agreement"]["same_predictions"] < 0.96
    assert version_tags(history, "1")["reproduction"] == "not reproduced"
    assert aliases_of(history)["tiny", "champion"] == "1"


def test_without_its_sources_a_version_is_reproduced_from_its_recorded_data(history: Project) -> None:
    """The batch and the dataset are deleted: only the recorded splits are left. Both records are edited to show a
    model and a machine that differ."""
    edit = "UPDATE model_version_tags SET value = ? WHERE version = '2' AND key = 'model.sha256' RETURNING key"
    assert query(history, edit, "0" * 64) == [("model.sha256",)]
    edit_run_tag(history, "2", "host.threads", "64")
    (lock,) = (history.path / "mlruns").rglob(f"{run_of(history, '2')}/artifacts/source/dvc.lock")
    outs = {out["path"]: out["md5"] for out in yaml.safe_load(lock.read_text())["stages"]["ingest"]["outs"]}
    forget(history, outs["data/dataset"])
    forget(history, batch_digest(history, "2"))
    code, verdict = reproduce(history, "2")
    assert [stage["outcome"] for stage in verdict["stages"]] == ["restored"] * 3 + ["ran"] * 2
    assert (code, verdict["outcome"]) == (3, "equivalent")
    assert verdict["agreement"]["same_predictions"] == 1
    assert "host.threads: 64 recorded" in verdict["reason"]


def forget(project: Project, digest: str) -> None:
    """Remove something from DVC's cache."""
    (project.path / ".dvc/cache/files/md5" / digest[:2] / digest[2:]).unlink()


def test_missing_data_is_an_error_that_names_it(history: Project) -> None:
    shutil.rmtree(history.path / ".dvc/cache/files")
    result = history.run("pipeline", "reproduce", "2", check=False)
    assert result.returncode == 1
    assert "its data cannot be found" in result.stdout
    assert "week 48 (1).npz" in result.stdout
    assert "reproduction" not in version_tags(history, "2")
    assert leftovers(history) == []


def test_nothing_is_left_after_ctrl_c_or_after_a_kill_and_the_next_reproduction(history: Project) -> None:
    process = history.start("pipeline", "reproduce", "1")
    wait_for_stage(history)
    process.kill()
    process.communicate()
    assert len(leftovers(history)) == 1
    (left,) = leftovers(history)

    process = history.start("pipeline", "reproduce", "1")
    wait_for_stage(history, besides=left)
    assert not left.exists()
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "nothing is left running" in output
    assert leftovers(history) == []
    assert "reproduction" not in version_tags(history, "1")
    deadline = time.monotonic() + 30
    while at_work := [process for process in psutil.process_iter(["cwd"]) if _is_in(process, history)]:
        assert time.monotonic() < deadline, at_work
        time.sleep(0.2)


def _is_in(process: psutil.Process, project: Project) -> bool:
    return ".pipeline/reproductions" in (cwd := process.info["cwd"] or "") and cwd.startswith(str(project.path))


def wait_for_stage(project: Project, besides: Path | None = None) -> None:
    """Wait until a stage has started in a checkout."""
    deadline = time.monotonic() + 120
    while not any(list(path.rglob("locks/stage-*")) for path in leftovers(project) if path != besides):
        assert time.monotonic() < deadline, "no stage began"
        time.sleep(0.05)


def test_a_version_is_found_by_its_commit_its_data_and_its_batch(history: Project) -> None:
    def find(*arguments: str) -> list[tuple[str, list[str]]]:
        printed = history.run("pipeline", "lineage", *arguments, "--json").stdout
        return [(version["version"], version["by"]) for version in json.loads(printed)]

    test_split = lock_of(history)["split"]["data/splits/test.parquet"]
    commit = history.run("git", "rev-parse", "HEAD~1").stdout.strip()
    assert find("--data", test_split[:8]) == [("1", ["data.test"]), ("2", ["data.test"])]
    assert find("--data", batch_digest(history, "2")) == [("2", [f"batch {Path(BATCH).name}"])]
    assert find("--commit", commit) == [("2", ["commit, with changes"])]
