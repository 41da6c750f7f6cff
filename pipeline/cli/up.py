"""`pipeline up`: the project's servers, in the foreground."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from pipeline.cli.app import app, enter_workspace


@app.command()
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
) -> None:
    """Start MLflow, Prefect and the runner of the schedules, and keep them running. Ctrl-C stops all of them.

    Every command of this project uses them while they respond, and works without them on the same records.

    Examples:

        pipeline up
        pipeline up --only mlflow --mlflow-port 5001
        pipeline up --data /srv/fashion-mnist
        pipeline up --host 0.0.0.0 --allowed-hosts gpu-box.lan,192.168.1.20
    """
    data = data.resolve() if data else None
    workspace = enter_workspace()
    from pipeline import logs
    from pipeline.servers.parts import Listening
    from pipeline.servers.up import serve

    logs.configure("up")
    serve(workspace, Listening(host, mlflow_port, prefect_port, allowed_hosts), only=only, data=data)
