"""Servers for the session (Prefect, PostgreSQL), and a project of stand-in stages, in which a flow takes seconds."""

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.data import table, tiny
from pipeline.data.catalog import load_entry
from pipeline.flows.prefect_server import SETTINGS, TEMPORARY_SETTINGS
from tests.conftest import REPOSITORY, Project
from tests.integration.postgresql import running_postgresql

# Each stage reads the file of the one before and its parameters, and leaves the reports that the flow reads. What it is
# to do besides stands in `behaviour.json`, which is no dependency: {"train": {"sleep": 60}, "split": {"exit": [1]}}.
STAND_IN = """
import json, os, shutil, sys, time
from pathlib import Path
import yaml

name, *before = sys.argv[1:]
project = Path(os.environ.get("STAND_INS", "."))  # elsewhere when this is a checkout of its own
behaviour = json.loads((project / "behaviour.json").read_text()).get(name, {})
started = project / "started.txt"
started.write_text(started.read_text() + name + "\\n" if started.exists() else name + "\\n")
print(f"this is {name}", flush=True)
time.sleep(behaviour.get("sleep", 0))
codes = behaviour.get("exit", [])
attempt = started.read_text().split().count(name)
if attempt <= len(codes):
    sys.exit(codes[attempt - 1])

def write(path, text):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text if isinstance(text, str) else json.dumps(text))

value = yaml.safe_load(Path("params.yaml").read_text()).get(name)
write(f"out/{name}.txt", str(value) + "".join(Path(path).read_text() for path in before))
if name == "ingest":
    shutil.copytree("tables", "data/dataset", dirs_exist_ok=True)
if name == "validate":
    write("reports/validation.json", {"expectations": [{"passed": True}, {"passed": False}]})
if name == "split":
    write("reports/split.json", {"splits": {part: {"images": 2} for part in ("train", "validation", "test")}})
if name == "train":
    write("reports/training/settings.json", {"best_epoch": 1})
    write("reports/training/history.csv", "epoch,validation_accuracy\\n1,0.5\\n")
if name == "evaluate":
    write("reports/evaluation/metrics.json", {"accuracy": 0.5, "accuracy_low": 0.4, "accuracy_high": 0.6})
    write("reports/evaluation/gate.json", {"checks": []})
    write("reports/evaluation/report.md", "# Evaluation")
if name == "register":
    write("reports/registration.json", {"name": "tiny", "gate": "passed"})
"""
TABLES = {"train": (6, 9), "test": (2, 8)}  # what the stand-in for `ingest` leaves: `tiny.generate` of these
PARAMS = {
    "ingest": "dataset.name",
    "validate": "validate",
    "split": "split",
    "train": "train.seed",
    "evaluate": "evaluate",
    "register": "register",
}
REPORTS = {
    "ingest": ["data/dataset"],
    "validate": ["reports/validation.json"],
    "split": ["reports/split.json"],
    "train": ["reports/training"],
    "evaluate": ["reports/evaluation"],
    "register": ["reports/registration.json"],
}


@pytest.fixture(scope="session")
def prefect_api() -> Iterator[str]:
    """The address of a Prefect server with a database of its own, which this process uses too."""
    with pytest.MonkeyPatch.context() as environment:
        for name, value in (SETTINGS | TEMPORARY_SETTINGS).items():
            environment.setenv(name, value)
        from prefect.settings import get_current_settings
        from prefect.testing.utilities import prefect_test_harness

        with prefect_test_harness(server_startup_timeout=120):
            yield str(get_current_settings().api.url)


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Callable[[], str]]:
    """Make a PostgreSQL database with MLflow's tables and nothing in them, and return its address for MLflow."""
    with running_postgresql() as make_database:
        yield make_database


@pytest.fixture(scope="session")
def stand_in_template(shared: Callable[[str, Callable[[Path], Any]], Path]) -> Project:
    """A project of stand-in stages in which `dvc repro` has run. Not to be changed: use `stand_ins`."""
    return Project(shared("stand-ins", _build) / "project", shared("stand-ins", _build) / "home")


@pytest.fixture
def stand_ins(stand_in_template: Project, tmp_path: Path) -> Project:
    """A project of stand-in stages, all up to date, for a test to change."""
    project = stand_in_template.copy_to(tmp_path / "project")
    (project.path / "started.txt").unlink()
    return project


def behave(project: Project, **stages: dict[str, Any]) -> None:
    """Tell the stand-ins what to do besides their work: sleep for some seconds, end each attempt with an exit code."""
    (project.path / "behaviour.json").write_text(json.dumps(stages))


def started_stages(project: Project) -> list[str]:
    """The stage processes that were started since the project was copied, in order."""
    started = project.path / "started.txt"
    return started.read_text().split() if started.exists() else []


def _build(path: Path) -> None:
    root = path / "project"
    (root / "data" / "local").mkdir(parents=True)
    (path / "home").mkdir()
    for name in ("params.yaml", "data/catalog/tiny.yaml", ".gitignore", ".dvc/config"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / name, root / name)
    (root / "stage.py").write_text(STAND_IN)
    dataset = load_entry("tiny", REPOSITORY / "data/catalog").dataset
    for split, (count, seed) in TABLES.items():
        images, labels = tiny.generate(count, seed)
        ids = table.strings([f"{split}-{number}" for number in range(count)])
        with table.writer(root / f"tables/{split}.parquet", dataset) as rows:
            rows.write(images, labels, ids, table.strings([table.OFFICIAL] * count))
    (root / ".gitignore").write_text((root / ".gitignore").read_text() + "/started.txt\n/behaviour.json\n")
    names = list(PARAMS)
    stages = {
        name: {
            "cmd": " ".join(["python", "stage.py", name, *(f"out/{before}.txt" for before in names[:place][-1:])]),
            "deps": [*(f"out/{before}.txt" for before in names[:place][-1:]), "stage.py"],
            "params": [PARAMS[name]],
            "outs": [f"out/{name}.txt", *REPORTS[name]],
        }
        for place, name in enumerate(names)
    }
    (root / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}, sort_keys=False))
    project = Project(root, path / "home")
    behave(project)
    project.set_params(**{"dataset.name": "tiny"})
    project.run("git", "init", "--quiet", "--initial-branch", "main")
    project.run("git", "config", "user.name", "tests")
    project.run("git", "config", "user.email", "tests@example.invalid")
    project.repro()
    project.run(sys.executable, "-m", "pipeline.tracking.store")
    project.commit()
