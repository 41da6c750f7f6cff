"""The runner's loop: serve the deployments, retrain when batches arrive, and clean up after crashes and downtime.

Prefect's own runner starts each flow run that is due in its own process. Two tasks run in parallel:

- every half a minute, mark flow runs without a process as crashed, free slots without a holder, and skip the scheduled
  runs that a deployment missed, except the latest;
- start a retraining when batches arrive in `data/incoming/`, and retry it until it ran in this repository.
"""

import asyncio
import json
import os
import signal
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self
from uuid import UUID

import httpx
from anyio import TASK_STATUS_IGNORED
from anyio.abc import TaskStatus
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitUpdate
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy, FlowRun, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.deployments import arun_deployment
from prefect.deployments.runner import EntrypointType, RunnerDeployment
from prefect.events import emit_event
from prefect.exceptions import ObjectNotFound, PrefectException
from prefect.runner import Runner
from prefect.runner._process_manager import ProcessHandle
from prefect.runner._starter_engine import EngineCommandStarter
from prefect.states import Cancelled, Crashed, State

from pipeline.batches.watcher import arrived_batches
from pipeline.data.batches import INCOMING
from pipeline.errors import FlowError
from pipeline.flows.deployed import RESOURCE, RUNNER_VARIABLE
from pipeline.flows.run import IfBusy
from pipeline.notices.send import notify_of_failure
from pipeline.redaction import without_password
from pipeline.retraining.flow import read_if_busy, retrain
from pipeline.retraining.report import LOG
from pipeline.servers.deployments import RETRAINING, SKIPPED, find_flows
from pipeline.servers.flow_run_processes import end_processes, read_notes

POLL_SECONDS = 5  # between two queries for runs that are due
TEND_SECONDS = 30
PENDING = timedelta(minutes=2)  # a run that is pending for longer has lost its process
CANCELLING = timedelta(seconds=45)
LATE = timedelta(minutes=1)
BUSY_SECONDS = 5  # between two checks for an active retraining
AGAIN_SECONDS = 60  # until the first retry of a retraining that did not run here; doubled each time
MOST_AGAIN_SECONDS = 900
MOST_LOST = 3  # retrainings for the same batches that crashed, or failed in another clone
BATCH_ARRIVED = "pipeline.batch.arrived"
NO_SLOT = "Deployment concurrency limit reached."  # Prefect's message when it cancels a run because another is active
MOST_RUNS = 100  # per query
AT_WORK = (StateType.PENDING, StateType.RUNNING, StateType.CANCELLING)
COLLISION = {"wait": ConcurrencyLimitStrategy.ENQUEUE, "leave": ConcurrencyLimitStrategy.CANCEL_NEW}


class _Runner(Runner):
    """A Prefect runner that executes only our flows.

    Prefect reads the code of a flow run, and the commands to run before it, from the server's record of the deployment.
    It does so in the flow run's process and, after a crash, in the runner. Anyone who can change a record could run any
    code here. This runner takes both from this project, and refuses a flow run whose deployment was changed.

    It also handles signals in its own event loop. Prefect's runner starts a second event loop to end itself.
    """

    def __init__(self) -> None:
        super().__init__(name="pipeline", query_seconds=POLL_SECONDS, pause_on_shutdown=False)
        self.ending = asyncio.Event()
        self._entrypoints: dict[UUID, str] = {}  # by deployment id
        self._running_loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            self._running_loop.add_signal_handler(number, self.ending.set)

    def handle_sigterm(self, *_: object) -> None:
        self._running_loop.call_soon_threadsafe(self.ending.set)

    async def register(self, if_busy: IfBusy) -> dict[UUID, str]:
        """Register the deployments with Prefect's server. Returns their names by id."""
        served = {}
        for flow, deployment in zip(find_flows(), deployments(if_busy), strict=True):
            found = await self.aadd_deployment(deployment)
            self._deployment_registry.register_flow(found, flow)  # the runner looks for hooks here first
            self._entrypoints[found] = str(deployment.entrypoint)
            served[found] = deployment.name
        return served

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        self._scheduled_run_poller._resolve_starter = lambda run: _OwnStarter(self, run)
        return self


