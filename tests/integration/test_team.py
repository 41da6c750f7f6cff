"""A team's stores: PostgreSQL and an S3-compatible store in place of the embedded ones, by the environment alone."""

import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline.files import file_digest
from tests.conftest import Project
from tests.integration.postgresql import NOTHING, running_postgresql
from tests.integration.s3 import SECRET, ObjectStore, running_s3

pytestmark = pytest.mark.faults

PASSWORD = "pa55word-of-the-database"
TOKEN = "t0ken-of-a-channel"
SECRETS = (SECRET, PASSWORD, TOKEN)


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
def team(template: Project, make_database: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    with running_s3() as objects:
        environment = objects.environment | {
            "MLFLOW_TRACKING_URI": make_database(NOTHING).replace("@", f":{PASSWORD}@"),
            "MLFLOW_DEFAULT_ARTIFACT_ROOT": f"{objects.make_bucket('mlflow')}/artifacts",
            "MLFLOW_S3_ENDPOINT_URL": objects.endpoint,
            "PIPELINE_NOTIFY_URLS": f"json://127.0.0.1:1/{TOKEN}",
        }
        objects.make_bucket("data")
        root = tmp_path_factory.mktemp("team")
        members = template.copy_to(root / "ann"), template.copy_to(root / "ben")
        for seed, member in enumerate(members, start=1):
            member.set_params(**{"train.seed": seed})
        trainings = [member.start("dvc", "repro", **environment) for member in members]
        outputs = [training.communicate()[0] for training in trainings]
        assert [training.returncode for training in trainings] == [0, 0], "\n".join(outputs)
        yield Team(members, objects, environment, "".join(outputs))


def test_x(team: Team) -> None:
    print(team.printed)
    raise AssertionError
