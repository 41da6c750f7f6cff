"""Functions of Prefect that are not part of its documented interface.

`tests/unit/test_prefect_internals.py` fails if an upgrade removes one. Prefect is imported inside the functions: its
settings must be in the environment before.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

if TYPE_CHECKING:
    from datetime import datetime

    from anyio.abc import TaskStatus
    from prefect import Flow
    from prefect.client.schemas.objects import FlowRun
    from prefect.runner import Runner
    from prefect.server.database import PrefectDBInterface
    from starlette.types import ASGIApp


def send_buffered_records(seconds: float) -> bool:
    """Send the logs and events that this process has buffered. Returns False if not all were accepted in time."""
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    sent = [cast(Any, worker.drain_all(timeout=seconds)) for worker in (APILogWorker, EventsWorker)]
    return not any(worker.not_done for worker in sent)


def apply_environment() -> None:
    """Read the settings again from the environment."""
    from prefect.context import refresh_global_settings_context

    refresh_global_settings_context()


def disable_client_retries() -> None:
    """Turn off the retries of Prefect's client until this process ends."""
    from prefect.context import SettingsContext, get_settings_context

    context = get_settings_context()
    settings = context.settings.copy_with_update(updates={"client.max_retries": 0})
    SettingsContext(profile=context.profile, settings=settings).__enter__()


def create_server(*, temporary: bool = False) -> "ASGIApp":
    """Create the application of Prefect's server. A temporary one runs no scheduler."""
    from prefect.server.api.server import create_app

    return create_app(ephemeral=temporary, final=True)


def database_interface() -> "PrefectDBInterface":
    """Return Prefect's access to its database, with its migrations and tables."""
    from prefect.server.database import provide_database_interface

    return provide_database_interface()


def set_flow_for_hooks(runner: "Runner", deployment: UUID, flow: "Flow[..., Any]") -> None:
    """Have a runner take the hooks of a flow from here. It otherwise loads the flow that the server's record names.

    `Runner.aadd_flow` does this, but replaces the schedules of the deployment.
    """
    runner._deployment_registry.register_flow(deployment, flow)


def execute_only(
    runner: "Runner", entrypoints: Mapping[UUID, str], check: "Callable[[FlowRun], Awaitable[None]]"
) -> None:
    """Have a started runner execute these entrypoints, whatever the server's record of the deployment says.

    No setting does this: Prefect reads entrypoint and pull steps from the record.

    Args:
        entrypoints: by deployment id.
        check: called before the start of each flow run. If it raises, the flow run is not started.
    """
    from anyio import TASK_STATUS_IGNORED
    from prefect.runner._starter_engine import EngineCommandStarter

    class CheckedStarter(EngineCommandStarter):
        async def start(self, flow_run: "FlowRun", task_status: "TaskStatus[Any]" = TASK_STATUS_IGNORED) -> None:
            await check(flow_run)
            await super().start(flow_run, task_status=task_status)

    def resolve_starter(flow_run: "FlowRun") -> EngineCommandStarter:
        assert flow_run.deployment_id
        return CheckedStarter(
            tmp_dir=runner._tmp_dir,
            entrypoint=entrypoints[flow_run.deployment_id],  # the process then does not read the server's record
            deployment_name=runner._deployment_registry.get_deployment_name(flow_run.deployment_id),
            control_channel=runner._control_channel,
        )

    runner._scheduled_run_poller._resolve_starter = resolve_starter


def next_times(schedule: Mapping[str, Any], count: int) -> "list[datetime]":
    """Compute the next times of a schedule, given as a dictionary. Prefect's server creates the runs only later."""
    from prefect.server.schemas.schedules import SCHEDULE_TYPES
    from pydantic import TypeAdapter

    plan: Any = TypeAdapter(SCHEDULE_TYPES).validate_python(schedule)
    return list(asyncio.run(plan.get_dates(count)))
