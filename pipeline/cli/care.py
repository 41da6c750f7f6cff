"""The commands that keep a project well over months: garbage, backup and restore, upgrades."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Column, Table
from rich.text import Text

from pipeline.cli.app import app, console, enter_workspace

if TYPE_CHECKING:
    from pipeline.care.gc import Garbage

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
    from pipeline.care.gc import delete_all, review_all

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


@app.command()
def backup(
    target: Annotated[Path, typer.Argument(metavar="DIRECTORY|FILE", help="Where to; a file ends in .tar.gz.")],
) -> None:
    """Write MLflow's database and files, and Prefect's database, into one archive. Runs may go on meanwhile.

    Every file's digest is in the archive, and compared when it is restored. Nothing is overwritten.
    DVC's cache is not in it (`dvc push` is its backup), nor is what git holds. A team's PostgreSQL and buckets have
    means of their own: the command says which.

    Examples:

        pipeline backup /mnt/backups
        pipeline backup before-the-move.tar.gz
    """
    target = target.resolve()
    workspace = enter_workspace()
    from pipeline.care.backup import back_up

    with console.status("copying"):
        made = back_up(workspace, target)
    console.print(f"{made.path}: {made.files:,} files, {as_size(made.bytes)}", soft_wrap=True)
    for other in made.left_out:
        console.print(f"not in it: {other}")


@app.command()
def restore(
    source: Annotated[Path, typer.Argument(metavar="FILE", help="An archive of `pipeline backup`.")],
    replace: Annotated[bool, typer.Option("--replace", help="Put aside what is here.")] = False,
    prefect: Annotated[
        bool, typer.Option("--prefect", help="Prefect's database too, which all projects of yours may share.")
    ] = False,
) -> None:
    """Put back what `pipeline backup` wrote, in this folder or in one of another path.

    Every file is compared with its digest before anything changes. What is here is replaced only with --replace, and
    kept aside even then. `pipeline up` must not be running, nor anything else.

    Examples:

        pipeline restore /mnt/backups/shop-20261124T030000Z.tar.gz
        pipeline restore before-the-move.tar.gz --replace --prefect
    """
    source = source.resolve()
    workspace = enter_workspace()
    from pipeline.care.backup import restore as put_back

    with console.status("comparing digests"):
        restored = put_back(workspace, source, replace=replace, with_prefect=prefect)
    console.print(f"restored {restored.files:,} files as of {restored.made} UTC")
    for place in restored.aside:
        console.print(f"what was here before: {place}", soft_wrap=True)
    console.print("see that all is well: pipeline verify")


@app.command()
def upgrade() -> None:
    """Bring the databases of MLflow and Prefect to the versions that are installed; each is kept as it was.

    The migrations run on copies, which take the originals' places only when every record is there. Nothing else may
    be running, not even `pipeline up`. A database of a newer version is refused. For a team's PostgreSQL:
    pg_dump, then `mlflow db upgrade URI` and `prefect server database upgrade`.

    Example:

        pipeline upgrade
    """
    workspace = enter_workspace()
    from pipeline.care.upgrade import upgrade as bring_up

    with console.status("comparing schemas"):
        done = bring_up(workspace)
    for database in done:
        if database.kept:
            console.print(
                f"{database.database}: {database.former} to {database.now}, for {database.tool}; "
                f"as it was: {database.kept}",
                soft_wrap=True,
            )
        else:
            console.print(f"{database.database}: nothing to do, it is {database.tool}'s", soft_wrap=True)
    if not done:
        console.print("there is no database yet: pipeline run")


def _show(garbage: "Garbage") -> None:
    from pipeline.care.gc import total

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
