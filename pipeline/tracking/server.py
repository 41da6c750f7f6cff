"""MLflow's server on the store of this project: `python -m pipeline.tracking.server HOST PORT [ALLOWED_HOSTS]`.

One worker and no job runner: a desk or a small team needs no more, and they take half a minute and 2 GB. Files are not
passed through the server: it says where they are, so that whoever opens the database without it finds the same ones.
Addresses travel in the environment: a database's may hold a password, which has no place in a list of processes.
"""

import os
import sys
from pathlib import Path

from pipeline.errors import PipelineError
from pipeline.files import make_private
from pipeline.stack import data_directory
from pipeline.tracking.store import SETTINGS, locate_unserved, prepare
from pipeline.workspace import STATE, main_repository

# MLflow's own names. With both, only those who say who they are get in.
PROTECTION = ("MLFLOW_FLASK_SERVER_SECRET_KEY", "MLFLOW_AUTH_ADMIN_PASSWORD")
SERVER_SETTINGS = {
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "PYTHONWARNINGS": "ignore",  # what MLflow's imports deprecate is nothing that a reader of the log can mend
}
AUTH_CONFIG = STATE / "mlflow-auth.ini"
USERS = "mlflow-users.db"
THIS_MACHINE = ("localhost", "localhost:*", "127.0.0.1", "127.0.0.1:*")


def serve(host: str, port: int, allowed_hosts: str = "") -> None:
    """Serve until the process is told to end.

    Args:
        allowed_hosts: names under which browsers and clients may know this machine, with commas between them; empty
            for MLflow's own: this machine and private addresses.

    Raises:
        TrackingError: the default store's database cannot be read, or not be made.
    """
    os.umask(0o077)  # what it creates, such as the database of its users, is for its owner only
    root = main_repository()
    make_private(*data_directory(root).glob(f"{USERS}*"))
    store = locate_unserved(root)
    prepare(store)
    os.environ |= dict.fromkeys(("MLFLOW_BACKEND_STORE_URI", "MLFLOW_REGISTRY_STORE_URI"), store.uri)
    for name, value in {**SETTINGS, **SERVER_SETTINGS, "MLFLOW_DEFAULT_ARTIFACT_ROOT": store.artifacts or ""}.items():
        os.environ.setdefault(name, value)
    arguments = ["server", "--host", host, "--port", str(port), "--workers", "1", "--no-serve-artifacts"]
    arguments += ["--uvicorn-opts", "--log-level warning --no-access-log"]
    if allowed_hosts:
        names = allowed_hosts.split(",")
        arguments += ["--allowed-hosts", ",".join([*THIS_MACHINE, *names, *(f"{name}:*" for name in names)])]
        arguments += ["--cors-allowed-origins", ",".join(f"http*://{name}:{port}" for name in names)]
    if all(map(os.environ.get, PROTECTION)):
        os.environ.setdefault("MLFLOW_AUTH_CONFIG_PATH", str(write_auth_config(root)))
        arguments += ["--app-name", "basic-auth"]
    from mlflow.cli import cli

    cli(arguments)


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
    try:
        serve(sys.argv[1], int(sys.argv[2]), *sys.argv[3:])
    except PipelineError as error:
        sys.exit(str(error))
