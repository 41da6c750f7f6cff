"""Where the tracking store is."""

from pathlib import Path

import pytest

from pipeline.tracking.store import locate


@pytest.fixture(autouse=True)
def unconfigured(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_DEFAULT_ARTIFACT_ROOT", "DVC_ROOT"):
        monkeypatch.delenv(name, raising=False)


def test_by_default_it_is_in_the_project_under_absolute_addresses(tmp_path: Path) -> None:
    store = locate(tmp_path)
    assert store.uri == f"sqlite:///{tmp_path}/mlflow.db"
    assert store.artifacts == f"file://{tmp_path}/mlruns"


def test_a_temporary_copy_uses_that_of_its_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "main"))
    assert locate(tmp_path / "copy").database == tmp_path / "main/mlflow.db"


def test_a_configured_server_decides_where_files_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://mlflow.example.com")
    store = locate(tmp_path)
    assert (store.uri, store.artifacts, store.database) == ("https://mlflow.example.com", None, None)


def test_a_configured_database_keeps_files_in_the_project_or_as_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://team@host/mlflow")
    assert locate(tmp_path).artifacts == f"file://{tmp_path}/mlruns"
    monkeypatch.setenv("MLFLOW_DEFAULT_ARTIFACT_ROOT", "s3://bucket/mlflow")
    store = locate(tmp_path)
    assert (store.artifacts, store.database) == ("s3://bucket/mlflow", None)
