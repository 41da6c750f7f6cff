"""Private parts of MLflow: each test fails if an upgrade removes or changes one."""

import os

import pytest

from pipeline.tracking import mlflow_internals
from pipeline.tracking.store import as_default, locate
from tests.integration.recorded import Workspace, empty_store, workspace

__all__ = ["empty_store", "workspace"]  # fixtures


def test_the_schema_revisions_are_those_of_mlflows_migrations(workspace: Workspace) -> None:
    import mlflow.store.db.utils as utils
    from alembic.script import ScriptDirectory

    scripts = ScriptDirectory.from_config(utils._get_alembic_config(""))
    expected = [script.revision for script in scripts.walk_revisions()]
    found = mlflow_internals.read_schema_revisions()
    assert found[0] == expected[0]
    assert sorted(found) == sorted(expected)


def test_the_login_returns_an_application_for_uvicorn(monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.environment_variables import _MLFLOW_SGI_NAME

    monkeypatch.setenv(_MLFLOW_SGI_NAME.name, "gunicorn")
    mlflow_internals.select_uvicorn()
    assert _MLFLOW_SGI_NAME.get() == os.environ["_MLFLOW_SGI_NAME"] == "uvicorn"


def test_the_servers_store_creates_its_experiments(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.server import handlers

    monkeypatch.setattr(handlers, "_tracking_store", None)
    store = locate(workspace.root)
    with as_default(store):  # MLflow makes the server's store the default of the process, also for later tests
        handlers._get_tracking_store(store.uri, store.artifacts)
        number = mlflow_internals.get_server_store().create_experiment("of the server")
    assert workspace.client.get_experiment(number).name == "of the server"


def test_only_the_named_runs_and_models_are_deleted_permanently(workspace: Workspace) -> None:
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    client, store = workspace.client, locate(workspace.root)
    direct = SqlAlchemyStore(store.uri, store.artifacts)
    experiment = client.create_experiment("garments")
    gone = client.create_experiment("marked as deleted")
    client.delete_experiment(gone)
    runs = [client.create_run(experiment).info.run_id for _ in range(2)]
    models = [client.create_logged_model(experiment).model_id for _ in range(2)]
    for run, model in zip(runs, models, strict=True):
        client.log_text(run, "text", "file.txt")
        client.delete_run(run)
        client.delete_logged_model(model)
    assert {model.model_id for model in mlflow_internals.find_deleted_models(direct)} == set(models)

    mlflow_internals.delete_permanently(direct, [runs[0], "0" * 32], [models[0]])
    assert [model.model_id for model in mlflow_internals.find_deleted_models(direct)] == [models[1]]
    assert [run.info.run_id for run in client.search_runs([experiment], run_view_type=2)] == [runs[1]]
    assert client.get_experiment(gone).lifecycle_stage == "deleted"
