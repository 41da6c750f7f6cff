"""A project folder that release 0.1.0 has worked in, and the same folder with today's code."""

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY, Project, copy_repository
from tests.e2e.servers import find_free_port
from tests.processes import wait_until

RELEASE = "17dcb02a89a1dd53e42ed2bd3f96bf7ddd8f4cb2"
PIPELINE = ("python", "-m", "pipeline.cli")  # the code of the project's folder, unlike the installed `pipeline`
RECORDS = {  # name: command of release 0.1.0 whose output is kept
    "versions": ("versions", "--json"),
    "history": ("history", "--json"),
    "comparison": ("compare", "1", "2", "--json"),
}
OPTIONS = """
import json
import typer
from pipeline.cli.__main__ import app

def options(command):
    found = [name for option in command.params for name in (*option.opts, *option.secondary_opts)]
    return {"": found} | {name: options(part) for name, part in getattr(command, "commands", {}).items()}

print(json.dumps(options(typer.main.get_command(app))))
"""
# Kill the process at the moment at which it has claimed a move in the history and is about to move the alias.
KILLED_ROLLBACK = """
import os, signal
from mlflow import MlflowClient
from pipeline.cli.__main__ import app

MlflowClient.set_registered_model_alias = lambda *arguments: os.kill(os.getpid(), signal.SIGKILL)
app(["rollback", "--reason", "killed before the alias moved"])
"""


@pytest.fixture(scope="session")
def release(shared: Callable[[str, Callable[[Path], Any]], Path]) -> Project:
    """A folder with the code, the stores and the state of release 0.1.0. Not to be changed: use `upgraded`.

    Version 1 is the champion's, of `dvc repro`; version 2 of a retraining with the batch march.npz, which quarantined
    bad.npz. A promotion of version 2 is done, and a rollback from it was killed. A training was killed after its first
    epoch. `pipeline up` served a schedule. What the commands printed as JSON lies beside the project.
    """
    known = subprocess.run(["git", "cat-file", "-e", f"{RELEASE}^{{commit}}"], cwd=REPOSITORY, check=False)
    if known.returncode:
        pytest.skip(f"commit {RELEASE[:7]} is not in this repository's history (a shallow clone, or a copy)")
    path = shared("release-0.1.0", _build)
    return Project(path / "project", path / "home")


@pytest.fixture
def upgraded(release: Project, tmp_path: Path) -> Project:
    """A copy of `release` whose code is today's, with its own params and dvc.lock, as after a merge."""
    project = Project(tmp_path / "project", tmp_path / "home")
    shutil.copytree(release.path, project.path, symlinks=True)
    shutil.copytree(release.home, project.home)
    own = {name: (project.path / name).read_bytes() for name in ("params.yaml", "dvc.lock")}
    for name in project.run("git", "ls-files", "-z").stdout.split("\0")[:-1]:
        (project.path / name).unlink()
    copy_repository(project.path)
    for name, content in own.items():
        (project.path / name).write_bytes(content)
    project.run("git", "add", "--all", "--", ".", ":!data/incoming")
    project.run("git", "commit", "--quiet", "--message", "take today's code")
    return project


def read_record(release: Project, name: str) -> Any:
    """Read what a command of release 0.1.0 printed as JSON."""
    return json.loads((release.path.parent / f"{name}.json").read_text())


def pipeline(project: Project, *arguments: str, check: bool = True) -> str:
    """Run a command of the code in the project's folder. Returns its output."""
    return project.run(*PIPELINE, *arguments, check=check).stdout


def pipeline_json(project: Project, *arguments: str) -> Any:
    """Run a command with `--json`. Returns what it printed on standard output."""
    done = subprocess.run(
        [*PIPELINE, *arguments, "--json"],
        cwd=project.path,
        env=project.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout, done.stderr
    return json.loads(done.stdout)


def serve_until(project: Project, action: Callable[[], Any]) -> Any:
    """Run an action while `pipeline up` serves. Returns its result."""
    log = project.path.parent / "up.log"
    ports = ("--mlflow-port", str(find_free_port()), "--prefect-port", str(find_free_port()))
    with log.open("w") as output:
        process = subprocess.Popen(
            [*PIPELINE, "up", *ports],
            cwd=project.path,
            env=project.environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        wait_until(lambda: re.search(r"serving .*\btrain\b", log.read_text()) or process.poll() is not None)
        assert process.poll() is None, log.read_text()
        return action()
    finally:
        process.terminate()
        process.wait(60)


def _build(path: Path) -> None:
    project = Project(path / "project", path / "home")
    project.path.mkdir()
    project.home.mkdir()
    project.run("git", "init", "--quiet", "--initial-branch", "main")
    project.run("git", "config", "user.name", "tests")
    project.run("git", "config", "user.email", "tests@example.invalid")
    # A clone would have a remote, to which a retraining pushes.
    project.run("git", "fetch", "--quiet", str(REPOSITORY), RELEASE)
    project.run("git", "reset", "--quiet", "--hard", "FETCH_HEAD")
    project.set_params(**{"dataset.name": "tiny", "train.epochs": 3})
    project.set_params(**{"register.alpha": 1e-6, "register.max_ece": 1.0, "register.max_class_drop": 1.0})
    (project.path / "dvc.lock").unlink()
    project.commit("work on the tiny dataset")
    project.repro()
    project.commit("lock")
    _kill_training(project)
    _add_batches(project)
    pipeline(project, "retrain")
    pipeline(project, "promote", "2", "--reason", "a test")
    serve_until(project, lambda: pipeline(project, "schedule", "--flow", "retrain", "--cron", "0 3 * * *"))
    for name, command in RECORDS.items():
        (path / f"{name}.json").write_text(json.dumps(pipeline_json(project, *command[:-1])))
    (path / "options.json").write_text(project.run("python", "-c", OPTIONS).stdout)
    pipeline(project, "backup", str(path / "backups"))
    killed = project.run("python", "-c", KILLED_ROLLBACK, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stdout


def _kill_training(project: Project) -> None:
    """Kill a training after its first epoch, which leaves a checkpoint and a running MLflow run."""
    project.set_params(**{"train.epochs": 12})
    training = project.start("dvc", "repro", "train")
    wait_until(lambda: any(project.path.glob(".pipeline/checkpoints/*.npz")) or training.poll() is not None)
    os.killpg(training.pid, signal.SIGKILL)
    output, _ = training.communicate()
    assert any(project.path.glob(".pipeline/checkpoints/*.npz")), output
    project.run("git", "checkout", "params.yaml")


def _add_batches(project: Project) -> None:
    """Put a good and a damaged batch into data/incoming/, finished minutes ago."""
    generate = (
        "import numpy, os; from pipeline.data import tiny; images, labels = tiny.generate(20, 7); "
        "numpy.savez('data/incoming/march.npz', images=images, labels=labels); "
        "open('data/incoming/bad.npz', 'w').write('no archive'); "
        "[os.utime(f'data/incoming/{name}.npz', (1.6e9, 1.6e9)) for name in ('march', 'bad')]"
    )
    (project.path / "data/incoming").mkdir(exist_ok=True)
    project.run("python", "-c", generate)
