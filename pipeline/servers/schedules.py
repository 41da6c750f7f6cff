"""The schedules of the deployments that one machine serves. Prefect's server stores them and creates the runs.

Restarting the runner or the server does not change them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID
from zoneinfo import ZoneInfo, available_timezones

from pipeline.errors import FlowError, ParamsError
from pipeline.flows.prefect_internals import next_times
from pipeline.flows.prefect_server import explain_server_errors
from pipeline.redaction import without_password
from pipeline.rooms import find_rooms
from pipeline.servers.prefect_connection import use_permanent_server
from pipeline.workspace import main_repository

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.responses import DeploymentResponse

FLOW_NAMES = tuple(name for room in find_rooms().values() for name in room.flows)


@dataclass(frozen=True)
class Schedule:
    """A rule for the start times of a flow."""

    flow: str
    rule: str  # cron's five fields, or another Prefect rule as text
    timezone: str
    active: bool
    next: datetime | None  # None if paused, or if the rule has no later time


def set_schedule(workspace: Path, flow: str, cron: str, timezone: str) -> Schedule:
    """Replace the schedules of a flow by this one.

    Raises:
        ParamsError: the cron rule or the time zone is invalid. Nothing has changed.
        FlowError: no server is up, it does not know the flow, or it rejects the credentials.
    """
    if timezone not in available_timezones():
        raise ParamsError(
            f"there is no time zone {timezone!r}",
            expected="a name of the IANA database, such as Europe/Berlin, Asia/Seoul or UTC",
            found=timezone,
            remedy=f'pipeline schedule --flow {flow} --cron "{cron}" --timezone Europe/Berlin',
        )
    with _deployments(workspace, flow) as (client, (deployment,)):
        from prefect.client.schemas.actions import DeploymentScheduleCreate
        from prefect.client.schemas.schedules import CronSchedule
        from pydantic import ValidationError

        try:
            rule = CronSchedule(cron=cron, timezone=timezone)
        except ValidationError as error:
            raise ParamsError(
                f"{cron!r} is not a cron rule",
                expected='five fields: minute, hour, day of month, month, day of week; "0 3 * * *" is 3:00 every day',
                found=error.errors()[0]["msg"].removeprefix("Value error, "),
                remedy=f'pipeline schedule --flow {flow} --cron "0 3 * * *" --timezone {timezone}',
            ) from None
        former = [schedule.id for schedule in deployment.schedules]
        client.create_deployment_schedules(deployment.id, [DeploymentScheduleCreate(schedule=rule, active=True)])
        for schedule in former:
            client.delete_deployment_schedule(deployment.id, schedule)
    return list_schedules(workspace, flow)[0]


def list_schedules(workspace: Path, *flows: str) -> list[Schedule]:
    """List the schedules of these flows, or of all flows.

    Raises:
        FlowError: no server is up, or it does not know the flows.
    """
    found = []
    with _deployments(workspace, *flows) as (_, deployments):
        for deployment in deployments:
            for each in deployment.schedules:
                rule, zone = getattr(each.schedule, "cron", None), getattr(each.schedule, "timezone", None) or "UTC"
                upcoming = next(iter(next_times(each.schedule.model_dump(), 1)), None) if each.active else None
                shown = upcoming and upcoming.astimezone(ZoneInfo(zone))
                name = str(deployment.name)
                found.append(Schedule(name, rule or str(each.schedule), zone, each.active, shown))
    return found


def activate(workspace: Path, flow: str, active: bool) -> list[Schedule]:
    """Pause or resume the schedules of a flow. Runs missed during the pause are not started later.

    Raises:
        FlowError: no server is up, or the flow has no schedule.
    """
    with _deployments(workspace, flow) as (client, (deployment,)):
        for schedule in _require_schedules(deployment):
            client.update_deployment_schedule(deployment.id, schedule, active=active)
    return list_schedules(workspace, flow)


def remove(workspace: Path, flow: str) -> int:
    """Remove the schedules of a flow. Returns their number.

    Raises:
        FlowError: no server is up, or the flow has no schedule.
    """
    with _deployments(workspace, flow) as (client, (deployment,)):
        schedules = _require_schedules(deployment)
        for schedule in schedules:
            client.delete_deployment_schedule(deployment.id, schedule)
    return len(schedules)


def _require_schedules(deployment: "DeploymentResponse") -> list[UUID]:
    if not deployment.schedules:
        raise FlowError(
            f"{deployment.name} has no schedule",
            expected="one that was set before",
            remedy=f'pipeline schedule --flow {deployment.name} --cron "0 3 * * *"',
        )
    return [schedule.id for schedule in deployment.schedules]


@contextmanager
def _deployments(workspace: Path, *flows: str) -> Iterator[tuple["SyncPrefectClient", list["DeploymentResponse"]]]:
    url = without_password(use_permanent_server(main_repository(workspace)))
    from httpx import TransportError
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound

    with explain_server_errors():
        try:
            with get_client(sync_client=True) as client:
                yield client, [client.read_deployment_by_name(f"{name}/{name}") for name in flows or FLOW_NAMES]
        except ObjectNotFound:
            raise FlowError(
                f"the server at {url} has no deployments of this project yet",
                expected="a runner that has served them once, or `prefect deploy --all`",
                remedy="pipeline up; when it prints that it serves the flows, run the same command again",
            ) from None
        except (TransportError, RuntimeError) as error:
            # Prefect's client raises a RuntimeError if its first request does not reach a server.
            if not isinstance(error, TransportError) and "Failed to reach API" not in str(error):
                raise
            raise FlowError(f"the server at {url} stopped answering", found=str(error), temporary=True) from None
