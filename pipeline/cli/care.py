"""The commands that keep a project well over months: what nothing needs is deleted."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Column, Table
from rich.text import Text

from pipeline.cli.app import app, console, enter_workspace

if TYPE_CHECKING:
    from pipeline.flows.garbage import Garbage

SHOWN = 20  # runs and models by name


@app.command()
def gc(
    keep_runs: Annotated[int, typer.Option(min=0, metavar="N", help="Keep the newest N trainings and flow runs.")] = 20,
    days: Annotated[
        int, typer.Option(min=1, metavar="N", help="Keep Prefect's history, and checkpoints, of N days.")
    ] = 30,
    yes: Annotated[bool, typer.Option("--yes", help="Delete without asking.")] = False,
) -> None:
    """Delete what nothing needs any more, after showing what that is.

    What a registered version, the history of the aliases, the ledger of judgements, a branch, a tag or the workspace
    needs always stays: every version can be verified, promoted, rolled back to and reproduced as before.
    The rest goes: MLflow's runs and models with their files, objects of DVC's cache, Prefect's history.
    Without a terminal to ask at, and without --yes, it only shows.

    Nothing else may be running here. Cut off in the middle, it can simply be run again.

    Examples:

        pipeline gc
        pipeline gc --keep-runs 100 --days 90
        pipeline gc --yes
    """
    workspace = enter_workspace()
    from pipeline.flows.garbage import delete_all, review_all

    with console.status("looking at what is needed"), review_all(workspace, keep_runs=keep_runs, days=days) as garbage:
        pass
    if garbage.is_empty:
        console.print("nothing to delete: all that is here is needed")
        return
    _show(garbage)
    if not yes and not sys.stdin.isatty():
        console.print("nothing was deleted: pipeline gc --yes")
        return
    if not yes and not typer.confirm("Delete all of it for good?"):
        console.print("nothing was deleted")
        return
    # Looked at anew: the answer may have taken an hour, in which others worked.
    with console.status("deleting"), review_all(workspace, keep_runs=keep_runs, days=days) as garbage:
        delete_all(garbage)
    console.print("deleted")


def _show(garbage: "Garbage") -> None:
    from pipeline.flows.garbage import total

    retention, prefect = garbage.retention, garbage.prefect
    table = Table("what", Column("number", justify="right"), Column("size", justify="right"), box=SIMPLE_HEAD)
    rows = (
        ("MLflow runs", len(retention.runs), sum(run.bytes for run in retention.runs)),
        ("MLflow models", len(retention.models), sum(model.bytes for model in retention.models)),
        ("objects of DVC's cache", len(garbage.objects), total(garbage.objects)),
        ("entries of DVC's run-cache", len(garbage.cached_runs), total(garbage.cached_runs)),
        ("leftovers in .pipeline", len(garbage.files), total(garbage.files)),
        ("Prefect flow runs", prefect.flow_runs, None),
        ("their log lines", prefect.logs, None),
        ("their artifacts", prefect.artifacts, None),
        ("Prefect events", prefect.events, None),
    )
    for what, number, size in rows:
        if number:
            table.add_row(what, f"{number:,}", "" if size is None else as_size(size))
    console.print(table)
    named = [*retention.runs, *retention.models]
    for gone in named[:SHOWN]:
        console.print(Text(f"  {gone.id}  {gone.name}  {as_size(gone.bytes)}"), soft_wrap=True)
    if len(named) > SHOWN:
        console.print(f"  and {len(named) - SHOWN:,} more")


def as_size(count: int) -> str:
    """Bytes in the largest unit that fills."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"
