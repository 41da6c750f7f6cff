"""MLflow's server for the store of this project: `python -m pipeline.servers.mlflow_server HOST PORT [ALLOWED_HOSTS]`.

- It is one process without a job runner. More workers and the job runner take half a minute and 2 GB, and one person or
  a small team does not need them.
- It replaces `mlflow server`, whose own checks accept a page on another port of this machine, a host name that begins
  like a private address, and every foreign page outside `/api/`.
- Clients read and write files directly. The server only returns their location, which is the same for clients that open
  the database without the server.
- Addresses are passed in the environment, because the database's may contain a password, and a list of processes shows
  arguments.
"""

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pipeline import logs
from pipeline.allowed_hosts import Application, guard, own_names
from pipeline.errors import PipelineError
from pipeline.extras import require_packages
from pipeline.files import make_private
from pipeline.proxies import bypass_proxy
from pipeline.server_addresses import data_directory
from pipeline.tracking.mlflow_internals import get_server_store, select_uvicorn
from pipeline.tracking.store import SETTINGS, Store, locate_unserved, prepare
from pipeline.workspace import STATE, main_repository

# Variables of MLflow. If both are set, the server requires a login.
PROTECTION = ("MLFLOW_FLASK_SERVER_SECRET_KEY", "MLFLOW_AUTH_ADMIN_PASSWORD")
SERVER_SETTINGS = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
# MLflow's assistant executes commands on the server's machine, for every client on that machine.
CLOSED = "/ajax-api/3.0/mlflow/assistant"
# First-time defaults: MLflow opens on pages for chatbots, with an advertisement and the assistant, which is closed.
# A choice that was made in the browser is kept.
CHOICES = {
    "mlflow.workflowType_v1": '"machine_learning"',
    "mlflow.assistant.fab.autoOpenedOnFirstLoad_v1": "true",
    "_mlflow_model_registry_promo_modal_dismissed_v1": "true",
}
AUTH_CONFIG = STATE / "mlflow-auth.ini"
USERS = "mlflow-users.db"


def serve(host: str, port: int, allowed_hosts: str = "") -> None:
    """Serve until the process receives a signal to end.

    Args:
        allowed_hosts: host names of this machine that browsers and clients may use, separated by commas.

    Raises:
        TrackingError: the default store's database cannot be read or created.
        WorkspaceError: the store or the login needs packages that are not installed.
        ParamsError: PIPELINE_LOG_LEVEL is not a level.
    """
    os.environ.setdefault("MLFLOW_CONFIGURE_LOGGING", "false")  # read when MLflow is imported
    logs.configure("mlflow", "mlflow", "uvicorn")
    os.umask(0o077)  # only the owner may read new files, such as the database of users
    root = main_repository()
    make_private(*data_directory(root).glob(f"{USERS}*"))
    store = locate_unserved(root)
    require_login_packages()
    prepare(store)
    for name, value in {**SETTINGS, **SERVER_SETTINGS, "MLFLOW_DEFAULT_ARTIFACT_ROOT": store.artifacts or ""}.items():
        os.environ.setdefault(name, value)
    names = own_names(host, allowed_hosts)
    patterns = [name.replace("[", "[[]") for name in names]
    os.environ["MLFLOW_SERVER_ALLOWED_HOSTS"] = ",".join([*names, *(f"{pattern}:*" for pattern in patterns)])
    origins = [f"http*://{pattern}{port}" for pattern in patterns for port in ("", ":*")]
    os.environ["MLFLOW_SERVER_CORS_ALLOWED_ORIGINS"] = ",".join(origins)
    warnings.simplefilter("ignore")  # deprecations in MLflow's imports: a reader of the log cannot fix them
    import uvicorn

    application = guard(_application(root, store), host, allowed_hosts, CLOSED)
    uvicorn.run(application, host=host, port=port, log_config=None, access_log=False)


def require_login_packages() -> None:
    """Refuse to start without the package that MLflow's login needs, if passwords are set.

    Raises:
        WorkspaceError: it is not installed.
    """
    if _has_login():
        require_packages("the login of MLflow's server", "flask_wtf")


def _has_login() -> bool:
    return all(map(os.environ.get, PROTECTION))


def _application(root: Path, store: Store) -> Application:
    """MLflow's application, configured like that of `mlflow server`, with a login if passwords are set."""
    from mlflow.server import constants, handlers

    artifacts = os.environ["MLFLOW_DEFAULT_ARTIFACT_ROOT"]
    os.environ |= dict.fromkeys((constants.BACKEND_STORE_URI_ENV_VAR, constants.REGISTRY_STORE_URI_ENV_VAR), store.uri)
    os.environ[constants.ARTIFACT_ROOT_ENV_VAR] = artifacts
    select_uvicorn()
    handlers.initialize_backend_stores(store.uri, store.uri, artifacts)
    _keep_files_inside(get_server_store(), artifacts)
    _set_choices()
    if _has_login():
        os.environ.setdefault("MLFLOW_AUTH_CONFIG_PATH", str(write_auth_config(root)))
        from mlflow.server.auth import create_app

        protected: Application = create_app()
        return protected
    from mlflow.server.fastapi_app import app

    return app


def _set_choices() -> None:
    """Let MLflow's first page set the choices of a browser that has not made them."""
    from flask import Response
    from mlflow.server import app

    script = f"<script>for (const [key, value] of Object.entries({json.dumps(CHOICES)})) "
    script += "if (localStorage.getItem(key) === null) localStorage.setItem(key, value)</script>"

    def add_script(response: Response) -> Response:
        if response.headers.get("Content-Disposition", "").endswith("filename=index.html"):
            response.direct_passthrough = False  # the response is a file
            response.set_data(response.get_data(as_text=True).replace("<head>", f"<head>{script}", 1))
            for header in ("ETag", "Last-Modified"):  # of the file without the script
                response.headers.pop(header, None)
        return response

    app.after_request(add_script)


def _keep_files_inside(records: Any, artifacts: str) -> None:
    """Refuse new experiments with files elsewhere on this machine: any client could make the server access them."""
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
    """Write MLflow's login settings. The database that they name contains the users and their hashed passwords."""
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
