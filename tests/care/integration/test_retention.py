"""Retention on a real store: needed runs and models are kept, the others are permanently deleted."""

import hashlib
from pathlib import Path

import pytest

from pipeline.care.retention import Retention, delete, review
from pipeline.errors import TrackingError
from pipeline.files import file_digest
from pipeline.registry import aliases, challenger_count, promotion
from pipeline.tracking.store import Store, locate_unserved
from pipeline.tracking.training_runs import find_or_rebuild
from tests.integration.recorded import Workspace, empty_store, fill, making_workspace, workspace

__all__ = ["empty_store", "workspace"]  # fixtures

pytestmark = pytest.mark.xdist_group("retention")  # the template is made once

NAME = "garments"


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Path:
    """Two versions, the second promoted; a rejected training and one that was not judged; outputs of the second."""
    root = tmp_path_factory.mktemp("months") / "project"
    with making_workspace(root, empty_store) as made:
        for model in (b"one", b"two"):
            made.train(model)
            made.record_training()
            made.enter(model)
        promotion.promote(made.client, NAME, "2", reason="better")
        made.train(b"three")
        made.record_training()
        made.enter(b"three", passed=False)
        made.train(b"four")
        made.record_training()
        made.enter(b"two")
    return root


@pytest.fixture
def months(workspace: Workspace, template: Path) -> Workspace:
    """A copy of the template that a test may change."""
    fill(workspace, template)
    return workspace


def look(workspace: Workspace, keep_runs: int = 0) -> Retention:
    return review(locate_unserved(workspace.root), workspace.client, workspace.root, keep_runs)


def models_of(workspace: Workspace, retention: Retention) -> set[str]:
    """The contents of the model files whose runs are unneeded."""
    runs = {run.info.run_id: run.data.tags.get("model.sha256") for run in workspace.runs()}
    names = {digest(model): model.decode() for model in (b"one", b"two", b"three", b"four")}
    return {names[str(runs[run.id])] for run in retention.runs}


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_versions_history_and_the_workspaces_model_are_kept(months: Workspace) -> None:
    retention = look(months)
    assert models_of(months, retention) == {"three", "four"}
    assert all(run.bytes > 0 for run in retention.runs)
    assert len(retention.models) == 2
    assert models_of(months, look(months, keep_runs=1)) == {"three"}  # the newest training stays
    assert not look(months, keep_runs=4).runs


def test_after_the_deletion_everything_still_works(months: Workspace) -> None:
    client, moves = months.client, aliases.read_history(months.client, NAME)
    retention = look(months)
    delete(retention)

    for gone in (*retention.runs, *retention.models):
        place = Path(gone.place.removeprefix("file://"))
        assert not place.exists()
        assert not place.parent.exists()
    assert {run.data.tags["model.sha256"] for run in months.runs()} == {digest(b"one"), digest(b"two")}
    assert not look(months).runs
    assert not look(months).models
    assert pytest.importorskip("pipeline.audit.verification").verify(months.root).findings == ()
    assert aliases.read_history(client, NAME) == moves
    assert promotion.rollback(client, NAME, reason="worse on bags").target == "1"
    source = Path(client.get_model_version_download_uri(NAME, "1").removeprefix("file://"))
    assert file_digest(source / "data/model.keras") == digest(b"one")


def test_the_runs_of_the_ledger_are_kept(months: Workspace) -> None:
    months.train(b"four")
    judged = find_or_rebuild(months.outputs)
    place = challenger_count.enter(judged, "0123", ["test-0"])
    months.enter(b"two")
    delete(look(months))
    assert months.client.get_run(judged.id).data.tags["judged.0123"] == str(place)


def test_other_programs_runs_and_running_runs_are_kept(months: Workspace) -> None:
    client = months.client
    notebook = client.create_run("0", tags={"mlflow.source.name": "notebook.ipynb"})
    client.set_terminated(notebook.info.run_id)
    months.train(b"three")
    running = find_or_rebuild(months.outputs)
    client.update_run(running.id, status="RUNNING")
    months.enter(b"two")
    gone = {run.id for run in look(months).runs}
    assert gone.isdisjoint({notebook.info.run_id, running.id})
    assert models_of(months, look(months)) == {"four"}


def test_a_parent_is_kept_with_its_child(months: Workspace) -> None:
    client = months.client
    champion = client.get_model_version(NAME, "2").run_id
    parents = [client.create_run("0", tags={"mlflow.source.name": "pipeline run"}).info.run_id for _ in range(2)]
    for parent in parents:
        client.set_terminated(parent)
    client.set_tag(champion, "mlflow.parentRunId", parents[0])
    gone = {run.id for run in look(months).runs}
    assert parents[0] not in gone
    assert parents[1] in gone


def test_an_interrupted_deletion_is_completed(months: Workspace) -> None:
    retention = look(months)
    for run in retention.runs:
        months.client.delete_run(run.id)
    months.client.delete_logged_model(retention.models[0].id)
    again = look(months)
    assert {gone.id for gone in again.runs} == {gone.id for gone in retention.runs}
    assert {gone.id for gone in again.models} == {gone.id for gone in retention.models}
    delete(again)
    assert not look(months).runs
    assert not look(months).models


def test_the_history_is_kept_although_its_experiment_is_marked_as_deleted(months: Workspace) -> None:
    """`mlflow gc` would delete such an experiment."""
    moves = aliases.read_history(months.client, NAME)
    experiment = months.client.get_experiment_by_name(f"{NAME} history")
    months.client.delete_experiment(experiment.experiment_id)
    delete(look(months))
    assert aliases.read_history(months.client, NAME) == moves


def test_a_server_is_refused(months: Workspace) -> None:
    with pytest.raises(TrackingError, match="not through the server"):
        review(Store("http://127.0.0.1:9", None, None), months.client, months.root, 0)
