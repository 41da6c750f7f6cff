"""`pipeline up`, `pipeline ui` and `pipeline schedule`: the servers, and the schedules of the flows."""

import os
import sys
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from pipeline.cli.app import EVERY_DAY, UNATTENDED, command, console, enter_workspace, group, print_json
from pipeline.errors import ParamsError
from pipeline.rooms import find_rooms, find_servers

if TYPE_CHECKING:
    from pipeline.servers.schedules import Schedule

FLOWS = sorted(name for room in find_rooms().values() for name in room.flows)
SERVE = find_servers().get("serve")  # None in a project without that room


def _known(flow: str) -> str:
    if flow not in FLOWS:
        raise typer.BadParameter(f"{flow!r} is not one of {', '.join(FLOWS)}")
    return flow


Flow = Annotated[
    str, typer.Option("--flow", callback=_known, metavar=f"[{'|'.join(FLOWS)}]", help="The flow to start.")
]

schedule = group("schedule", UNATTENDED, 50)


@command(UNATTENDED, 10)
def up(
    only: Annotated[
        Literal["mlflow", "prefect"] | None, typer.Option(help="Start this server alone, without the runner.")
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on. Other addresses than this machine's own require passwords.")
    ] = "127.0.0.1",
    mlflow_port: Annotated[int, typer.Option(min=1, max=65535, help="MLflow's port.")] = 5000,
    prefect_port: Annotated[int, typer.Option(min=1, max=65535, help="Prefect's port.")] = 4200,
    data: Annotated[
        Path | None,
        typer.Option(
            file_okay=False,
            help="Keep the servers' data in this directory from now on; the project's root restores the default.",
        ),
    ] = None,
    allowed_hosts: Annotated[
        str, typer.Option(help="Host names and addresses that clients use for this machine, separated by commas.")
    ] = "",
    serve: Annotated[
        bool, typer.Option("--serve", hidden=SERVE is None, help="Serve the champion, too, on its own port.")
    ] = False,
    serve_port: Annotated[
        int, typer.Option(min=1, max=65535, hidden=SERVE is None, help="Port of the champion's server.")
    ] = SERVE.port if SERVE else 0,
) -> None:
    """Start MLflow, Prefect and the runner of the schedules, and keep them running. Ctrl-C stops all of them.

    Every command of this project uses them while they respond, and works without them on the same records.

    Examples:

        pipeline up
        pipeline up --only mlflow --mlflow-port 5001
        pipeline up --data /srv/pipeline
        pipeline up --host 0.0.0.0 --allowed-hosts gpu-box.lan,192.168.1.20
    """
    if serve and SERVE is None:
        raise typer.BadParameter("--serve: this project has no server of predictions")
    data = data.resolve() if data else None
    workspace = enter_workspace()
    from pipeline import logs
    from pipeline.servers.parts import Listening
    from pipeline.servers.up import run_parts

    logs.configure("up")
    others = {"serve": serve_port} if serve else {}
    run_parts(workspace, Listening(host, mlflow_port, prefect_port, allowed_hosts, others), only=only, data=data)


@command(EVERY_DAY, 50)
def ui(port: Annotated[int, typer.Option(help="Local port.")] = 5000) -> None:
    """Serve MLflow's pages: runs, charts, the registry. Ctrl-C stops it.

    If a server of MLflow is already in use, its address is printed instead.

    Examples:

        pipeline ui
        pipeline ui --port 5001
    """
    workspace = enter_workspace()
    from pipeline.params import PARAMS_FILE, load_params
    from pipeline.tracking.experiments import read_link
    from pipeline.tracking.store import locate

    store = locate(workspace)
    if store.is_server:
        console.print(f"MLflow is at {store}")
        return
    address = f"http://127.0.0.1:{port}"
    console.print(f"MLflow's pages: {address} (in some seconds; Ctrl-C ends them)")
    with suppress(ParamsError):  # the pages do not need it
        name = load_params(workspace / PARAMS_FILE).dataset.name
        if store.database and (table := read_link(store.database, name)):
            console.print(f"trainings on {name}: {address}/{table}", soft_wrap=True)
    os.execv(sys.executable, [sys.executable, "-m", "pipeline.servers.mlflow_server", "127.0.0.1", str(port)])


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
    """Resume a flow's schedule. Runs that were due meanwhile are skipped.

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


def _activate(flow: str, active: bool) -> None:
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
