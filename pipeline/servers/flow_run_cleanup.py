"""Correct the flow runs of the runner's deployments after crashes and downtime, every half a minute.

Mark flow runs without a process as crashed, end cancelled ones, free slots without a holder, and skip the scheduled
runs that a deployment missed, except the latest.
"""

import asyncio
import logging
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import httpx
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.actions import GlobalConcurrencyLimitUpdate
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import ObjectNotFound, PrefectException
from prefect.states import Cancelled, Crashed

from pipeline.errors import FlowError
from pipeline.notices.send import notify_of_failure
from pipeline.servers.flow_run_processes import end_processes, read_notes
from pipeline.servers.train_flow import SKIPPED

CLEAN_UP_SECONDS = 30
LONGEST_PENDING = timedelta(minutes=2)  # a run that is pending for longer has lost its process
LONGEST_CANCELLING = timedelta(seconds=45)  # after this time, Prefect's runner has missed the cancellation
LATE = timedelta(minutes=1)
MOST_RUNS = 100  # per query
ACTIVE_STATES = (StateType.PENDING, StateType.RUNNING, StateType.CANCELLING)

_LOGGER = logging.getLogger(__name__)


async def clean_up_repeatedly(client: PrefectClient, root: Path, served: Mapping[UUID, str]) -> None:
    """Clean up until cancelled."""
    while True:
        await asyncio.sleep(CLEAN_UP_SECONDS)
        with log_server_errors():
            await clean_up(client, root, served)


async def clean_up(client: PrefectClient, root: Path, served: Mapping[UUID, str]) -> None:
    """Correct crashed, cancelled and missed flow runs of the served deployments, and their slots.

    Args:
        served: names of the deployments by id.
    """
    await _mark_lost_runs(client, root, served)
    await _end_cancelled(client, root, served)
    await _free_slots(client, served)
    await skip_missed(client, served)


async def skip_missed(client: PrefectClient, served: Mapping[UUID, str]) -> None:
    """Skip the late scheduled runs of each deployment, except the latest.

    They are late because no runner was up, the machine was asleep, or an earlier run takes long.
    """
    now = datetime.now(UTC)
    due = await client.get_scheduled_flow_runs_for_deployments(list(served), now + timedelta(minutes=1))
    for deployment, name in served.items():
        late = sorted(
            (run.expected_start_time, run.id)
            for run in due
            if run.deployment_id == deployment
            and run.auto_scheduled
            and run.expected_start_time
            and run.expected_start_time < now - LATE
        )
        for _, run in late[:-1]:
            reason = f"missed: only the latest missed run, due at {late[-1][0]:%Y-%m-%d %H:%M} UTC, runs"
            await client.set_flow_run_state(run, Cancelled(name=SKIPPED, message=reason), force=True)
        if len(late) > 1:
            _LOGGER.warning("%d missed runs of %s are skipped; the latest one runs", len(late) - 1, name)


async def mark_crashed(client: PrefectClient, run: FlowRun, reason: str, served: Mapping[UUID, str]) -> None:
    """Mark a flow run as crashed and send a notice."""
    await client.set_flow_run_state(run.id, Crashed(message=reason), force=True)
    _LOGGER.error("flow run %s is marked as crashed: %s", run.name, reason)
    await _notify_of_crash(run, reason, served)


async def find_active_runs(
    client: PrefectClient, deployments: Collection[UUID], states: tuple[StateType, ...] = ACTIVE_STATES
) -> list[FlowRun]:
    """Find the flow runs of deployments in these states: at most `MOST_RUNS`, the latest start first."""
    return await client.read_flow_runs(
        flow_run_filter=FlowRunFilter(
            deployment_id=FlowRunFilterDeploymentId(any_=list(deployments)),
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=list(states))),
        ),
        sort=FlowRunSort.START_TIME_DESC,
        limit=MOST_RUNS,
    )


@contextmanager
def log_server_errors() -> Iterator[None]:
    """Log an error of Prefect's server and continue. The caller retries later."""
    try:
        yield
    except (httpx.HTTPError, PrefectException) as error:
        _LOGGER.warning("Prefect's server: %s: %s", type(error).__name__, str(error).partition("\n")[0])


async def _mark_lost_runs(client: PrefectClient, root: Path, served: Mapping[UUID, str]) -> None:
    """Mark a flow run as crashed if the process of its note has ended, or if it stays pending.

    Send a notice of each crash, also if Prefect's runner marked it: the crashed process could not send one.
    """
    for note in read_notes(root):
        if note.process:
            continue
        with suppress(ObjectNotFound):
            run = await client.read_flow_run(note.flow_run)
            if run.state and not run.state.is_final():
                await mark_crashed(client, run, "its process was killed, or its machine stopped", served)
            elif run.state and run.state.is_crashed():
                await _notify_of_crash(run, run.state.message or "", served)
        note.path.unlink(missing_ok=True)
    for run in await find_active_runs(client, served, (StateType.PENDING,)):
        if run.state and run.state.timestamp < datetime.now(UTC) - LONGEST_PENDING:
            await mark_crashed(client, run, "its process never started", served)


async def _end_cancelled(client: PrefectClient, root: Path, served: Mapping[UUID, str]) -> None:
    """End cancelled flow runs. Prefect's runner misses a cancellation if its server was restarted."""
    notes = {note.flow_run: note for note in read_notes(root)}
    for run in await find_active_runs(client, served, (StateType.CANCELLING,)):
        if run.state and run.state.timestamp < datetime.now(UTC) - LONGEST_CANCELLING and run.id in notes:
            await asyncio.to_thread(end_processes, [notes[run.id]])
            await client.set_flow_run_state(run.id, Cancelled(message="cancelled"), force=True)
            _LOGGER.info("flow run %s is cancelled", run.name)


async def _free_slots(client: PrefectClient, served: Mapping[UUID, str]) -> None:
    """Free the slot of a deployment without active flow runs: a server crash can leave it taken."""
    for deployment in served:
        limit = (await client.read_deployment(deployment)).global_concurrency_limit
        if limit and limit.active_slots and not await find_active_runs(client, [deployment]):
            await client.update_global_concurrency_limit(limit.name, GlobalConcurrencyLimitUpdate(active_slots=0))


async def _notify_of_crash(run: FlowRun, reason: str, served: Mapping[UUID, str]) -> None:
    flow = served.get(run.deployment_id, run.name) if run.deployment_id else run.name
    remedy = "nothing: the next run resumes from the finished stages"
    await asyncio.to_thread(notify_of_failure, flow, FlowError(reason, found=f"flow run {run.name}", remedy=remedy))
