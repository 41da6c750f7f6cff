"""Deployments and their schedules on a real Prefect server: what is shown, refused, kept, skipped and mended."""

import asyncio
import json
import os
import shlex
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import httpx
import pytest
from typer.testing import CliRunner

from pipeline.cli.__main__ import app
from pipeline.data.traffic import TRAFFIC
from pipeline.errors import FlowError, ParamsError
from pipeline.flows.deployed import NOTES
from pipeline.notices.send import URLS_VARIABLE
from pipeline.servers import schedules
from pipeline.workspace import project_name
from tests import prefect_http
from tests.conftest import STAGES, Project
from tests.documentation import read_blocks
from tests.retraining.integration.test_run import add_batch, spoil
from tests.stand_ins import behave, started_stages
from tests.webhook import Endpoint, webhook

pytestmark = pytest.mark.xdist_group("prefect")

GONE = "its process was killed, or its machine stopped"


@pytest.fixture
def served(stand_ins: Project, prefect_api: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[UUID, str]]:
    """The deployments as the runner registers them, by their id, with nothing of an earlier test left."""
    monkeypatch.chdir(stand_ins.path)
    for name in ("DVC_ROOT", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PREFECT_API_URL", prefect_api)
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(stand_ins.home / "dvc"))
    found = register()
    yield found
    for deployment in found:
        prefect_http.delete(f"{prefect_api}/deployments/{deployment}").raise_for_status()


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    """Where notices go."""
    with webhook() as endpoint:
        monkeypatch.setenv(URLS_VARIABLE, f"json://{endpoint.address}")
        yield endpoint


def register() -> dict[UUID, str]:
    from pipeline.servers.runner_loop import deployments

    return {deployment.apply(): deployment.name for deployment in deployments("leave")}


def test_a_schedule_is_kept_until_it_is_removed(served: dict[UUID, str], stand_ins: Project) -> None:
    assert schedules.list_schedules(stand_ins.path) == []
    schedules.set_schedule(stand_ins.path, "retrain", "0 4 * * *", "UTC")
    schedules.set_schedule(stand_ins.path, "retrain", "0 3 * * *", "Europe/Berlin")
    schedules.set_schedule(stand_ins.path, "train", "30 * * * *", "UTC")
    schedules.activate(stand_ins.path, "retrain", False)
    assert register() == served  # what a restart of the runner does
    kept = {one.flow: (one.rule, one.timezone, one.active) for one in schedules.list_schedules(stand_ins.path)}
    assert kept == {
        "retrain": ("0 3 * * *", "Europe/Berlin", False),
        "train": ("30 * * * *", "UTC", True),
    }
    (resumed,) = schedules.activate(stand_ins.path, "retrain", True)
    assert resumed.active
    assert resumed.next  # though no scheduler works here that has planned it
    assert (resumed.next.hour, resumed.next.minute, str(resumed.next.tzinfo)) == (3, 0, "Europe/Berlin")
    schedules.remove(stand_ins.path, "retrain")
    assert [one.flow for one in schedules.list_schedules(stand_ins.path)] == ["train"]
    with pytest.raises(FlowError, match="retrain has no schedule"):
        schedules.activate(stand_ins.path, "retrain", True)


def test_the_commands_of_the_page_work(served: dict[UUID, str], stand_ins: Project) -> None:
    lines = "".join(read_blocks("docs/schedules.md")).splitlines()
    for line in lines:
        told = CliRunner().invoke(app, shlex.split(line, comments=True)[1:])
        assert told.exit_code == 0, told.output
        if "pause" in line:
            kept = {one.flow: (one.rule, one.active) for one in schedules.list_schedules(stand_ins.path)}
            assert kept == {"retrain": ("0 3 * * *", True), "monitor-data": ("30 * * * *", False)}
    assert [one.flow for one in schedules.list_schedules(stand_ins.path)] == ["retrain"]


def test_what_is_no_time_is_refused_in_words_and_changes_nothing(served: dict[UUID, str], stand_ins: Project) -> None:
    schedules.set_schedule(stand_ins.path, "train", "0 3 * * *", "UTC")
    for cron, zone, words in [("0 3 * *", "UTC", "not a cron rule"), ("0 3 * * *", "Berlin", "no time zone 'Berlin'")]:
        with pytest.raises(ParamsError, match=words):
            schedules.set_schedule(stand_ins.path, "train", cron, zone)
    listed = CliRunner().invoke(app, ["schedule", "list", "--json"])
    assert [(one["flow"], one["rule"]) for one in json.loads(listed.output)] == [("train", "0 3 * * *")]


