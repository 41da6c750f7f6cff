"""A team's stores: PostgreSQL and an S3-compatible store in place of the embedded ones, by the environment alone."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from pipeline.data import tiny
from pipeline.errors import TrackingError
from pipeline.files import file_digest
from pipeline.tracking import history
from pipeline.tracking.store import explained, locate, open_store
from pipeline.tracking.verify import verify
from tests.conftest import STAGES, Project
from tests.integration.conftest import behave, started_stages
from tests.integration.postgresql import NOTHING, running_postgresql
from tests.integration.s3 import SECRET, ObjectStore, running_s3

pytestmark = [pytest.mark.faults, pytest.mark.xdist_group("team")]

PASSWORD = "pa55word-of-the-database"
TOKEN = "t0ken-of-a-channel"
SECRETS = [secret.encode() for secret in (SECRET, PASSWORD, TOKEN)]


@dataclass(frozen=True)
class Team:
    """Two members' checkouts, each with a model of its own, trained at once on the stores that they share."""

    members: tuple[Project, Project]
    objects: ObjectStore
    environment: dict[str, str]
    printed: str


@pytest.fixture(scope="module")
def make_database() -> Iterator[Callable[..., str]]:
    with running_postgresql() as make:
        yield make


@pytest.fixture(scope="module")
def team(
    template: Project, make_database: Callable[..., str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Team]:
    with running_s3() as objects:
        environment = objects.environment | {
            "MLFLOW_TRACKING_URI": make_database(NOTHING).replace("@", f":{PASSWORD}@"),
            "MLFLOW_DEFAULT_ARTIFACT_ROOT": f"{objects.make_bucket('runs')}/mlflow",
            "MLFLOW_S3_ENDPOINT_URL": objects.endpoint,
            "PIPELINE_NOTIFY_URLS": f"json://127.0.0.1:1/{TOKEN}",
        }
        objects.make_bucket("data")
        root = tmp_path_factory.mktemp("team")
        members = template.copy_to(root / "ann"), template.copy_to(root / "ben")
        for seed, member in enumerate(members, start=2):
            member.set_params(**{"train.seed": seed})
        trainings = [member.start("dvc", "repro", **environment) for member in members]
        outputs = [training.communicate()[0] for training in trainings]
        assert [training.returncode for training in trainings] == [0, 0], "\n".join(outputs)
        yield Team(members, objects, environment, "".join(outputs))


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
        experiment = client.get_experiment_by_name("tiny")
        runs = client.search_runs([experiment.experiment_id], order_by=["attributes.start_time"])
        versions = client.search_model_versions("name = 'tiny'")
        moves = history.read_history(client, "tiny")
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
    assert history.find_aliases(client, "tiny")["champion"] == str(champion.version)


def test_the_registered_model_loads_from_the_team_store(of_the_team: Team) -> None:
    import mlflow

    model = mlflow.pyfunc.load_model("models:/tiny@champion")
    images, _ = tiny.generate(3, seed=1)
    assert np.asarray(model.predict(images)).shape == (3, 10)


def test_verify_reads_the_team_store_and_finds_what_is_lost_there(of_the_team: Team) -> None:
    assert verify(Path()).findings == []
    keys = [key for key in of_the_team.objects.read("runs") if key.endswith("/data/model.keras")]
    lost = of_the_team.objects.read("runs")[keys[0]]
    of_the_team.objects.client.delete_object(Bucket="runs", Key=keys[0])
    problems = [finding.problem for finding in verify(Path()).findings]
    of_the_team.objects.client.put_object(Bucket="runs", Key=keys[0], Body=lost)
    assert len(problems) == 1
    assert "model file" in problems[0]


def test_batches_and_outputs_go_through_the_team_remote(team: Team, tmp_path: Path) -> None:
    ann = team.members[0]
    images, labels = tiny.generate(20, seed=9)
    np.savez(tmp_path / "march.npz", images=images, labels=labels)
    ann.run(sys.executable, "-m", "pipeline.cli", "add-data", str(tmp_path / "march.npz"))
    ann.run("dvc", "remote", "add", "--default", "team", "s3://data/dvc")
    ann.commit("share")
    ann.run("dvc", "push", **team.environment)
    ann.run("git", "clone", "--quiet", str(ann.path), str(tmp_path / "clone"))
    clone = Project(tmp_path / "clone", tmp_path / "clone-home")
    clone.run("dvc", "pull", **team.environment)
    for name in ("data/incoming/march.npz", "data/splits/train.parquet", "models/model.keras"):
        assert file_digest(clone.path / name) == file_digest(ann.path / name)
    # The run that made the model is found, not rebuilt: the clone is on the team's record.
    synced = clone.run(sys.executable, "-m", "pipeline.cli", "sync", **team.environment).stdout
    assert "rebuilt" not in synced
    assert PASSWORD not in synced


def test_a_store_of_files_that_does_not_answer_is_an_error_in_words(
    of_the_team: Team, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    store = locate()
    client = open_store(store)
    run = client.search_runs([client.get_experiment_by_name("tiny").experiment_id])[0]
    with pytest.raises(TrackingError, match="MLFLOW_S3_ENDPOINT_URL"), explained(store):
        client.log_text(run.info.run_id, "x", "x.txt")


def test_no_secret_is_kept_anywhere(team: Team, make_database: Callable[..., str]) -> None:
    """Neither in what was printed, nor in the checkouts with their git history, nor in the two stores."""
    assert SECRET not in team.printed
    kept = {"printed": team.printed.encode()}
    for member in team.members:
        kept |= {str(path): path.read_bytes() for path in member.path.rglob("*") if path.is_file()}
        kept[f"git of {member.path}"] = member.run("git", "log", "--all", "--patch", "--text").stdout.encode()
    kept |= team.objects.read("runs") | team.objects.read("data")
    address = team.environment["MLFLOW_TRACKING_URI"].replace("+psycopg2", "")
    kept["database"] = subprocess.run(["pg_dump", address], capture_output=True, check=True).stdout
    assert b"model.sha256" in kept["database"]  # it is the store's
    assert {name for name, content in kept.items() if any(secret in content for secret in SECRETS)} == set()


def test_prefect_keeps_its_runs_in_postgresql(
    stand_ins: Project, make_database: Callable[..., str], tmp_path: Path
) -> None:
    database = make_database(NOTHING).replace("psycopg2", "asyncpg").replace("@", f":{PASSWORD}@")
    environment = {"PREFECT_SERVER_DATABASE_CONNECTION_URL": database}
    behave(stand_ins)
    stand_ins.set_params(**{"train.seed": 5})
    ran = stand_ins.run(sys.executable, "-m", "pipeline.cli", "run", **environment).stdout
    assert started_stages(stand_ins)
    assert PASSWORD not in ran
    query = ["psql", "--tuples-only", "--no-align", database.replace("+asyncpg", ""), "--command"]
    runs = subprocess.run([*query, "select name, state_type from task_run"], capture_output=True, text=True, check=True)
    assert sorted(line.split("|")[0] for line in runs.stdout.split()) == sorted(STAGES)
    assert {line.split("|")[1] for line in runs.stdout.split()} == {"COMPLETED"}
