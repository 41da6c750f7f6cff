"""A webhook of MLflow's server, created with the commands of docs/serving.md, reaches the server of predictions."""

import json
import re
from pathlib import Path

import pytest

from pipeline.serving.keys import KEY_FILE
from tests.conftest import Project
from tests.documentation import read_blocks
from tests.e2e.servers import serve
from tests.processes import wait_until

pytest.importorskip("pipeline.servers", reason="MLflow's server is of the room servers")
pytestmark = [pytest.mark.faults, pytest.mark.xdist_group("serving-page")]

REFRESH = Path(".pipeline/serving/refresh")


def test_a_move_of_the_champion_is_delivered(trained: Project, tmp_path: Path) -> None:
    (exports,) = read_blocks("docs/serving.md", "Webhooks")
    allowed = re.findall(r"^export (MLFLOW_WEBHOOK_ALLOW\w+=\w+)$", exports, re.MULTILINE)
    assert len(allowed) == len(exports.splitlines())
    (script,) = read_blocks("docs/serving.md", "Webhooks", "python")
    mlflow = ("env", *allowed, "python", "-m", "pipeline.cli", "ui")
    with (
        serve(trained, *mlflow, log=tmp_path / "mlflow.log") as registry,
        serve(
            trained, "env", f"MLFLOW_TRACKING_URI={registry}", "python", "-m", "pipeline.cli", "serve",
            log=tmp_path / "serve.log", health="/health/ready",
        ) as address,
    ):  # fmt: skip
        assert (trained.path / KEY_FILE).exists()
        trained.run("python", "-c", script.replace("http://127.0.0.1:5002", address), MLFLOW_TRACKING_URI=registry)
        promote = "import mlflow; mlflow.MlflowClient().set_registered_model_alias('tiny', 'champion', '1')"
        trained.run("python", "-c", promote, MLFLOW_TRACKING_URI=registry)
        wait_until((trained.path / REFRESH).exists, explain=(tmp_path / "mlflow.log").read_text)
        access = [json.loads(line) for path in trained.path.glob(".pipeline/serving/access-*") for line in path.open()]
    assert [line["status"] for line in access if line["path"] == "/v1/refresh"] == [200]