def test_without_the_stack_the_reader_is_told_to_start_it(
    stand_ins: Project, prefect_api: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", prefect_api)
    with pytest.raises(FlowError, match="remedy: +pipeline up"):
        schedules.list_schedules(stand_ins.path)  # a server that has never seen the runner
    told = stand_ins.run("python", "-m", "pipeline.cli", "schedule", "list", check=False)
    assert told.returncode == 1
    assert "no Prefect server is up" in told.stdout
    assert "pipeline up" in told.stdout


def test_prefects_pages_describe_the_parameters_and_refuse_wrong_ones(
    served: dict[UUID, str], prefect_api: str
) -> None:
    def create(flow: str, **parameters: Any) -> httpx.Response:
        deployment = next(key for key, name in served.items() if name == flow)
        return prefect_http.post(
            f"{prefect_api}/deployments/{deployment}/create_flow_run", json={"parameters": parameters}
        )

    for deployment in served:
        found = prefect_http.get(f"{prefect_api}/deployments/{deployment}").json()
        assert "Started by" in found["description"]
        assert found["tags"] == [project_name()]
        assert all(parameter["description"] for parameter in found["parameter_openapi_schema"]["properties"].values())
    assert create("train", until="split", force="all").is_success
    assert create("retrain", ref="main", changes={"train.preset": "cnn"}, reason="a test").is_success
    for flow, wrong in [("train", {"until": "nowhere"}), ("retrain", {"changes": "cnn"})]:
        refused = create(flow, **wrong)
        assert refused.status_code == 409
        assert next(iter(wrong)) in refused.text


def test_of_the_missed_runs_one_is_made_up_for(served: dict[UUID, str], stand_ins: Project, prefect_api: str) -> None:
    from prefect.client.orchestration import get_client

    from pipeline.servers.flow_run_cleanup import skip_missed

    now = datetime.now(UTC)
    hourly = f"{(now - timedelta(minutes=30)).minute} * * * *"
    for flow in ("retrain", "monitor-data"):
        schedules.set_schedule(stand_ins.path, flow, hourly, "UTC")  # type: ignore[arg-type]
        deployment = next(key for key, name in served.items() if name == flow)
        span = {"start_time": str(now - timedelta(hours=10)), "end_time": str(now + timedelta(hours=2)), "min_runs": 12}
        answer = prefect_http.post(f"{prefect_api}/deployments/{deployment}/schedule", json=span)
        assert answer.is_success, answer.text
    by_hand = prefect_http.post(f"{prefect_api}/deployments/{deployment}/create_flow_run", json={}).json()["id"]

    async def skip() -> None:
        async with get_client() as client:
            await skip_missed(client, served)
            await skip_missed(client, served)

    asyncio.run(skip())
    for deployment in [key for key, name in served.items() if name != "train"]:
        runs = runs_of(prefect_api, deployment)
        assert runs.pop(by_hand, {"state_name": "Scheduled"})["state_name"] == "Scheduled"
        past = [run for run in runs.values() if datetime.fromisoformat(run["expected_start_time"]) < now]
        *missed, latest = sorted(past, key=lambda run: str(run["expected_start_time"]))
        assert len(missed) == 9
        assert {run["state_name"] for run in missed} == {"Skipped"}
        assert "only the latest missed run" in missed[0]["state"]["message"]
        later = [run["state_name"] for run in runs.values() if run not in past]
        assert [latest["state_name"], *later] == ["Scheduled"] * 3


def test_a_run_whose_process_is_gone_is_marked_as_crashed_and_told_of_and_its_slot_is_freed(
    served: dict[UUID, str], stand_ins: Project, prefect_api: str, told: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect.client.orchestration import get_client

    from pipeline.servers import flow_run_cleanup

    retrain = next(key for key, name in served.items() if name == "retrain")

    def propose(state: str, run: str) -> str:
        answer = prefect_http.post(f"{prefect_api}/flow_runs/{run}/set_state", json={"state": {"type": state}}).json()
        return str(answer["state"]["type"])

    def create() -> str:
        return str(prefect_http.post(f"{prefect_api}/deployments/{retrain}/create_flow_run", json={}).json()["id"])

    def clean_up() -> None:
        async def once() -> None:
            async with get_client() as client:
                await flow_run_cleanup.clean_up(client, stand_ins.path, served)

        asyncio.run(once())

    noted, second, pending = create(), create(), create()
    assert propose("PENDING", noted) == "PENDING"
    assert propose("RUNNING", noted) == "RUNNING"
    assert propose("PENDING", second) == "CANCELLED"  # one at a time
    note = stand_ins.path / NOTES / f"{noted}.json"
    note.parent.mkdir(parents=True)
    gone = json.dumps({"pid": os.getpid(), "started": 1.0})  # a number that another process has now
    note.write_text(gone)
    clean_up()
    assert runs_of(prefect_api, retrain)[noted]["state_name"] == "Crashed"
    assert not note.exists()
    assert told.told == [("failure", f"retrain failed: {GONE}")]
    clean_up()
    assert len(told.taken) == 1
    note.write_text(gone)  # Prefect's runner has marked it before we come to look
    clean_up()
    assert told.told == [("failure", f"retrain failed: {GONE}")] * 2
    (stand_ins.path / NOTES / f"{second}.json").write_text(gone)
    clean_up()  # cancelled, and not crashed
    assert len(told.taken) == 2
    assert propose("PENDING", pending) == "PENDING"  # the slot is free again
    clean_up()
    assert runs_of(prefect_api, retrain)[pending]["state_name"] == "Pending"  # its process may be about to begin
    monkeypatch.setattr(flow_run_cleanup, "LONGEST_PENDING", timedelta(0))
    clean_up()
    assert runs_of(prefect_api, retrain)[pending]["state_name"] == "Crashed"
    assert [title for _, title in told.told[2:]] == ["retrain failed: its process never started"]
    limit = prefect_http.get(f"{prefect_api}/deployments/{retrain}").json()["global_concurrency_limit"]["name"]
    prefect_http.patch(f"{prefect_api}/v2/concurrency_limits/{limit}", json={"active_slots": 1}).raise_for_status()
    clean_up()  # a server that crashed has forgotten who holds it
    assert propose("PENDING", create()) == "PENDING"


def test_a_batchs_retraining_is_asked_for_until_this_clone_had_it(
    served: dict[UUID, str], stand_ins: Project, prefect_api: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect.client.orchestration import get_client

    from pipeline.retraining.report import Outcome, Retraining, append_to_log
    from pipeline.servers import batch_trigger

    deployment = next(key for key, name in served.items() if name == "retrain")
    for name in ("RETRY_SECONDS", "BUSY_SECONDS"):
        monkeypatch.setattr(batch_trigger, name, 0.1)
    asked = 0

    async def end_next(kind: str, name: str, message: str = "", logged: Outcome | None = None) -> None:
        """Do to the flow run that was asked for what a runner does, of this machine or another."""
        nonlocal asked
        asked += 1
        async with asyncio.timeout(30):
            while len(runs := runs_of(prefect_api, deployment)) < asked:
                await asyncio.sleep(0.1)
        (run,) = [run for run, content in runs.items() if content["state_type"] == "SCHEDULED"]
        if logged:  # as a retraining in this clone does
            append_to_log(stand_ins.path, Retraining(logged, "for some reason"), "batches: march")
        end = {"state": {"type": kind, "name": name, "message": message}, "force": True}
        prefect_http.post(f"{prefect_api}/flow_runs/{run}/set_state", json=end).raise_for_status()

    async def retrain(*ends: dict[str, Any]) -> None:
        async with get_client() as client:
            retraining = asyncio.create_task(batch_trigger.retrain_until_done(client, stand_ins.path, "batches: march"))
            for end in ends:
                await end_next(**end)
            await asyncio.wait_for(retraining, 30)

    elsewhere, crashed = {"kind": "COMPLETED", "name": "NothingNew"}, {"kind": "CRASHED", "name": "Crashed"}
    skipped = {"kind": "COMPLETED", "name": "Skipped", "logged": "skipped"}
    no_slot = {"kind": "CANCELLED", "name": "Cancelled", "message": batch_trigger.NO_SLOT}
    here = {"kind": "FAILED", "name": "Failed", "logged": "failed"}  # the next retraining's turn
    asyncio.run(retrain(elsewhere, crashed, skipped, no_slot, here))
    asyncio.run(retrain(*[crashed] * batch_trigger.MOST_LOST))
    asyncio.run(retrain({"kind": "CANCELLED", "name": "Cancelled"}))  # by somebody
    assert len(runs_of(prefect_api, deployment)) == asked == 5 + batch_trigger.MOST_LOST + 1


def test_a_deployed_training_has_the_stages_as_its_tasks_and_ends_in_words(
    served: dict[UUID, str], stand_ins: Project, told: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.flows.summary import Summary
    from pipeline.servers import train_flow
    from pipeline.servers.train_flow import train
    from tests.integration.test_flow import states

    ended: list[Summary] = []
    monkeypatch.setattr(train_flow, "notify_of_run", ended.append)
    assert train(until="train", force="split", return_state=True).is_completed()
    assert states() == {
        "flow": "Completed",
        **{"ingest": "Unchanged", "validate": "Unchanged", "split": "Completed", "train": "Unchanged"},
    }
    assert started_stages(stand_ins) == ["split"]
    assert [result.outcome for summary in ended for result in summary.stages] == [
        "unchanged", "unchanged", "ran", "unchanged"
    ]  # fmt: skip
    behave(stand_ins, train={"exit": [1, 1]})
    state = train(force="train", return_state=True)
    assert state.is_failed()
    assert "train failed; not run: evaluate, register" in str(state.message)
    assert len(ended) == 1  # the failure is told of as such
    assert [kind for kind, _ in told.told] == ["failure"]
    assert told.taken[0]["message"] == state.message
    assert states()["flow"] == "Failed"
    assert set(states()) <= {"flow", *STAGES}


def test_a_deployed_retraining_tells_of_the_batch_it_leaves_out_and_of_its_failure(
    served: dict[UUID, str], stand_ins: Project, told: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.retraining.flow import retrain

    monkeypatch.setenv("STAND_INS", str(stand_ins.path))
    spoil(add_batch(stand_ins, "spoilt.npz", 1))
    behave(stand_ins, train={"exit": [1, 1]})
    state = retrain(changes={"train.seed": 9}, return_state=True)
    assert state.is_failed()
    quarantined, failed = told.taken
    assert (quarantined["type"], quarantined["title"]) == ("warning", "batch spoilt.npz is quarantined")
    assert "spoilt.npz" in quarantined["message"]
    assert (failed["type"], failed["message"]) == ("failure", state.message)
    assert failed["title"].startswith("retrain failed: ")
    assert "train failed" in failed["message"]


def test_what_is_done_while_another_retrains_is_read_from_the_commit(
    stand_ins: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    from pipeline.retraining.flow import read_if_busy

    stand_ins.set_params(**{"retrain.if_busy": "wait"})
    stand_ins.commit()
    file = stand_ins.path / "params.yaml"
    file.write_text(file.read_text() + "half: [an, edit")
    assert read_if_busy(stand_ins.path) == "wait"
    assert capsys.readouterr().out == ""
    stand_ins.commit()
    assert read_if_busy(stand_ins.path) == "leave"
    assert "retrain.if_busy: leave" in capsys.readouterr().out


def test_drift_is_an_event_and_starts_a_retraining_where_the_rule_asks_for_one(
    served: dict[UUID, str], stand_ins: Project, prefect_api: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect.events.worker import EventsWorker

    pytest.importorskip("pipeline.monitoring")  # a room that a project with servers may lack
    from pipeline.monitoring import run, traffic
    from pipeline.monitoring.flow import DRIFT_FOUND, monitor_data

    retrain = next(key for key, name in served.items() if name == "retrain")
    report = stand_ins.path / "reports/report.md"
    report.parent.mkdir(exist_ok=True)
    report.write_text("# Drift\n\n![effect sizes](effects.png)\n")
    looks = [("all is well", False, False), ("one drifted", True, False), ("two of three drifted", True, True)]
    for sentence, drifted, asks in looks:
        evidence = {"latest": sentence}
        found = run.Monitoring(drifted, asks, evidence, sentence, report, (), {}, "nobody")
        monkeypatch.setattr(run, "monitor", lambda _, found=found: found)
        state = monitor_data(return_state=True)
        assert (state.name, state.message) == ("Drift" if drifted else "NoDrift", sentence)
    assert [run["parameters"] for run in runs_of(prefect_api, retrain).values()] == [
        {"reason": "drift: two of three drifted"}
    ]
    artifacts = prefect_http.post(f"{prefect_api}/artifacts/latest/filter", json={}).json()
    (published,) = (artifact for artifact in artifacts if artifact["key"] == "drift")
    assert published["description"] == "two of three drifted"
    assert "effect sizes: `reports/effects.png`" in published["data"]
    EventsWorker.drain_all(timeout=20)
    chosen = {"filter": {"event": {"name": [DRIFT_FOUND]}}}
    for _ in range(100):
        events = prefect_http.post(f"{prefect_api}/events/filter", json=chosen).json()["events"]
        if len(events) == 2:
            break
        time.sleep(0.1)
    assert {event["payload"]["latest"] for event in events} == {"one drifted", "two of three drifted"}

    (stand_ins.path / TRAFFIC).mkdir(parents=True)
    found = traffic.TrafficDrift((), False, (), (), "1", None, 0, "the traffic drifted", True, True, {}, report)
    monkeypatch.setattr(traffic, "monitor_traffic", lambda *_: found)
    quiet = run.Monitoring(False, False, {}, "all is well", report, (), {}, "nobody")
    monkeypatch.setattr(run, "monitor", lambda _: quiet)
    state = monitor_data(return_state=True)
    assert (state.name, state.message) == ("Drift", "all is well the traffic drifted")
    reasons = [run["parameters"]["reason"] for run in runs_of(prefect_api, retrain).values()]
    assert sorted(reasons) == ["drift: the traffic drifted", "drift: two of three drifted"]


def runs_of(prefect_api: str, deployment: UUID) -> dict[str, dict[str, Any]]:
    """The flow runs of a deployment, by their id."""
    chosen = {"flow_runs": {"deployment_id": {"any_": [str(deployment)]}}, "limit": 100}
    return {run["id"]: run for run in prefect_http.post(f"{prefect_api}/flow_runs/filter", json=chosen).json()}


@pytest.mark.parametrize("how", ["pull steps", "entrypoint"])
def test_a_deployment_that_somebody_changed_is_not_executed(
    served: dict[UUID, str], stand_ins: Project, prefect_api: str, told: Endpoint, how: str
) -> None:
    from prefect.client.orchestration import get_client

    from pipeline.servers.runner_loop import PipelineRunner

    mark = stand_ins.path / "mark"
    foreign = f"from pathlib import Path\nfrom prefect import flow\nPath({str(mark)!r}).touch()\n"
    (stand_ins.path / "foreign.py").write_text(f"{foreign}\n@flow\ndef train(until: str) -> None:\n    pass\n")
    shell = "prefect.deployments.steps.run_shell_script"
    changed = {
        "pull steps": {"pull_steps": [{shell: {"script": f"touch {mark}"}}]},
        "entrypoint": {"entrypoint": f"{stand_ins.path}/foreign.py:train"},
    }[how]

    async def run_once(tamper: dict[str, Any]) -> str:
        """Have a new runner take one flow run, of a deployment that is changed once it is served."""
        async with get_client() as client:
            runner = PipelineRunner(client)
            deployment = next(key for key, name in (await runner.register("leave")).items() if name == "train")
            record = prefect_http.get(f"{prefect_api}/deployments/{deployment}").json()
            upsert = {key: record[key] for key in ("name", "flow_id", "entrypoint", "path")} | tamper
            assert prefect_http.post(f"{prefect_api}/deployments/", json=upsert).json()["id"] == str(deployment)
            parameters = {"parameters": {"until": "ingest"}}
            run = prefect_http.post(f"{prefect_api}/deployments/{deployment}/create_flow_run", json=parameters).json()[
                "id"
            ]
            await runner.start(run_once=True)
        return str(run)

    run = asyncio.run(run_once(changed))
    state = prefect_http.get(f"{prefect_api}/flow_runs/{run}").json()["state"]
    assert not mark.exists()
    assert state["type"] == "CRASHED"
    assert state["message"].startswith("refused: the deployment was changed to execute other code")
    assert told.told == [("failure", f"train failed: {state['message']}")]
    if how == "pull steps":  # the next start of the runner restores the deployment
        run = asyncio.run(run_once({}))
        assert prefect_http.get(f"{prefect_api}/flow_runs/{run}").json()["state"]["type"] == "COMPLETED"
