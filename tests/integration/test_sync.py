"""Making the store agree with the outputs in a workspace."""

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from pipeline.errors import WorkspaceError
from pipeline.files import file_digest
from pipeline.registry.sync import Synced, sync
from pipeline.tracking import logged_models
from pipeline.tracking.stage_outputs import EVALUATION, MODEL, TRAINING, Outputs
from tests.conftest import Project
from tests.integration.recorded import Workspace, empty_store, workspace

__all__ = ["empty_store", "workspace"]  # fixtures


def test_nothing_is_recorded_of_a_workspace_in_which_nothing_ran(workspace: Workspace) -> None:
    assert sync(workspace.root) == Synced()
    assert workspace.runs() == []


def test_a_new_store_gets_run_evaluation_and_version(workspace: Workspace, tmp_path: Path, empty_store: Path) -> None:
    workspace.train(b"one")
    workspace.record_training()
    workspace.enter(b"one")
    colleague = workspace.copy_outputs(tmp_path / "colleague", empty_store)
    synced = sync(colleague.root)
    (run,) = colleague.runs()
    assert (synced.run, synced.restored) == (run.info.run_id, True)
    assert synced.model == file_digest(workspace.outputs.model)
    assert run.data.metrics["test_accuracy"] == 0.75
    assert colleague.aliases("garments") == {"champion": "1"}
    assert colleague.artifacts(run) >= {"training/history.csv", "evaluation/metrics.json", "data/split.json"}


def test_nothing_is_judged_within_an_experiment(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace.enter(b"one")
    workspace.train(b"another")
    monkeypatch.setenv("DVC_EXP_NAME", "sunny-day")
    monkeypatch.setenv("DVC_EXP_BASELINE_REV", "0" * 40)
    workspace.record_training()
    workspace.evaluate()
    workspace.lock("register", MODEL, EVALUATION)
    assert sync(workspace.root).registration is None
    (run, _) = workspace.runs()
    assert run.info.run_name.startswith("experiment sunny-day: ")
    assert run.data.tags["dvc.experiment"] == "sunny-day"
    assert len(workspace.versions("garments")) == 1

    monkeypatch.delenv("DVC_EXP_BASELINE_REV")  # a name that somebody set in the shell makes no experiment
    registration = sync(workspace.root).registration
    assert registration is not None
    assert registration.version == "2"


def test_where_nothing_is_missing_nothing_is_written(workspace: Workspace) -> None:
    workspace.enter(b"one")
    sync(workspace.root)
    before = _content(workspace.root)
    synced = sync(workspace.root)
    assert _content(workspace.root) == before
    assert synced.registration is not None
    assert not synced.registration.is_new


def test_a_training_repeated_with_the_same_bytes_gets_the_evaluation(workspace: Workspace) -> None:
    workspace.train(b"one")
    workspace.record_training()
    workspace.enter(b"one")
    workspace.record_training()  # by force; DVC sees no change, so `evaluate` and `register` do not run
    assert "test_accuracy" not in workspace.runs()[0].data.metrics
    sync(workspace.root)
    newest = workspace.runs()[0]
    assert newest.data.metrics["test_accuracy"] == 0.75
    assert newest.data.tags["registry.version"] == "1"
    assert len(workspace.versions("garments")) == 1


def test_an_evaluation_of_the_model_before_is_left_alone(workspace: Workspace) -> None:
    workspace.enter(b"one")
    workspace.train(b"two")  # and not beyond: `pipeline run --until train`
    workspace.record_training()
    synced = sync(workspace.root)
    assert synced.model == file_digest(workspace.outputs.model)
    assert synced.registration is None
    newest = workspace.runs()[0]
    assert newest.info.run_id == synced.run
    assert "test_accuracy" not in newest.data.metrics
    assert len(workspace.versions("garments")) == 1


def test_an_evaluation_that_was_never_registered_is_not(workspace: Workspace) -> None:
    workspace.train(b"one")
    workspace.evaluate()
    synced = sync(workspace.root)
    assert synced.registration is None
    assert workspace.runs()[0].data.metrics["test_accuracy"] == 0.75
    assert workspace.client.search_registered_models() == []


def test_nothing_is_registered_after_a_stage_that_failed(workspace: Workspace) -> None:
    workspace.enter(b"one")
    report = workspace.root / "reports/validation.json"
    content = report.read_bytes()
    report.unlink()  # as DVC does before it runs `validate`
    assert sync(workspace.root).registration is None
    report.write_bytes(content)
    assert sync(workspace.root).registration is not None


def test_a_version_that_somebody_deleted_is_entered_again(workspace: Workspace) -> None:
    workspace.enter(b"one")
    workspace.client.delete_model_version("garments", "1")
    synced = sync(workspace.root)
    assert synced.registration is not None
    assert synced.registration.is_new
    assert [version.version for version in workspace.versions("garments")] == [2]


def test_a_run_that_somebody_deleted_is_rebuilt(workspace: Workspace) -> None:
    workspace.train(b"one")
    workspace.record_training()
    workspace.client.delete_run(workspace.runs()[0].info.run_id)
    assert sync(workspace.root).restored
    assert len(workspace.runs()) == 1


def test_a_logged_model_that_somebody_deleted_is_kept_again(workspace: Workspace) -> None:
    workspace.train(b"one")
    workspace.record_training()
    (run,) = workspace.runs()
    workspace.client.delete_logged_model(run.outputs.model_outputs[0].model_id)
    workspace.evaluate()
    sync(workspace.root)
    (run,) = workspace.runs()
    model = logged_models.find(workspace.client, run)
    assert model is not None
    assert (Path(model.artifact_location.removeprefix("file://")) / "data/model.keras").read_bytes() == b"one"


def test_a_damaged_lock_file_is_named(workspace: Workspace) -> None:
    workspace.train(b"one")
    (workspace.root / "dvc.lock").write_text("stages: {train: [")
    with pytest.raises(WorkspaceError, match=r"dvc\.lock is damaged"):
        sync(workspace.root)


def test_outputs_are_told_apart_by_the_digests_of_dvc_itself(trained: Project) -> None:
    outputs = Outputs(trained.path)
    assert outputs.are_of("train", MODEL, TRAINING, "data/splits/train.parquet")
    assert outputs.are_of("evaluate", MODEL, EVALUATION)
    assert outputs.are_of("register", MODEL, EVALUATION)
    (outputs.evaluation / "figures" / "another.png").write_bytes(b"")
    assert not outputs.are_of("register", EVALUATION)


def test_a_deleted_store_is_rebuilt_by_the_command(trained: Project) -> None:
    (trained.path / "mlflow.db").unlink()
    shutil.rmtree(trained.path / "mlruns")
    trained.run("pipeline", "sync")
    assert trained.run("dvc", "status").stdout.strip() == "Data and pipelines are up to date."
    with closing(sqlite3.connect(trained.path / "mlflow.db")) as store:
        assert store.execute("SELECT name, alias FROM registered_model_aliases").fetchall() == [("tiny", "champion")]
        ((location,),) = store.execute("SELECT storage_location FROM model_versions").fetchall()
    assert (Path(location.removeprefix("file://")) / "data/model.keras").read_bytes() == Outputs(
        trained.path
    ).model.read_bytes()


def _content(root: Path) -> list[str]:
    """Everything in the store's database."""
    with closing(sqlite3.connect(root / "mlflow.db")) as store:
        return list(store.iterdump())