class _OwnStarter:
    """Start the process of a flow run with our entrypoint, if the server's record has the same one."""

    def __init__(self, runner: _Runner, run: FlowRun) -> None:
        assert run.deployment_id
        self._runner, self._entrypoint = runner, runner._entrypoints[run.deployment_id]
        self._starter = EngineCommandStarter(
            tmp_dir=runner._tmp_dir,
            entrypoint=self._entrypoint,  # the process then does not read the server's record
            deployment_name=runner._deployment_registry.get_deployment_name(run.deployment_id),
            control_channel=runner._control_channel,
        )

    async def start(self, flow_run: FlowRun, task_status: TaskStatus[ProcessHandle] = TASK_STATUS_IGNORED) -> None:
        """Start the flow run, and return when it has ended.

        Raises:
            FlowError: the deployment was changed since this runner registered it. The flow run is marked as crashed.
        """
        assert flow_run.deployment_id
        deployment = await self._runner._client.read_deployment(flow_run.deployment_id)
        if deployment.entrypoint != self._entrypoint or deployment.pull_steps:
            reason = "refused: somebody changed what the deployment executes. A start of the runner restores it"
            await _crash(self._runner._client, flow_run, reason, {deployment.id: deployment.name})
            raise FlowError(reason)
        await self._starter.start(flow_run, task_status=task_status)


async def serve(root: Path) -> None:
    """Serve the deployments of the main repository `root`, the current directory, until SIGTERM or Ctrl-C.

    At the end, the runner cancels active flow runs, and ends their stages first. Schedules do not change.

    Raises:
        FlowError: Prefect's server stopped responding.
    """
    os.environ[RUNNER_VARIABLE] = str(os.getpid())
    await asyncio.to_thread(end_processes, read_notes(root))
    runner = _Runner()
    served = await runner.register(read_if_busy(root))
    async with get_client() as client:
        await tend(client, root, served)
        _say(f"serving {', '.join(served.values())}; watching {INCOMING}")
        serving = asyncio.create_task(runner.start())
        beside = [
            asyncio.create_task(_tend_for_ever(client, root, served)),
            asyncio.create_task(_retrain_on_arrivals(client, root)),
        ]
        ending = asyncio.create_task(runner.ending.wait())
        await asyncio.wait([serving, *beside, ending], return_when=asyncio.FIRST_COMPLETED)
        for task in [*beside, ending]:
            task.cancel()
        if not serving.done():
            _say("ending, with the flow runs that are going on")
            await runner.astop() if runner.started else serving.cancel()
        outcomes = await asyncio.gather(serving, *beside, return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, Exception):
            cause = _innermost(outcome)
            raise FlowError(
                "the runner cannot go on",
                found=f"{type(cause).__name__}: {cause}",
                temporary=isinstance(cause, httpx.TransportError),
            ) from outcome


def deployments(if_busy: IfBusy) -> list[RunnerDeployment]:
    """Create the deployments to serve. Their schedules (`pipeline schedule`) stay in Prefect's server.

    Args:
        if_busy: how to treat a retraining that is due while another one is active.
    """
    one_at_a_time = ConcurrencyLimitConfig(limit=1, collision_strategy=COLLISION[if_busy])
    found = []
    for flow in find_flows():
        limit = one_at_a_time if flow.name == retrain.name else None
        module = EntrypointType.MODULE_PATH  # flow-run processes can import it like this process
        one = RunnerDeployment.from_flow(flow, flow.name, concurrency_limit=limit, entrypoint_type=module)
        one.model_fields_set.difference_update({"schedules", "paused"})  # otherwise each start resets them
        one.work_pool_name = one.work_queue_name = None  # takes a deployment back from a team's workers
        found.append(one)
    return found


