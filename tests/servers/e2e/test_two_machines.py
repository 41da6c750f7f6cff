"""Two machines, each with a clone and a runner of its own, on one PostgreSQL for MLflow and for Prefect."""

import signal
from pathlib import Path

import httpx
import pytest

from pipeline.flows.deployed import NOTES
from pipeline.flows.prefect_server import SERVER_SETTINGS
from tests import prefect_http
from tests.conftest import Project
from tests.e2e import light
from tests.e2e.kills import lost_of, processes_of
from tests.e2e.servers import find_free_port
from tests.integration.postgresql import NOTHING, running_postgresql
from tests.processes import WAIT_SECONDS, wait_until

pytestmark = pytest.mark.faults

AUTH = "admin:a-secret-for-prefect"
FINAL = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}


def answers(url: str) -> bool:
    try:
        return httpx.get(url).is_success
    except httpx.TransportError:
        return False


def test_retrainings_of_two_machines_take_turns_and_lose_nothing(tmp_path: Path) -> None:
    one = light.build(tmp_path / "one", tmp_path / "one-home")
    one.set_params(**{"retrain.if_busy": "wait"})
    one.commit("wait for one another")
    one.run("git", "clone", "--quiet", str(one.path), str(tmp_path / "two"))
    two = Project(tmp_path / "two", tmp_path / "two-home")
    two.home.mkdir()
    with running_postgresql() as make_database:
        port = find_free_port()
        api = f"http://127.0.0.1:{port}/api"
        own = SERVER_SETTINGS | {
            "PREFECT_SERVER_API_AUTH_STRING": AUTH,
            "PREFECT_API_DATABASE_CONNECTION_URL": make_database(NOTHING).replace("psycopg2", "asyncpg"),
        }
        stores = {
            "MLFLOW_TRACKING_URI": make_database(),
            "MLFLOW_DEFAULT_ARTIFACT_ROOT": (tmp_path / "files").as_uri(),
            "PREFECT_API_URL": api,
            "PREFECT_API_AUTH_STRING": AUTH,
        }
        server = one.start("python", "-m", "pipeline.flows.prefect_server", "127.0.0.1", str(port), **own)
        machines = []
        try:
            wait_until(lambda: answers(f"{api}/health"))
            machines = [machine.start("python", "-m", "pipeline.servers.runner", **stores) for machine in (one, two)]
            for machine in machines:  # each serves when it says so
                assert machine.stdout
                assert any("serving monitor-data, retrain, train" in line for line in machine.stdout)
            deployment = prefect_http.get(f"{api}/deployments/name/retrain/retrain", auth=AUTH).json()["id"]

            def retrain(model: int) -> str:
                content = {"parameters": {"changes": {"train.seed": model}, "reason": "a test"}}
                return str(
                    prefect_http.post(
                        f"{api}/deployments/{deployment}/create_flow_run", json=content, auth=AUTH
                    ).json()["id"]
                )

            def worker(run: str) -> list[int]:
                """The place of the machine that works on a flow run, if one does."""
                return [place for place, at in enumerate((one, two)) if (at.path / NOTES / f"{run}.json").exists()]

            runs = [retrain(2)]
            wait_until(lambda: worker(runs[0]))
            (busy,) = worker(runs[0])
            machines[busy].send_signal(signal.SIGSTOP)  # it takes nothing more: the other machine has to
            runs.append(retrain(3))
            wait_until(
                lambda: all(
                    prefect_http.get(f"{api}/flow_runs/{run}", auth=AUTH).json()["state"]["type"] in FINAL
                    for run in runs
                )
            )
            workers = [busy, *worker(runs[1])]
            ended = [prefect_http.get(f"{api}/flow_runs/{run}", auth=AUTH).json() for run in runs]
        finally:
            outputs = []
            for process in (*machines, server):
                process.send_signal(signal.SIGCONT)
                process.send_signal(signal.SIGTERM)
                outputs.append(process.communicate(timeout=WAIT_SECONDS)[0])
        assert [run["state"]["type"] for run in ended] == ["COMPLETED"] * 2, "\n".join(outputs)
        first, second = ended
        assert sorted(workers) == [0, 1]
        assert first["end_time"] <= second["start_time"]
        assert lost_of(one, [2, 3], **stores) == []
    assert [*processes_of(one), *processes_of(two)] == []
