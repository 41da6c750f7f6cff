"""The commands of the room `serving`."""

from typing import Annotated
from urllib.parse import quote

import typer

from pipeline.cli.app import UNATTENDED, command, console, enter_workspace
from pipeline.extras import require_packages
from pipeline.serving import score_command  # noqa: F401  importing a module adds its commands
from pipeline.serving.errors import ServeError

PACKAGES = ("uvicorn", "httptools", "multipart", "prometheus_client")


@command(UNATTENDED, 50)
def serve(
    version: Annotated[
        str | None, typer.Option(metavar="NUMBER", help="Serve this version; without it, follow the champion.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port.")] = 5002,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Processes that answer.")] = 1,
    threads: Annotated[int, typer.Option(min=1, max=64, help="Threads of the model in each process.")] = 2,
    allowed_hosts: Annotated[str, typer.Option(help="More names of this machine, separated by commas.")] = "",
) -> None:
    """Serve the champion over HTTP, and follow its promotions and rollbacks without a restart.

    It answers `POST /v1/predict` with JSON arrays, an .npy array or pictures, and MLflow's `/invocations`. Ctrl-C ends
    it, after the requests in flight.

    Examples:

        pipeline serve
        pipeline serve --version 3 --port 5003
        pipeline serve --host 0.0.0.0 --allowed-hosts gpu-box.lan --workers 2
    """
    workspace = enter_workspace()
    require_packages("`pipeline serve`", *PACKAGES)
    if version is not None and not version.isdigit():
        raise ServeError(f"cannot serve {version}", expected="the number of a version", remedy="pipeline versions")
    from pipeline import logs
    from pipeline.allowed_hosts import ANY_ADDRESS, own_names
    from pipeline.params import load_params
    from pipeline.serving import supervisor
    from pipeline.serving.keys import load_or_create_key
    from pipeline.serving.params import ServeParams
    from pipeline.serving.settings import ServeSettings
    from pipeline.workspace import main_repository, make_state

    own_names(host, allowed_hosts)  # refuses names that cannot be used, before anything starts
    params, root = load_params().section(ServeParams), main_repository(workspace)
    settings = ServeSettings(
        root=root,
        workspace=workspace,
        params=params,
        version=version,
        host=host,
        port=port,
        workers=workers,
        threads=threads,
        allowed_hosts=allowed_hosts,
    )
    make_state(root)
    settings.folder.mkdir(mode=0o700, exist_ok=True)
    key = load_or_create_key(root)
    logs.configure("serve")
    what = f"version {version}" if version else "the champion"
    console.print(f"serving {what} at http://{host}:{port}, Ctrl-C ends it", soft_wrap=True)
    if console.is_terminal:  # not in a log. A browser does not send what is behind `#`
        own = "localhost" if host in ANY_ADDRESS else host
        page = f"http://{own}:{port}/#key={quote(key, safe='')}"
        console.print(f"to try it, with the API key for corrections: {page}", soft_wrap=True)
    supervisor.serve(settings)