async def tend(client: PrefectClient, root: Path, served: Mapping[UUID, str]) -> None:
    """Correct crashed, cancelled and missed flow runs of the served deployments, and their slots."""
    await _mark_crashed(client, root, served)
    await _end_cancelled(client, root, served)
    await _free_slots(client, served)
    await skip_missed(client, served)


async def skip_missed(client: PrefectClient, served: Mapping[UUID, str]) -> None:
    """Skip the late scheduled runs of each deployment, except the latest.

    They are late because no runner was up, the machine was asleep, or an earlier run takes long.
    """
    moment = datetime.now(UTC)
    due = await client.get_scheduled_flow_runs_for_deployments(list(served), moment + timedelta(minutes=1))
    for deployment, name in served.items():
        late = [
            (run.expected_start_time, run.id)
            for run in due
            if run.deployment_id == deployment
            and run.auto_scheduled
            and run.expected_start_time
            and run.expected_start_time < moment - LATE
        ]
        latest = max(late, default=None)
        missed = [run for due_at, run in late if latest and (due_at, run) != latest]
        for run in missed:
            assert latest
            reason = f"missed: the run that was due at {latest[0]:%Y-%m-%d %H:%M} UTC stands for it"
            await client.set_flow_run_state(run, Cancelled(name=SKIPPED, message=reason), force=True)
        if missed:
            _say(f"{len(missed)} missed runs of {name} are skipped: one catches up")


async def _mark_crashed(client: PrefectClient, root: Path, served: Mapping[UUID, str]) -> None:
    """Mark a flow run as crashed if the process of its note has ended, or if it stays pending.

    Send a notice of each crash, also if Prefect's runner marked it: the crashed process could not send one.
    """
    for note in read_notes(root):
        if note.process:
            continue
        with suppress(ObjectNotFound):
            run = await client.read_flow_run(note.flow_run)
            if run.state and not run.state.is_final():
                await _crash(client, run, "its process ended without a word: killed, or gone with the machine", served)
            elif run.state and run.state.is_crashed():
                await _tell_of_crash(run, run.state.message or "", served)
        note.path.unlink(missing_ok=True)
    for run in await _at_work(client, served, (StateType.PENDING,)):
        if run.state and run.state.timestamp < datetime.now(UTC) - PENDING:
            await _crash(client, run, "it was handed to a process that never began", served)


async def _end_cancelled(client: PrefectClient, root: Path, served: Mapping[UUID, str]) -> None:
    """End cancelled flow runs. Prefect's runner misses a cancellation if its server was restarted."""
    notes = {note.flow_run: note for note in read_notes(root)}
    for run in await _at_work(client, served, (StateType.CANCELLING,)):
        if run.state and run.state.timestamp < datetime.now(UTC) - CANCELLING and run.id in notes:
            await asyncio.to_thread(end_processes, [notes[run.id]])
            await client.set_flow_run_state(run.id, Cancelled(message="cancelled"), force=True)
            _say(f"flow run {run.name} is cancelled")


async def _crash(client: PrefectClient, run: FlowRun, reason: str, served: Mapping[UUID, str]) -> None:
    await client.set_flow_run_state(run.id, Crashed(message=reason), force=True)
    _say(f"flow run {run.name} is marked as crashed: {reason}")
    await _tell_of_crash(run, reason, served)


async def _tell_of_crash(run: FlowRun, reason: str, served: Mapping[UUID, str]) -> None:
    flow = served.get(run.deployment_id, run.name) if run.deployment_id else run.name
    crash = FlowError(reason, found=f"flow run {run.name}", remedy="nothing: the next one goes on with what had ended")
    await asyncio.to_thread(notify_of_failure, flow, crash)


