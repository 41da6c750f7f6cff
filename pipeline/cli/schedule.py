"""`pipeline schedule`: the schedules of the flows on Prefect's server."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from pipeline.cli.app import app, console, enter_workspace, print_json

if TYPE_CHECKING:
    from pipeline.servers.schedules import Schedule

Flow = Annotated[Literal["retrain", "train", "monitor-data"], typer.Option("--flow", help="The flow to start.")]

schedule = typer.Typer(invoke_without_command=True, rich_markup_mode="markdown")
app.add_typer(schedule, name="schedule")


@schedule.callback()
def set_schedule(
    context: typer.Context,
    cron: Annotated[
        str | None, typer.Option(help="Minute, hour, day of month, month, day of week; in quotes.", show_default=False)
    ] = None,
    timezone: Annotated[str, typer.Option(help="Time zone of these times, as in the IANA database.")] = "UTC",
    flow: Flow = "retrain",
) -> None:
    """Start a flow at set times, on the Prefect server of `pipeline up` or the one in PREFECT_API_URL.

    A flow has one schedule: setting it replaces the previous one. It is kept when `pipeline up` restarts.
    If runs were missed meanwhile, the latest of them runs.

    Examples:

        pipeline schedule --cron "0 3 * * *" --timezone Europe/Berlin
        pipeline schedule --cron "30 * * * *" --flow monitor-data
        pipeline schedule list
        pipeline schedule pause --flow retrain
    """
    if context.invoked_subcommand:
        if cron:
            raise typer.BadParameter(f"it sets a schedule; leave it out with {context.invoked_subcommand}")
        return
    if not cron:
        raise typer.BadParameter("""say when: pipeline schedule --cron "0 3 * * *"; or list, pause, resume, remove""")
    workspace = enter_workspace()
    from pipeline.servers import schedules

    _show([schedules.set_schedule(workspace, flow, cron, timezone)])


@schedule.command("list")
def list_schedules(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Show the schedules of all flows, and the next time of each.

    Examples:

        pipeline schedule list
        pipeline schedule list --json
    """
    workspace = enter_workspace()
    from pipeline.servers import schedules

    found = schedules.list_schedules(workspace)
    if as_json:
        print_json([{**asdict(one), "next": one.next and one.next.isoformat()} for one in found])
    elif found:
        _show(found)
    else:
        console.print("""nothing is scheduled: pipeline schedule --cron "0 3 * * *" """)


@schedule.command()
def pause(flow: Flow = "retrain") -> None:
    """Pause a flow's schedule until it is resumed.

    Examples:

        pipeline schedule pause
        pipeline schedule pause --flow monitor-data
    """
    _activate(flow, False)


@schedule.command()
def resume(flow: Flow = "retrain") -> None:
    """Resume a flow's schedule. Runs that were due meanwhile are not made up for.

    Examples:

        pipeline schedule resume
        pipeline schedule resume --flow monitor-data
    """
    _activate(flow, True)


@schedule.command()
def remove(flow: Flow = "retrain") -> None:
    """Remove a flow's schedule.

    Examples:

        pipeline schedule remove
        pipeline schedule remove --flow monitor-data
    """
    workspace = enter_workspace()
    from pipeline.servers import schedules

    schedules.remove(workspace, flow)
    console.print(f"{flow} is no longer started by a schedule")


def _activate(flow: Literal["retrain", "train", "monitor-data"], active: bool) -> None:
    workspace = enter_workspace()
    from pipeline.servers import schedules

    _show(schedules.activate(workspace, flow, active))


def _show(found: "list[Schedule]") -> None:
    table = Table("flow", "cron", "time zone", "", "next", box=SIMPLE_HEAD)
    for one in found:
        planned = one.next.strftime("%Y-%m-%d %H:%M %Z") if one.next else "never"
        state, upcoming = ("active", planned) if one.active else ("paused", "")
        table.add_row(one.flow, one.rule, one.timezone, state, upcoming)
    console.print(table)
