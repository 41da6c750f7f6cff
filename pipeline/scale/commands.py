"""`pipeline scale`: start a cluster, join one, and show its workers."""

import os
import signal
import threading
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from pipeline.cli.app import UNATTENDED, console, enter_workspace, group, print_json
from pipeline.errors import WorkspaceError
from pipeline.extras import require_packages
from pipeline.partitions import count_processors
from pipeline.process_lifetime import signals_as_exceptions
from pipeline.scale import train_command  # noqa: F401  importing it adds the command
from pipeline.scale.executor import ADDRESS, require_tls

if TYPE_CHECKING:
    from pipeline.scale.client import WorkerFacts

PORT = 8786
Workers = Annotated[int | None, typer.Option(min=0, metavar="N", help="Workers to start; by default, one a processor.")]

scale = group("scale", UNATTENDED, 60)


@scale.callback()
def show_help(context: typer.Context) -> None:
    """Compute data stages on the workers of a Dask cluster: several processes or machines.

    To use a cluster, set PIPELINE_DASK to the address of its scheduler.
    To use processes of this machine only, set scale.workers in params.yaml.
    """
    if context.invoked_subcommand is None:
        console.print(context.get_help())


@scale.command()
def up(
    workers: Workers = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on. Other machines can join if it is one of this machine's.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The scheduler's port.")] = PORT,
) -> None:
    """Start a scheduler and workers on this machine, and keep them running. Ctrl-C stops all of them.

    All connections use TLS with the certificate in .pipeline/dask/, which is made once. Who has it can execute code.

    Examples:

        pipeline scale up
        pipeline scale up --host 10.0.0.5 --workers 8
    """
    workspace = enter_workspace()
    require_packages("`pipeline scale up`", "distributed")
    from pipeline.scale.certificates import ensure_certificate, find_directory
    from pipeline.scale.processes import start_cluster

    count = count_processors() if workers is None else workers
    with signals_as_exceptions():
        try:
            cluster = start_cluster(count, ensure_certificate(), host=host, port=port)
        except OSError as error:
            raise WorkspaceError(
                f"cannot listen on {host}, port {port}",
                found=error.strerror or str(error),
                remedy="choose another: pipeline scale up --port 0 finds a free port",
            ) from error
        with cluster:
            address = cluster.scheduler_address
            console.print(f"scheduler and {_count(count)} at {address}. Ctrl-C stops them", soft_wrap=True)
            console.print(f"to use them: export {ADDRESS}={address}", soft_wrap=True)
            console.print(
                f"to join from another machine: copy {find_directory()} and run in {workspace}: "
                f"pipeline scale worker {address}",
                soft_wrap=True,
            )
            _wait_for_signal()


@scale.command()
def worker(
    address: Annotated[str, typer.Argument(metavar="tls://HOST:PORT", help="Of the scheduler.")],
    workers: Workers = None,
) -> None:
    """Start workers for the scheduler of another machine. They end with it, or with Ctrl-C.

    This needs its certificate in .pipeline/dask/, and the same checkout, packages and files at the same path.

    Example:

        pipeline scale worker tls://10.0.0.5:8786
    """
    enter_workspace()
    require_packages("`pipeline scale worker`", "distributed")
    require_tls(address)
    from pipeline.scale.certificates import read_certificate
    from pipeline.scale.processes import join

    count = count_processors() if workers is None else workers
    with signals_as_exceptions():
        join(address, count, read_certificate(), lambda: console.print(f"{_count(count)} joined {address}"))
    console.print(f"the scheduler at {address} ended, and with it the workers")


@scale.command()
def status(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show the workers of the cluster in PIPELINE_DASK, and whether they can work for this checkout.

    Examples:

        pipeline scale status
        pipeline scale status --json
    """
    enter_workspace()
    address = os.environ.get(ADDRESS)
    if not address:
        raise WorkspaceError(
            "no cluster is configured",
            expected=f"{ADDRESS}=tls://HOST:PORT",
            found="scale.workers in params.yaml is for this machine only, and each command starts its own workers",
            remedy="pipeline scale up",
        )
    require_packages(ADDRESS, "distributed")
    require_tls(address)
    from pipeline.scale.client import connect, inspect_workers

    workers = inspect_workers(connect(address))
    if as_json:
        print_json([_describe(worker) for worker in workers])
        return
    table = Table("worker", "threads", "state", box=SIMPLE_HEAD)
    for one in workers:
        state = f"{one.problem}: {'; '.join(one.differences)}" if one.problem else "ready"
        table.add_row(one.address, str(one.threads), Text(state, "red" if one.problem else "green"))
    console.print(table if workers else f"{address} has no workers")


def _count(workers: int) -> str:
    return f"{workers} worker{'' if workers == 1 else 's'}"


def _describe(worker: "WorkerFacts") -> dict[str, Any]:
    return {
        "address": worker.address,
        "threads": worker.threads,
        "ready": not worker.problem,
        "problem": worker.problem,
        "differences": list(worker.differences),
    }


def _wait_for_signal() -> None:
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C would interrupt the end of the workers
