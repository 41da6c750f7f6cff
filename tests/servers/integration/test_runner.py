"""The runner as a process of its own: ended, killed, and started again; batches that arrive while it works."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest

from pipeline.flows.deployed import NOTES
from tests import prefect_http
from tests.conftest import Project
from tests.e2e.servers import find_free_port
from tests.processes import processes_of, wait_until
from tests.retraining.integration.test_run import add_batch
from tests.stand_ins import behave, started_stages

pytestmark = [pytest.mark.faults, pytest.mark.xdist_group("prefect")]

Start = Callable[[], subprocess.Popen[str]]


@pytest.fixture
def start(stand_ins: Project, prefect_api: str) -> Iterator[Start]:
    """Starts the runner in the project, and waits until it serves. Its lines are in `runner.log`."""
    running: list[subprocess.Popen[str]] = []
    log = stand_ins.home / "runner.log"
    log.parent.mkdir(parents=True, exist_ok=True)

    def once() -> subprocess.Popen[str]:
        with log.open("w") as lines:
            running.append(
                subprocess.Popen(
                    ["python", "-m", "pipeline.process_lifetime", "pipeline.servers.runner"],
                    cwd=stand_ins.path,
                    env=stand_ins.environment
                    | {"PREFECT_API_URL": prefect_api, "STAND_INS": str(stand_ins.path)}
                    | {"PREFECT_RUNNER_SERVER_ENABLE": "true", "PREFECT_RUNNER_SERVER_PORT": str(find_free_port())},
                    stdin=subprocess.PIPE,
                    stdout=lines,
                    stderr=lines,
                    text=True,
                    start_new_session=True,
                )
            )
        wait_until(lambda: "serving " in log.read_text() or running[-1].poll() is not None)
        assert running[-1].poll() is None, log.read_text()
        return running[-1]

    yield once
    for process in running:
        for child in psutil.Process(process.pid).children(recursive=True) if process.poll() is None else ():
            child.kill()
        process.kill()
        process.wait()
    for deployment in prefect_http.post(f"{prefect_api}/deployments/filter", json={}).json():
        prefect_http.delete(f"{prefect_api}/deployments/{deployment['id']}")


def create(api: str, flow: str, **parameters: Any) -> str:
    deployment = prefect_http.get(f"{api}/deployments/name/{flow}/{flow}").json()["id"]
    answer = prefect_http.post(f"{api}/deployments/{deployment}/create_flow_run", json={"parameters": parameters})
    return str(answer.json()["id"])


def state_of(api: str, run: str) -> str:
    return str(prefect_http.get(f"{api}/flow_runs/{run}").json()["state_name"])


def retrainings(api: str) -> list[dict[str, Any]]:
    """The flow runs of `retrain`, the oldest first."""
    deployment = prefect_http.get(f"{api}/deployments/name/retrain/retrain").json()["id"]
    chosen = {"flow_runs": {"deployment_id": {"any_": [deployment]}}, "sort": "EXPECTED_START_TIME_ASC"}
    return list(prefect_http.post(f"{api}/flow_runs/filter", json=chosen).json())


def test_flow_runs_end_with_the_runner_however_it_ends_and_the_next_one_serves(
    start: Start, stand_ins: Project, prefect_api: str
) -> None:
    def begin_training() -> str:
        (stand_ins.path / "started.txt").unlink(missing_ok=True)
        run = create(prefect_api, "train", until="train", force="train")
        wait_until(lambda: started_stages(stand_ins) == ["train"])
        return run

    behave(stand_ins, train={"sleep": 300})
    runner = start()
    told = begin_training()
    listening = [one for one in psutil.Process(runner.pid).net_connections() if one.status == psutil.CONN_LISTEN]
    assert len(listening) == 1  # for the processes of its flow runs, which have a token; Prefect's server is off
    runner.terminate()
    assert runner.wait(60) == 0
    assert state_of(prefect_api, told) == "Cancelled"
    assert processes_of(stand_ins) == []

    runner = start()
    killed = begin_training()
    runner.send_signal(signal.SIGKILL)
    wait_until(lambda: processes_of(stand_ins) == [])
    assert state_of(prefect_api, killed) == "Crashed"

    runner = start()
    lost = begin_training()
    for process in [runner, *psutil.Process(runner.pid).children(recursive=True)]:  # as when the machine stops
        process.send_signal(signal.SIGKILL)
    runner.wait()
    assert state_of(prefect_api, lost) == "Running"
    start()
    assert state_of(prefect_api, lost) == "Crashed"
    assert list((stand_ins.path / NOTES).iterdir()) == []

    cancelled = begin_training()
    prefect_http.post(f"{prefect_api}/flow_runs/{cancelled}/set_state", json={"state": {"type": "CANCELLING"}})
    wait_until(lambda: state_of(prefect_api, cancelled) == "Cancelled")
    wait_until(lambda: not any("stage.py" in command for command in map(" ".join, processes_of(stand_ins))))

    behave(stand_ins)
    last = create(prefect_api, "train")
    wait_until(lambda: state_of(prefect_api, last) == "Completed")
    assert [branch for branch in os.listdir(stand_ins.path / ".pipeline/locks") if branch.endswith(".json")] == [
        "the-runner.json"
    ]


def test_batches_start_one_retraining_once_they_are_whole(start: Start, stand_ins: Project, prefect_api: str) -> None:
    def ended() -> list[tuple[str, str]]:
        final = [run for run in retrainings(prefect_api) if run["end_time"]]
        assert [run["name"] for run in final] == [run["parameters"]["reason"] for run in final]
        return [(run["state_name"], run["name"]) for run in final]

    add_batch(stand_ins, "before.npz", 1)
    start()
    wait_until(lambda: len(ended()) == 1)
    assert ended() == [("NotPromoted", "batches in data/incoming: before.npz")]  # stand-ins make no model
    half = add_batch(stand_ins, "later.npz", 2)
    whole = half.read_bytes()
    for part in range(1, 8):  # it arrives in pieces
        half.write_bytes(whole[: part * len(whole) // 8])
        time.sleep(1)
    half.write_bytes(whole)
    add_batch(stand_ins, "with-it.npz", 3)
    wait_until(lambda: len(ended()) == 2)
    assert ended()[1] == ("NotPromoted", "batches in data/incoming: later.npz, with-it.npz")
    made = stand_ins.run("git", "branch", "--list", "retrain/*").stdout.split()
    pointers = stand_ins.run("git", "ls-tree", "--name-only", made[-1], "data/incoming/").stdout.split()
    assert len(made) == 2
    assert pointers[-3:] == [f"data/incoming/{name}.npz.dvc" for name in ("before", "later", "with-it")]
    events = prefect_http.post(
        f"{prefect_api}/events/filter", json={"filter": {"event": {"name": ["pipeline.batch.arrived"]}}}
    ).json()["events"]
    assert [event["payload"]["names"] for event in reversed(events)] == [["before.npz"], ["later.npz", "with-it.npz"]]
    artifacts = prefect_http.post(f"{prefect_api}/artifacts/latest/filter", json={}).json()
    (batches,) = (json.loads(artifact["data"]) for artifact in artifacts if artifact["key"] == "batches")
    assert [(row["batch"], row["what happened"]) for row in batches[-2:]] == [
        ("later.npz", "taken in"),
        ("with-it.npz", "taken in"),
    ]


def test_a_retraining_by_hand_is_not_disturbed_by_one_that_is_due(
    start: Start, stand_ins: Project, prefect_api: str
) -> None:
    behave(stand_ins, train={"sleep": 300})
    start()
    by_hand = stand_ins.start(
        *("python", "-m", "pipeline.cli", "retrain", "--set", "train.seed=9"),
        PREFECT_API_URL=prefect_api,
        STAND_INS=str(stand_ins.path),
    )
    wait_until(lambda: started_stages(stand_ins) == ["train"])
    due = create(prefect_api, "retrain", reason="a schedule")
    going_on = ("Scheduled", "Late", "Pending", "Submitting", "Running")
    wait_until(lambda: state_of(prefect_api, due) not in going_on)
    assert state_of(prefect_api, due) == "Skipped"
    assert by_hand.poll() is None
    by_hand.terminate()
    by_hand.communicate()
