"""The training flow on stand-in stages: real DVC, a real Prefect server, a real MLflow store."""

import contextlib
import json
import os
import signal
import sqlite3
import stat
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import httpx
import psutil
import pytest
import yaml

from pipeline.errors import FlowError, WorkspaceError
from pipeline.flows.prefect_server import TemporaryServer
from pipeline.flows.run import IfBusy, run_training
from pipeline.workspace import lock, project_name
from tests.conftest import CLOSED_PROXY, STAGES, Project
from tests.processes import processes_of, wait_until, wait_until_idle
from tests.stand_ins import behave, started_stages

pytestmark = pytest.mark.xdist_group("prefect")

Run = Callable[..., None]


@pytest.fixture
def run(stand_ins: Project, prefect_api: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """Runs the flow in the project, in this process."""
    monkeypatch.chdir(stand_ins.path)
    for name in ("DVC_ROOT", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PREFECT_API_URL", prefect_api)
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(stand_ins.home / "dvc"))

    def start(until: str | None = None, force: str | None = None, if_busy: IfBusy = "leave") -> None:
        run_training(stand_ins.path, until=until, force=force, if_busy=if_busy)

    return start


def states() -> dict[str, str]:
    """The state in which the flow's last run ended, under `flow`, and that of each of its tasks."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
    from prefect.client.schemas.sorting import FlowRunSort, TaskRunSort

    with get_client(sync_client=True) as client:
        flow = client.read_flow_runs(sort=FlowRunSort.START_TIME_DESC, limit=1)[0]
        chosen = FlowRunFilter(id=FlowRunFilterId(any_=[flow.id]))
        deadline = time.monotonic() + 20
        while True:  # the server records tasks from events, a moment later
            found = client.read_task_runs(flow_run_filter=chosen, sort=TaskRunSort.ID_DESC, limit=50)
            tasks = {run.name: str(run.state_name) for run in found}
            if time.monotonic() > deadline or not {"Running", "Pending"} & set(tasks.values()):
                return {"flow": str(flow.state_name), **{name: tasks[name] for name in STAGES if name in tasks}}
            time.sleep(0.1)


def records(project: Project) -> tuple[str, dict[str, str]]:
    """Status and tags of the newest run in the project's MLflow store."""
    with contextlib.closing(sqlite3.connect(project.path / "mlflow.db")) as store:
        newest, status = store.execute("SELECT run_uuid, status FROM runs ORDER BY start_time DESC LIMIT 1").fetchone()
        return status, dict(store.execute("SELECT key, value FROM tags WHERE run_uuid = ?", [newest]))


def outcomes(project: Project) -> list[str]:
    """What the flow's MLflow run says of each stage."""
    return [records(project)[1][f"stage.{name}"] for name in STAGES]


def test_nothing_changed_starts_no_stage(run: Run, stand_ins: Project) -> None:
    run()
    assert states() == {"flow": "Completed", **dict.fromkeys(STAGES, "Unchanged")}
    assert started_stages(stand_ins) == []
    assert records(stand_ins)[0] == "FINISHED"
    assert outcomes(stand_ins) == ["unchanged"] * 6


def test_a_change_runs_what_it_concerns_and_its_reversal_restores_it(
    run: Run, stand_ins: Project, capfd: pytest.CaptureFixture[str]
) -> None:
    stand_ins.set_params(**{"train.seed": 9})
    run()
    assert list(states().values()) == ["Completed", *["Unchanged"] * 3, *["Completed"] * 3]
    assert started_stages(stand_ins) == ["train", "evaluate", "register"]
    assert "this is train" in capfd.readouterr().out
    stand_ins.run("git", "checkout", "--quiet", "params.yaml")
    run()
    assert list(states().values()) == ["Completed", *["Unchanged"] * 3, *["Restored"] * 3]
    assert started_stages(stand_ins) == ["train", "evaluate", "register"]
    assert outcomes(stand_ins) == ["unchanged"] * 3 + ["restored"] * 3
    assert stand_ins.run("dvc", "status").stdout.strip() == "Data and pipelines are up to date."


def test_a_forced_stage_runs_and_dvc_decides_about_the_rest(run: Run, stand_ins: Project) -> None:
    run(force="split", until="train")
    assert started_stages(stand_ins) == ["split"]
    assert states() == {
        "flow": "Completed",
        **{"ingest": "Unchanged", "validate": "Unchanged", "split": "Completed", "train": "Unchanged"},
    }


def test_forcing_all_runs_every_stage(run: Run, stand_ins: Project) -> None:
    run(force="all", until="split")
    assert started_stages(stand_ins) == ["ingest", "validate", "split"]


def test_a_failed_stage_stops_what_is_behind_it(run: Run, stand_ins: Project) -> None:
    stand_ins.set_params(**{"split.seed": 9})
    behave(stand_ins, split={"exit": [1, 1, 1]})
    with pytest.raises(FlowError, match="split failed; not run: train, evaluate, register"):
        run()
    assert started_stages(stand_ins) == ["split"]
    ended = states()
    assert ended["flow"] == ended["split"] == "Failed"
    assert [ended[name] for name in ("train", "evaluate", "register")] == ["NotReady"] * 3
    assert records(stand_ins)[0] == "FAILED"
    assert outcomes(stand_ins) == ["unchanged"] * 2 + ["failed"] + ["not reached"] * 3


def test_what_did_not_answer_is_tried_again(run: Run, stand_ins: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    import pipeline.flows.prefect_flow

    monkeypatch.setattr(pipeline.flows.prefect_flow, "RETRY_SECONDS", [0.1, 0.1])
    behave(stand_ins, ingest={"exit": [75]})
    run(force="ingest", until="ingest")
    assert started_stages(stand_ins) == ["ingest", "ingest"]
    assert states() == {"flow": "Completed", "ingest": "Completed"}


def test_a_forced_run_that_is_restarted_does_not_repeat_finished_stages(
    run: Run, stand_ins: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pipeline.flows.prefect_flow

    monkeypatch.setattr(pipeline.flows.prefect_flow, "RETRY_SECONDS", [0.1, 0.1])
    behave(stand_ins, split={"exit": [75]})
    run(force="all", until="train")
    assert started_stages(stand_ins) == ["ingest", "validate", "split", "split", "train"]
    assert set(states().values()) == {"Completed"}


def test_stages_that_do_not_depend_on_a_failed_one_run(run: Run, stand_ins: Project) -> None:
    file = stand_ins.path / "dvc.yaml"
    definition = yaml.safe_load(file.read_text())
    definition["stages"]["split"] |= {"deps": ["out/ingest.txt"], "cmd": "python stage.py split out/ingest.txt"}
    file.write_text(yaml.safe_dump(definition, sort_keys=False))
    behave(stand_ins, validate={"exit": [1]})
    with pytest.raises(FlowError, match="validate failed; not run: none"):
        run(force="all")
    assert sorted(started_stages(stand_ins)) == sorted(STAGES)


def test_a_dvc_that_is_killed_fails_the_stage_and_the_next_run_continues(run: Run, stand_ins: Project) -> None:
    stand_ins.set_params(**{"split.seed": 9})
    behave(stand_ins, split={"sleep": 3})  # unlike a real stage, it does not end with DVC

    def kill_dvc() -> None:
        wait_until(lambda: "split" in started_stages(stand_ins))
        for process in psutil.Process().children():
            if "pipeline.flows.dvc_process" in process.cmdline():
                process.kill()

    with ThreadPoolExecutor(1) as other:
        killing = other.submit(kill_dvc)
        with pytest.raises(FlowError, match="split failed"):
            run(force="all", until="split")
        killing.result()
    wait_until_idle(stand_ins)
    behave(stand_ins)
    run(until="split")
    assert started_stages(stand_ins) == ["ingest", "validate", "split", "split"]


def test_a_stage_that_does_not_exist_is_refused(run: Run, stand_ins: Project) -> None:
    with pytest.raises(FlowError, match="no stage 'trian'"):
        run(until="trian")
    with pytest.raises(FlowError, match="no stage 'trian'"):
        run(force="trian")
    with pytest.raises(FlowError, match="ends before train"):
        run(until="split", force="train")
    assert started_stages(stand_ins) == []


def test_pages_with_the_result_are_left_with_prefect(run: Run, prefect_api: str) -> None:
    run()
    latest = httpx.post(f"{prefect_api}/artifacts/latest/filter", json={}).json()
    pages = {artifact["key"]: artifact["data"] for artifact in latest}
    rows = {row["stage"]: row for row in json.loads(pages["stages"])}
    assert list(rows) == list(STAGES)
    assert rows["train"]["result"] == "validation accuracy 50.00% in epoch 1"
    assert all(rows["train"])  # Prefect hides a column without a name
    assert pages["evaluation"] == "# Evaluation"
    assert all(
        artifact["description"] for artifact in latest if artifact["key"] in ("stages", "decision", "evaluation")
    )
    (started,) = httpx.post(f"{prefect_api}/flow_runs/filter", json={"sort": "START_TIME_DESC", "limit": 1}).json()
    assert started["name"].endswith(": pipeline run")
    assert {project_name(), started["name"].partition(":")[0]} == set(started["tags"])


def test_an_unreachable_server_is_named_and_nothing_starts(stand_ins: Project) -> None:
    stand_ins.set_params(**{"train.seed": 9})
    api = "http://team:pa55word@127.0.0.1:9/api"
    result = stand_ins.run("python", "-m", "pipeline.cli", "run", check=False, PREFECT_API_URL=api)
    assert result.returncode == 1
    assert "the Prefect server at http://team:***@127.0.0.1:9/api does not answer" in result.stdout
    assert "pa55word" not in result.stdout
    assert "Traceback" not in result.stdout
    assert started_stages(stand_ins) == []


@pytest.mark.parametrize(
    ("number", "code", "state", "status"),
    [(signal.SIGINT, 130, "Cancelled", "KILLED"), (signal.SIGTERM, 143, "Crashed", "KILLED")],
)
def test_a_run_that_is_stopped_leaves_no_process(
    stand_ins: Project, prefect_api: str, number: int, code: int, state: str, status: str
) -> None:
    behave(stand_ins, train={"sleep": 60})
    running = stand_ins.start("python", "-m", "pipeline.cli", "run", "--force", "train", PREFECT_API_URL=prefect_api)
    wait_until(lambda: started_stages(stand_ins) == ["train"])
    if number == signal.SIGINT:
        os.killpg(running.pid, number)  # as a terminal does
    else:
        os.kill(running.pid, number)
    output, _ = running.communicate(timeout=60)
    assert running.returncode == code, output
    assert "Traceback" not in output
    assert processes_of(stand_ins) == []
    assert states()["flow"] == state
    assert records(stand_ins)[0] == status


def test_under_nohup_a_run_outlives_its_terminal(stand_ins: Project, prefect_api: str) -> None:
    behave(stand_ins, ingest={"sleep": 2})
    command = ("nohup", "python", "-m", "pipeline.cli", "run", "--force", "ingest")
    running = stand_ins.start(*command, PREFECT_API_URL=prefect_api)
    wait_until(lambda: started_stages(stand_ins) == ["ingest"])
    os.kill(running.pid, signal.SIGHUP)
    output, _ = running.communicate(timeout=60)
    assert running.returncode == 0, output
    assert states()["ingest"] == "Completed"


def test_a_second_run_leaves_while_one_is_going(run: Run, stand_ins: Project) -> None:
    with lock("the flow", wait=0, remedy=""), pytest.raises(WorkspaceError, match=f"process {os.getpid()}") as refused:
        run(force="all")
    assert "pipeline run --if-busy wait" in refused.value.remedy
    assert started_stages(stand_ins) == []


def test_a_second_run_waits_if_told_to(run: Run, stand_ins: Project, capfd: pytest.CaptureFixture[str]) -> None:
    is_held = threading.Event()

    def hold_until_waited_for() -> None:
        with lock("the flow", wait=0, remedy=""):
            is_held.set()
            wait_until(lambda: "waiting for another run: process" in capfd.readouterr().out)

    with ThreadPoolExecutor(1) as other:
        first = other.submit(hold_until_waited_for)
        is_held.wait()
        run(force="ingest", until="ingest", if_busy="wait")
        first.result()
    assert started_stages(stand_ins) == ["ingest"]


def test_without_a_server_a_temporary_one_serves_the_run(stand_ins: Project) -> None:
    behave(stand_ins)
    result = stand_ins.run("python", "-m", "pipeline.cli", "run", "--force", "ingest", **CLOSED_PROXY)
    assert "ingest" in result.stdout
    assert processes_of(stand_ins) == []
    with contextlib.closing(sqlite3.connect(Path(stand_ins.home) / "prefect" / "prefect.db")) as database:
        tasks = dict(database.execute("SELECT name, state_name FROM task_run"))
        logged = {message for (message,) in database.execute("SELECT message FROM log")}
    assert tasks == {"ingest": "Completed", **dict.fromkeys(STAGES[1:], "Unchanged")}
    assert "this is ingest" in logged
    private = {stand_ins.home / "prefect/prefect.db": 0o600, stand_ins.path / ".pipeline/prefect-server.log": 0o600}
    for path, mode in {**private, stand_ins.home / "prefect": 0o700, stand_ins.path / ".pipeline": 0o700}.items():
        assert stat.S_IMODE(path.stat().st_mode) == mode, path
    assert stat.S_IMODE((stand_ins.path / "out/ingest.txt").stat().st_mode) & 0o044  # what a team shares stays so


def test_the_temporary_server_lets_nobody_in_but_its_run(stand_ins: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(stand_ins.home / "prefect"))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    with TemporaryServer(stand_ins.path) as server:
        server._wait()
        ask = partial(httpx.post, f"{server.url}/deployments/filter", json={})
        assert ask().status_code == 401
        known = partial(ask, auth=httpx.BasicAuth(*server.auth.split(":")))
        assert known().status_code == 200
        for foreign in ({"Origin": "https://evil.example"}, {"Host": "evil.example"}):
            assert known(headers=foreign).status_code == 403
        assert server.auth.split(":")[1] not in " ".join(psutil.Process(server.process.pid).cmdline())
        assert server.auth.split(":")[1] not in server.log.read_text()
