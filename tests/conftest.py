"""Fixtures every test may use: a copy of this project that tests can run, break and throw away."""

import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import pytest
import yaml

from pipeline.dvc_yaml import read_stages
from pipeline.tracking import relocation

pytest_plugins = ["tests.stand_ins"]

REPOSITORY = Path(__file__).resolve().parent.parent
# The variables of an HTTP proxy that nobody reaches: requests to this machine are not to use it.
CLOSED_PROXY = dict.fromkeys(("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"), "http://127.0.0.1:9")
# The stages that the project comes with. The stand-ins of the integration tests have the same.
STAGES = ("ingest", "validate", "split", "train", "evaluate", "register")
DECLARED_STAGES = tuple(read_stages(REPOSITORY))  # these, and any that were added to `dvc.yaml`


@dataclass(frozen=True)
class Project:
    """A checkout of this project in a directory of its own, with its own git history, DVC cache and MLflow store."""

    path: Path
    home: Path  # stands for the user's home: Prefect's database and DVC's site cache

    @property
    def environment(self) -> dict[str, str]:
        ours, kept = ("MLFLOW_", "PREFECT_", "DVC_", "PIPELINE_"), ("PIPELINE_CACHE",)
        inherited = {key: value for key, value in os.environ.items() if key in kept or not key.startswith(ours)}
        return inherited | {
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "PREFECT_HOME": str(self.home / "prefect"),
            "DVC_SITE_CACHE_DIR": str(self.home / "dvc"),
            "DO_NOT_TRACK": "true",
            "COLUMNS": "160",
        }

    def run(self, *command: str, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the project; its output, both streams together, is in `stdout`."""
        result = subprocess.run(
            command,
            cwd=self.path,
            env=self.environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            check=False,
        )
        if check and result.returncode:
            raise AssertionError(f"{' '.join(command)} ended with {result.returncode}:\n{result.stdout}")
        return result

    def start(self, *command: str, **environment: str) -> subprocess.Popen[str]:
        """Start a command in a process group of its own, its output in a pipe."""
        return subprocess.Popen(
            command,
            cwd=self.path,
            env=self.environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )

    def repro(self, *arguments: str, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
        return self.run("dvc", "repro", *arguments, check=check, **environment)

    def set_params(self, **values: Any) -> None:
        """Change `params.yaml`: `set_params(**{"train.epochs": 2})`."""
        file = self.path / "params.yaml"
        params = yaml.safe_load(file.read_text())
        for key, value in values.items():
            *sections, last = key.split(".")
            target = params
            for section in sections:
                target = target[section]
            target[last] = value
        file.write_text(yaml.safe_dump(params, sort_keys=False, allow_unicode=True))

    def commit(self, message: str = "change") -> None:
        self.run("git", "add", "--all")
        self.run("git", "commit", "--quiet", "--allow-empty", "--message", message)

    def provide_environment(self) -> None:
        """Give the project the installed packages as its `.venv`, as a runner's cache does, for `make`."""
        venv = self.path / ".venv"
        venv.mkdir()
        for name in ("bin", "lib", "pyvenv.cfg"):
            (venv / name).symlink_to(Path(sys.prefix) / name)
        for marker in (".run", ".dev", ".extras"):
            (venv / marker).touch()

    def copy_to(self, path: Path) -> "Project":
        """An independent copy, with its outputs, cache and records, and a home of its own."""
        shutil.copytree(self.path, path, symlinks=True)
        if (path / "mlflow.db").exists():
            settle_store(path / "mlflow.db", self.path)
        return Project(path, path.with_name(f"{path.name}-home"))


def settle_store(copy: Path, origin: Path) -> None:
    """Do for a database that was copied from a folder what opening it does, which says so in the command's output."""
    with closing(sqlite3.connect(copy)) as connection:
        relocation.rewrite(connection, origin, copy.parent)


def stages_that_ran(output: str) -> list[str]:
    """The stages that a `dvc repro` executed, in order, from what it printed. Added stages are left out."""
    ran = [line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage '")]
    return [stage for stage in ran if stage in STAGES]


def copy_repository(path: Path) -> None:
    """Copy the files of this repository that git knows or would take."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for name in filter(None, listed.split("\0")):
        source = REPOSITORY / name
        if source.is_file():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, path / name)


def create_project(path: Path, home: Path) -> Project:
    """Copy this repository's files, and commit them there."""
    copy_repository(path)
    home.mkdir(parents=True, exist_ok=True)
    project = Project(path, home)
    project.run("git", "init", "--quiet", "--initial-branch", "main")
    project.run("git", "config", "user.name", "tests")
    project.run("git", "config", "user.email", "tests@example.invalid")
    project.commit("start")
    return project


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], Any]], Path]:
    """Make a directory once for all test processes: `shared(name, build)` returns it, built by the first to ask."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent

    def make(name: str, build: Callable[[Path], Any]) -> Path:
        # Built in its final place, because MLflow records absolute paths.
        path, finished = root / name, root / f"{name}.finished"
        with filelock.FileLock(root / f"{name}.lock"):
            if not finished.exists():
                shutil.rmtree(path, ignore_errors=True)
                path.mkdir()
                build(path)
                finished.touch()
        return path

    return make


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A fresh clone that works on the `tiny` dataset; nothing has run in it."""
    project = create_project(tmp_path / "project", tmp_path / "home")
    project.set_params(**{"dataset.name": "tiny"})
    (project.path / "dvc.lock").unlink()  # it tells of outputs that no cache here has
    project.commit("work on the tiny dataset")
    return project


@pytest.fixture(scope="session")
def template(shared: Callable[[str, Callable[[Path], Any]], Path]) -> Project:
    """A project in which `dvc repro` has run on `tiny`. Not to be changed: use `trained`."""

    def build(path: Path) -> None:
        project = create_project(path / "project", path / "home")
        project.set_params(**{"dataset.name": "tiny", "train.epochs": 3})
        # Three epochs settle nothing: a later model is to wait, whichever of them got a few images more.
        project.set_params(**{"register.alpha": 1e-6, "register.max_ece": 1.0, "register.max_class_drop": 1.0})
        project.commit("work on the tiny dataset")
        (path / "repro.log").write_text(project.repro().stdout)
        project.commit("lock")

    path = shared("template", build)
    return Project(path / "project", path / "home")


@pytest.fixture
def trained(template: Project, tmp_path: Path) -> Project:
    """A copy of a project in which `dvc repro` has run on `tiny`, for a test to change."""
    return template.copy_to(tmp_path / "project")


@pytest.fixture
def in_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty directory that is the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read_idx(path: Path) -> np.ndarray:
    """A plain idx file as an array: images uint8 [n, height, width], labels uint8 [n]."""
    content = path.read_bytes()
    dimensions = content[3]
    shape = np.frombuffer(content, ">u4", dimensions, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape)


def write_idx(path: Path, array: np.ndarray) -> None:
    """Write an array of bytes as a plain idx file."""
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header + array.astype(np.uint8).tobytes())
