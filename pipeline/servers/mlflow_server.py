"""MLflow's server on the store of this project: `python -m pipeline.servers.mlflow_server HOST PORT [ALLOWED_HOSTS]`.

One process and no job runner: a desk or a small team needs no more, and they take half a minute and 2 GB. It is this
one, and not `mlflow server`, whose own checks let through a page on another port of this machine, a name that begins
like a private address, and every foreign page outside `/api/`. Files are not passed through the server: it says where
they are, so that whoever opens the database without it finds the same ones.
Addresses travel in the environment: a database's may hold a password, which has no place in a list of processes.
"""

import os
import sys
import warnings
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pipeline.allowed_hosts import Application, guard, own_names
from pipeline.errors import PipelineError
from pipeline.files import make_private
from pipeline.proxies import bypass_proxy
from pipeline.stack import data_directory
from pipeline.tracking.store import SETTINGS, Store, locate_unserved, prepare
from pipeline.workspace import STATE, main_repository

# MLflow's own names. With both, only those who say who they are get in.
PROTECTION = ("MLFLOW_FLASK_SERVER_SECRET_KEY", "MLFLOW_AUTH_ADMIN_PASSWORD")
SERVER_SETTINGS = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
# MLflow's assistant executes commands on the server's machine, for everybody who reaches the server from there.
CLOSED = "/ajax-api/3.0/mlflow/assistant"
AUTH_CONFIG = STATE / "mlflow-auth.ini"
USERS = "mlflow-users.db"


def serve(host: str, port: int, allowed_hosts: str = "") -> None:
    """Serve until the process is told to end.

    Args:
        allowed_hosts: names under which browsers and clients may know this machine, with commas between them.

    Raises:
        TrackingError: the default store's database cannot be read, or not be made.
    """
    os.umask(0o077)  # what it creates, such as the database of its users, is for its owner only
    root = main_repository()
    make_private(*data_directory(root).glob(f"{USERS}*"))
    store = locate_unserved(root)
    prepare(store)
    for name, value in {**SETTINGS, **SERVER_SETTINGS, "MLFLOW_DEFAULT_ARTIFACT_ROOT": store.artifacts or ""}.items():
        os.environ.setdefault(name, value)
    names = own_names(host, allowed_hosts)
    patterns = [name.replace("[", "[[]") for name in names]
    os.environ["MLFLOW_SERVER_ALLOWED_HOSTS"] = ",".join([*names, *(f"{pattern}:*" for pattern in patterns)])
    origins = [f"http*://{pattern}{port}" for pattern in patterns for port in ("", ":*")]
    os.environ["MLFLOW_SERVER_CORS_ALLOWED_ORIGINS"] = ",".join(origins)
    warnings.simplefilter("ignore")  # what MLflow's imports deprecate is nothing that a reader of the log can mend
    import uvicorn

    application = guard(_application(root, store), host, allowed_hosts, CLOSED)
    uvicorn.run(application, host=host, port=port, log_level="warning", access_log=False)


def _application(root: Path, store: Store) -> Application:
    """MLflow's application, with passwords if they are set. It learns what `mlflow server` would hand to it."""
    from mlflow.server import constants, handlers

    artifacts = os.environ["MLFLOW_DEFAULT_ARTIFACT_ROOT"]
    os.environ |= dict.fromkeys((constants.BACKEND_STORE_URI_ENV_VAR, constants.REGISTRY_STORE_URI_ENV_VAR), store.uri)
    os.environ |= {constants.ARTIFACT_ROOT_ENV_VAR: artifacts, "_MLFLOW_SGI_NAME": "uvicorn"}
    handlers.initialize_backend_stores(store.uri, store.uri, artifacts)
    _keep_files_inside(handlers._get_tracking_store(), artifacts)
    if all(map(os.environ.get, PROTECTION)):
        os.environ.setdefault("MLFLOW_AUTH_CONFIG_PATH", str(write_auth_config(root)))
        from mlflow.server.auth import create_app

        protected: Application = create_app()
        return protected
    from mlflow.server.fastapi_app import app

    return app


def _keep_files_inside(records: Any, artifacts: str) -> None:
    """Refuse experiments with files elsewhere on this machine: the server would read and write there for everybody."""
    from mlflow.exceptions import MlflowException
    from mlflow.utils.file_utils import local_file_uri_to_path

    def as_local(location: str) -> Path | None:
        is_local = urlsplit(location).scheme in ("", "file")
        return Path(local_file_uri_to_path(location)).resolve() if is_local else None

    create, root = records.create_experiment, as_local(artifacts)

    def create_inside(name: str, artifact_location: str | None = None, tags: Any = None) -> Any:
        place = as_local(artifact_location) if artifact_location else None
        if place and not (root and place.is_relative_to(root)):
            raise MlflowException.invalid_parameter_value(f"files of experiments are kept below {artifacts}")
        return create(name, artifact_location, tags)

    records.create_experiment = create_inside


def write_auth_config(root: Path) -> Path:
    """Say where MLflow's users are kept; their passwords stand in that database, hashed."""
    path = root / AUTH_CONFIG
    data = data_directory(root)
    for directory in (path.parent, data):
        directory.mkdir(parents=True, exist_ok=True)
    settings = {
        "default_permission": "READ",
        "database_uri": f"sqlite:///{data / USERS}".replace("%", "%%"),  # configparser's escape
        "admin_username": "admin",
    }
    lines = [f"{name} = {value}" for name, value in settings.items()]
    path.write_text("\n".join(["[mlflow]", *lines, ""]), encoding="utf-8")
    return path


if __name__ == "__main__":
    bypass_proxy()
    try:
        serve(sys.argv[1], int(sys.argv[2]), *sys.argv[3:])
    except PipelineError as error:
        sys.exit(str(error))
