"""The extras of pyproject.toml: the core does not install them, and one error names the command that does."""

import re
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.errors import WorkspaceError
from pipeline.extras import require_packages
from pipeline.tracking.store import Store, explained, prepare
from tests.conftest import REPOSITORY

EXTRAS = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
ROLES = {"dev", "docs", "gpu"}  # not of `make extras`
BROUGHT_ALONG = {"apprise", "prometheus-client", "uvicorn"}  # by Prefect or MLflow
DATABASE = Store("postgresql+psycopg2://me@host/mlflow", None, None)


def test_the_core_installs_no_package_of_an_extra() -> None:
    locked = set(re.findall(r"^([\w-]+)==", (REPOSITORY / "requirements.lock").read_text(), re.MULTILINE))
    declared = {re.split(r"[>=<\[; ]", line)[0] for name in EXTRAS.keys() - ROLES for line in EXTRAS[name]}
    assert declared & locked == BROUGHT_ALONG


def test_make_extras_and_the_development_tools_have_every_extra() -> None:
    extras = sorted(EXTRAS.keys() - ROLES)
    assert f"EXTRAS := {' '.join(extras)}\n" in (REPOSITORY / "Makefile").read_text()
    assert any(one.endswith(f"[{','.join(sorted([*extras, 'docs']))}]") for one in EXTRAS["dev"])


@pytest.mark.parametrize(
    ("module", "user", "action"),
    [
        ("psycopg2", "the tracking store postgresql+psycopg2://me@host/mlflow", lambda: prepare(DATABASE)),
        ("boto3", "the S3 store of the runs' files", lambda: prepare(Store("sqlite:///a.db", "s3://bucket", None))),
    ],
    ids=["database", "files"],
)
def test_a_team_s_package_that_is_missing_gives_one_error_and_writes_nothing(
    module: str, user: str, action: Callable[[], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, module, None)  # Python's way to block an import
    with pytest.raises(WorkspaceError) as error:
        action()
    assert str(error.value) == f"{user} needs {module}\n  found:    not installed\n  remedy:   make extras"
    assert list(tmp_path.iterdir()) == []


def test_a_server_whose_files_are_in_s3_gives_the_same_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    message = "needs boto3\n.*\n  remedy:   make extras"
    with pytest.raises(WorkspaceError, match=message), explained(Store("http://mlflow.example.com", None, None)):
        import boto3  # noqa: F401  as MLflow does it


def test_all_missing_packages_are_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("httptools", "multipart"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(WorkspaceError, match="^`pipeline serve` needs httptools and multipart\n"):
        require_packages("`pipeline serve`", "uvicorn", "httptools", "multipart")