async def _free_slots(client: PrefectClient, served: Mapping[UUID, str]) -> None:
    """Free the slot of a deployment without active flow runs: a server crash can leave it taken."""
    for deployment in served:
        limit = (await client.read_deployment(deployment)).global_concurrency_limit
        if limit and limit.active_slots and not await _at_work(client, [deployment]):
            await client.update_global_concurrency_limit(limit.name, GlobalConcurrencyLimitUpdate(active_slots=0))


async def _at_work(
    client: PrefectClient, of: Collection[UUID], states: tuple[StateType, ...] = AT_WORK
) -> list[FlowRun]:
    return await client.read_flow_runs(
        flow_run_filter=FlowRunFilter(
            deployment_id=FlowRunFilterDeploymentId(any_=list(of)),
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=list(states))),
        ),
        sort=FlowRunSort.START_TIME_DESC,
        limit=MOST_RUNS,
    )


async def _tend_for_ever(client: PrefectClient, root: Path, served: Mapping[UUID, str]) -> None:
    while True:
        await asyncio.sleep(TEND_SECONDS)
        with _patience():
            await tend(client, root, served)


async def _retrain_on_arrivals(client: PrefectClient, root: Path) -> None:
    waiting: set[str] = set()
    news = asyncio.Event()

    async def collect() -> None:
        async for names in arrived_batches(root / INCOMING):
            _say(f"in {INCOMING}: {', '.join(names)}")
            emit_event(BATCH_ARRIVED, {"prefect.resource.id": RESOURCE}, payload={"names": list(names)})
            waiting.update(names)
            news.set()

    async with asyncio.TaskGroup() as group:
        group.create_task(collect())
        while True:
            await news.wait()
            news.clear()
            names, waiting = sorted(waiting), set()
            await _retrain(client, root, f"batches in {INCOMING}: {', '.join(names)}")


async def _retrain(client: PrefectClient, root: Path, reason: str) -> None:
    """Start a retraining of this repository and wait for its end. Retry until one ran here.

    Reasons to retry: another retraining was active; Prefect's server did not respond; another machine's runner took the
    flow run, and its clone does not have the batches; the process was lost. Give up after `MOST_LOST` crashes or
    failures.
    """
    pause, lost, before = AGAIN_SECONDS, 0, _count_retrainings(root, reason)
    while True:
        with _patience():
            deployment = await client.read_deployment_by_name(RETRAINING)
            while await _at_work(client, [deployment.id]):
                await asyncio.sleep(BUSY_SECONDS)
            run = await arun_deployment(
                deployment.id,
                client=client,
                parameters={"reason": reason},
                poll_interval=BUSY_SECONDS,
                as_subflow=False,
            )
            assert run.state
            if _count_retrainings(root, reason) > before or _is_cancelled_by_hand(run.state):
                return
            lost += run.state.is_crashed() or run.state.is_failed()
            if lost == MOST_LOST:
                _say(f"a retraining ended {lost} times without a result, the last as {run.state.name}: {reason}")
                return
        await asyncio.sleep(pause)
        pause = min(2 * pause, MOST_AGAIN_SECONDS)


def _count_retrainings(root: Path, reason: str) -> int:
    """Count the retrainings of this repository that were started for a reason, without skipped ones."""
    count = 0
    for line in (root / LOG).read_text("utf-8").splitlines() if (root / LOG).exists() else ():
        with suppress(ValueError):  # a line cut off by a power failure
            entry = json.loads(line)
            count += entry["started"] == reason and entry["outcome"] != "skipped"
    return count


def _is_cancelled_by_hand(state: State) -> bool:
    return state.is_cancelled() and state.name != SKIPPED and state.message != NO_SLOT


@contextmanager
def _patience() -> Iterator[None]:
    """Print an error of Prefect's server and continue. The caller retries later."""
    try:
        yield
    except (httpx.HTTPError, PrefectException) as error:
        _say(f"Prefect's server: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")


def _innermost(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _say(line: str) -> None:
    print(without_password(line), flush=True)
