"""A team's stores: PostgreSQL and an S3-compatible store in place of the embedded ones, by the environment alone."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import create_engine, inspect, text
from sqlalchemy.pool import NullPool

from pipeline.data import tiny
from pipeline.errors import TrackingError
from pipeline.files import file_digest
from pipeline.registry import alias_history, aliases
from pipeline.tracking.database_setup import hold_creation_lock
from pipeline.tracking.store import explained, locate, open_store
from tests.conftest import REPOSITORY, STAGES, Project
from tests.integration.postgresql import NOTHING, running_postgresql
from tests.integration.recorded import lay_out
from tests.integration.s3 import SECRET, ObjectStore, running_s3
from tests.stand_ins import behave, started_stages

pytestmark = [pytest.mark.faults, pytest.mark.xdist_group("team")]

PASSWORD = "pa55word-of-the-database"
TOKEN = "t0ken-of-a-channel"
SECRETS = [secret.encode() for secret in (SECRET, PASSWORD, TOKEN)]


# What a member's stages record, without TensorFlow: the model is any bytes.
MEMBER = """
import sys
from pathlib import Path
from tests.integration.recorded import Workspace

workspace = Workspace(Path.cwd())
workspace.train(sys.argv[1].encode())
workspace.record_training()
workspace.enter(sys.argv[1].encode())
"""


@dataclass(frozen=True)
class Team:
    """Two members' checkouts, each with a model of its own, recorded at once in the stores that they share."""

    members: tuple[Project, Project]
    objects: ObjectStore
    environment: dict[str, str]
    printed: str


@pytest.fixture(scope="module")
def make_database() -> Iterator[Callable[..., str]]:
    with running_postgresql() as make:
        yield make


@pytest.fixture(scope="module")
def objects() -> Iterator[ObjectStore]:
    with running_s3() as store:
        yield store


