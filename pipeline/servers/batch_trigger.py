"""Start a retraining when batches arrive in `data/incoming/`, and retry it until it ran in this repository."""

import asyncio
import json
import logging
from contextlib import suppress
from pathlib import Path

from prefect.client.orchestration import PrefectClient
from prefect.deployments import arun_deployment
from prefect.events import emit_event
from prefect.states import State

from pipeline.batches.watcher import arrived_batches
from pipeline.data.batches import INCOMING
from pipeline.events import record_event
from pipeline.flows.deployed import RESOURCE
from pipeline.retraining.report import LOG
from pipeline.servers.flow_run_cleanup import find_active_runs, log_server_errors
from pipeline.servers.train_flow import RETRAINING, SKIPPED

BUSY_SECONDS = 5  # between two checks for an active retraining
RETRY_SECONDS, LONGEST_RETRY_SECONDS = 60, 900  # until a retraining that did not run here is retried; doubled each time
MOST_LOST = 3  # retrainings for the same batches that crashed, or failed in another clone
BATCH_ARRIVED = "pipeline.batch.arrived"
NO_SLOT = "Deployment concurrency limit reached."  # Prefect's message when it cancels a run because another is active

_LOGGER = logging.getLogger(__name__)


async def retrain_on_arrivals(client: PrefectClient, root: Path) -> None:
    """Emit an event for arrived batches, and retrain with all that arrived since the last retraining."""
    waiting: set[str] = set()
    arrived = asyncio.Event()

    async def collect() -> None:
        async for names in arrived_batches(root / INCOMING):
            _LOGGER.info("batches in %s: %s", INCOMING, ", ".join(names))
            emit_event(BATCH_ARRIVED, {"prefect.resource.id": RESOURCE}, payload={"names": list(names)})
            record_event("batch.arrived", {"names": list(names)}, root=root)
            waiting.update(names)
            arrived.set()

    async with asyncio.TaskGroup() as group:
        group.create_task(collect())
        while True:
            await arrived.wait()
            arrived.clear()
            names, waiting = sorted(waiting), set()
            await retrain_until_done(client, root, f"batches in {INCOMING}: {', '.join(names)}")


async def retrain_until_done(client: PrefectClient, root: Path, reason: str) -> None:
    """Start a retraining of this repository and wait for its end. Retry until one ran here.

    Reasons to retry: another retraining was active; Prefect's server did not respond; another machine's runner took the
    flow run, and its clone does not have the batches; the process was lost. Give up after `MOST_LOST` crashes or
    failures.
    """
    pause, lost, before = RETRY_SECONDS, 0, _count_retrainings(root, reason)
    while True:
        with log_server_errors():
            deployment = await client.read_deployment_by_name(RETRAINING)
            while await find_active_runs(client, [deployment.id]):
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
                _LOGGER.error("%d retrainings ended without a result, the last as %s: %s", lost, run.state.name, reason)
                return
        await asyncio.sleep(pause)
        pause = min(2 * pause, LONGEST_RETRY_SECONDS)


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
