"""The runner's loop: serve the deployments, retrain when batches arrive, and clean up after crashes and downtime.

Prefect's own runner starts each flow run that is due in its own process. Two tasks run in parallel: `flow_run_cleanup`
and `batch_trigger`.
"""

import asyncio
import logging
import os
import signal
from pathlib import Path
from typing import Self
from uuid import UUID

import httpx
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy, FlowRun
from prefect.deployments.runner import EntrypointType, RunnerDeployment
from prefect.runner import Runner

from pipeline.data.batches import INCOMING
from pipeline.errors import FlowError
from pipeline.flows.deployed import RUNNER_VARIABLE
from pipeline.flows.prefect_internals import execute_only, set_flow_for_hooks
from pipeline.flows.run import IfBusy
from pipeline.retraining.flow import read_if_busy, retrain
from pipeline.servers.batch_trigger import retrain_on_arrivals
from pipeline.servers.flow_run_cleanup import clean_up, clean_up_repeatedly, mark_crashed
from pipeline.servers.flow_run_processes import end_processes, read_notes
from pipeline.servers.train_flow import find_flows
from pipeline.workspace import project_name

POLL_SECONDS = 5  # between two queries for runs that are due
COLLISION_STRATEGIES = {"wait": ConcurrencyLimitStrategy.ENQUEUE, "leave": ConcurrencyLimitStrategy.CANCEL_NEW}

_LOGGER = logging.getLogger(__name__)


class PipelineRunner(Runner):
    """A Prefect runner that executes only our flows.

    Prefect reads the code of a flow run, and the commands to run before it, from the server's record of the deployment.
    It does so in the flow run's process and, after a crash, in the runner. Anyone who can change a record could run any
    code here. This runner takes both from this project, and refuses a flow run whose deployment was changed.

    It also handles signals in its own event loop. Prefect's runner starts a second event loop to end itself.
    """

    def __init__(self, client: PrefectClient) -> None:
        super().__init__(name="pipeline", query_seconds=POLL_SECONDS, pause_on_shutdown=False)
        self.ending = asyncio.Event()
        self._own_client = client
        self._entrypoints: dict[UUID, str] = {}  # by deployment id
        self._running_loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            self._running_loop.add_signal_handler(number, self.ending.set)

    def handle_sigterm(self, *_: object) -> None:
        """Set `ending`. Prefect's `start` registers this method for SIGTERM."""
        self._running_loop.call_soon_threadsafe(self.ending.set)

    async def register(self, if_busy: IfBusy) -> dict[UUID, str]:
        """Register the deployments with Prefect's server. Returns their names by id."""
        served = {}
        for flow, deployment in zip(find_flows(), deployments(if_busy), strict=True):
            found = await self.aadd_deployment(deployment)
            set_flow_for_hooks(self, found, flow)
            self._entrypoints[found] = str(deployment.entrypoint)
            served[found] = deployment.name
        return served

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        execute_only(self, self._entrypoints, self._require_own_deployment)
        return self

    async def _require_own_deployment(self, run: FlowRun) -> None:
        """Refuse a flow run whose deployment was changed since `register`, and mark it as crashed.

        Raises:
            FlowError: the deployment was changed.
        """
        assert run.deployment_id
        deployment = await self._own_client.read_deployment(run.deployment_id)
        if deployment.entrypoint != self._entrypoints[run.deployment_id] or deployment.pull_steps:
            reason = "refused: the deployment was changed to execute other code. A restart of the runner restores it"
            await mark_crashed(self._own_client, run, reason, {deployment.id: deployment.name})
            raise FlowError(reason)


async def serve(root: Path) -> None:
    """Serve the deployments of the main repository `root`, the current directory, until SIGTERM or Ctrl-C.

    At the end, the runner cancels active flow runs, and ends their stages first. Schedules do not change.

    Raises:
        FlowError: Prefect's server stopped responding.
    """
    os.environ[RUNNER_VARIABLE] = str(os.getpid())
    await asyncio.to_thread(end_processes, read_notes(root))
    async with get_client() as client:
        runner = PipelineRunner(client)
        served = await runner.register(read_if_busy(root))
        await clean_up(client, root, served)
        _LOGGER.info("serving %s; watching %s", ", ".join(served.values()), INCOMING)
        serving = asyncio.create_task(runner.start())
        helpers = [
            asyncio.create_task(clean_up_repeatedly(client, root, served)),
            asyncio.create_task(retrain_on_arrivals(client, root)),
        ]
        ending = asyncio.create_task(runner.ending.wait())
        await asyncio.wait([serving, *helpers, ending], return_when=asyncio.FIRST_COMPLETED)
        for task in [*helpers, ending]:
            task.cancel()
        if not serving.done():
            _LOGGER.info("stopping, with the active flow runs")
            await runner.astop() if runner.started else serving.cancel()
        outcomes = await asyncio.gather(serving, *helpers, return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, Exception):
            cause = _innermost(outcome)
            raise FlowError(
                "the runner cannot continue",
                found=f"{type(cause).__name__}: {cause}",
                temporary=isinstance(cause, httpx.TransportError),
            ) from outcome


def deployments(if_busy: IfBusy) -> list[RunnerDeployment]:
    """Create the deployments to serve. Their schedules (`pipeline schedule`) stay in Prefect's server.

    Args:
        if_busy: how to treat a retraining that is due while another one is active.
    """
    one_at_a_time = ConcurrencyLimitConfig(limit=1, collision_strategy=COLLISION_STRATEGIES[if_busy])
    found = []
    for flow in find_flows():
        limit = one_at_a_time if flow.name == retrain.name else None
        module = EntrypointType.MODULE_PATH  # flow-run processes can import it like this process
        one = RunnerDeployment.from_flow(
            flow, flow.name, concurrency_limit=limit, entrypoint_type=module, tags=[project_name()]
        )
        one.model_fields_set.difference_update({"schedules", "paused"})  # otherwise each start resets them
        one.work_pool_name = one.work_queue_name = None  # takes a deployment back from a team's workers
        found.append(one)
    return found


def _innermost(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