@pytest.fixture(scope="module")
def team(objects: ObjectStore, make_database: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> Team:
    environment = objects.environment | {
        "MLFLOW_TRACKING_URI": make_database(NOTHING).replace("@", f":{PASSWORD}@"),
        "MLFLOW_DEFAULT_ARTIFACT_ROOT": f"{objects.make_bucket('runs')}/mlflow",
        "MLFLOW_S3_ENDPOINT_URL": objects.endpoint,
        "PIPELINE_NOTIFY_URLS": f"json://127.0.0.1:1/{TOKEN}",
        "PYTHONPATH": str(REPOSITORY),
    }
    root = tmp_path_factory.mktemp("team")
    ann, ben = Project(root / "ann", root / "home"), Project(root / "ben", root / "home")
    for member in (ann, ben):
        lay_out(member.path)
        member.run("git", "init", "--quiet")
        member.run("git", "config", "user.name", "tests")
        member.run("git", "config", "user.email", "tests@example.invalid")
        member.commit("start")
        (member.path / "new.py").touch()  # a tree that differs: what git does not ignore is recorded
        (member.path / ".env").write_text("".join(f"{name}={value}\n" for name, value in environment.items()))
    trainings = [member.start(sys.executable, "-c", MEMBER, member.path.name, **environment) for member in (ann, ben)]
    outputs = [training.communicate()[0] for training in trainings]
    assert [training.returncode for training in trainings] == [0, 0], "\n".join(outputs)
    return Team((ann, ben), objects, environment, "".join(outputs))


@pytest.fixture
def of_the_team(team: Team, monkeypatch: pytest.MonkeyPatch) -> Team:
    """The same, with this process in the first member's place."""
    for name, value in team.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(team.members[0].path)
    return team


def test_two_who_train_at_once_lose_nothing(of_the_team: Team) -> None:
    """Their two stores are one, and it was empty when both began."""
    store = locate()
    client = open_store(store)
    with explained(store):
        experiment = client.get_experiment_by_name("garments")
        runs = client.search_runs([experiment.experiment_id], order_by=["attributes.start_time"])
        versions = client.search_model_versions("name = 'garments'")
        moves = aliases.read_history(client, "garments")
    digests = {file_digest(member.path / "models/model.keras") for member in of_the_team.members}
    assert len(digests) == 2
    assert {run.data.tags["model.sha256"] for run in runs} == digests
    assert all(run.info.status == "FINISHED" and "test_accuracy" in run.data.metrics for run in runs)
    assert {run.info.artifact_uri.rpartition("/mlflow/")[0] for run in runs} == {"s3://runs"}
    assert {version.tags["model.sha256"] for version in versions} == digests
    decisions = sorted(version.tags["decision"] for version in versions)
    assert decisions in (["challenger", "champion"], ["champion", "not promoted"])
    assert [move.number for move in moves] == list(range(1, len(moves) + 1))
    assert all(move.state in ("done", "void") for move in moves)
    (champion,) = [version for version in versions if version.tags["decision"] == "champion"]
    assert alias_history.find_aliases(client, "garments")["champion"] == str(champion.version)


def test_the_champions_model_file_comes_back_from_the_team_store(of_the_team: Team, tmp_path: Path) -> None:
    from mlflow.artifacts import download_artifacts

    champion = open_store(locate()).get_model_version_by_alias("garments", "champion")
    model = Path(download_artifacts(artifact_uri="models:/garments@champion", dst_path=str(tmp_path)))
    assert file_digest(model / "data/model.keras") == champion.tags["model.sha256"]


def test_batches_and_outputs_go_through_the_team_remote(
    stand_ins: Project, objects: ObjectStore, tmp_path: Path
) -> None:
    images, labels = tiny.generate(20, seed=9)
    (stand_ins.path / "data/incoming").mkdir()
    np.savez(stand_ins.path / "data/incoming/march.npz", images=images, labels=labels)
    stand_ins.run("dvc", "add", "data/incoming/march.npz")
    stand_ins.run("dvc", "remote", "add", "--default", "team", f"{objects.make_bucket('data')}/dvc")
    stand_ins.commit("share")
    stand_ins.run("dvc", "push", **objects.environment)
    stand_ins.run("git", "clone", "--quiet", str(stand_ins.path), str(tmp_path / "clone"))
    clone = Project(tmp_path / "clone", tmp_path / "clone-home")
    clone.run("dvc", "pull", **objects.environment)
    for name in ("data/incoming/march.npz", "out/register.txt", "reports/evaluation/metrics.json"):
        assert file_digest(clone.path / name) == file_digest(stand_ins.path / name)
    assert SECRET not in (stand_ins.path / ".dvc/config").read_text()
    assert not any(SECRET.encode() in content for content in objects.read("data").values())


def test_a_store_of_files_that_does_not_answer_is_an_error_in_words(
    of_the_team: Team, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    store = locate()
    client = open_store(store)
    run = client.search_runs([client.get_experiment_by_name("garments").experiment_id])[0]
    with pytest.raises(TrackingError, match="MLFLOW_S3_ENDPOINT_URL"), explained(store):
        client.log_text(run.info.run_id, "x", "x.txt")


def test_no_secret_is_kept_anywhere(team: Team, make_database: Callable[..., str]) -> None:
    """Neither in what was printed, nor in the checkouts with their git history, nor in the two stores."""
    kept = {"printed": team.printed.encode()}
    for member in team.members:
        files = [path for path in member.path.rglob("*") if path.is_file() and path.name != ".env"]
        kept |= {str(path): path.read_bytes() for path in files}
        kept[f"git of {member.path}"] = member.run("git", "log", "--all", "--patch", "--text").stdout.encode()
    kept |= team.objects.read("runs")
    assert any(name.endswith("changes.diff") for name in kept)
    address = team.environment["MLFLOW_TRACKING_URI"].replace("+psycopg2", "")
    kept["database"] = subprocess.run(["pg_dump", address], capture_output=True, check=True).stdout
    assert b"model.sha256" in kept["database"]  # it is the store's
    assert {name for name, content in kept.items() if any(secret in content for secret in SECRETS)} == set()


def test_prefect_keeps_its_runs_in_postgresql(
    stand_ins: Project, make_database: Callable[..., str], tmp_path: Path
) -> None:
    """Its tables are made by one server at a time."""
    database = make_database(NOTHING).replace("psycopg2", "asyncpg").replace("@", f":{PASSWORD}@")
    environment = {"PREFECT_SERVER_DATABASE_CONNECTION_URL": database}
    behave(stand_ins)
    stand_ins.set_params(**{"train.seed": 5})
    another = create_engine(database.replace("asyncpg", "psycopg2"), isolation_level="AUTOCOMMIT", poolclass=NullPool)
    with another.connect() as connection:
        hold_creation_lock(connection)
        running = stand_ins.start(sys.executable, "-m", "pipeline.cli", "run", **environment)
        waiting = text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
        while not connection.execute(waiting).scalar():
            assert running.poll() is None, running.communicate()[0]
            time.sleep(0.1)
        assert not inspect(connection).get_table_names()
    ran, _ = running.communicate()
    assert running.returncode == 0, ran
    assert started_stages(stand_ins)
    assert PASSWORD not in ran
    query = ["psql", "--tuples-only", "--no-align", database.replace("+asyncpg", ""), "--command"]
    runs = subprocess.run([*query, "select name, state_type from task_run"], capture_output=True, text=True, check=True)
    assert sorted(line.split("|")[0] for line in runs.stdout.split()) == sorted(STAGES)
    assert {line.split("|")[1] for line in runs.stdout.split()} == {"COMPLETED"}
