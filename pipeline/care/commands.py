"""Commands for maintenance: garbage collection, backup and restore, upgrades."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Column, Table
from rich.text import Text

from pipeline.cli.app import CARE, command, console, enter_workspace

if TYPE_CHECKING:
    from pipeline.care.gc import Garbage

SHOWN = 20  # runs and models by name


@command(CARE, 10)
def gc(
    keep_runs: Annotated[int, typer.Option(min=0, metavar="N", help="Keep the newest N trainings and flow runs.")] = 20,
    days: Annotated[
        int, typer.Option(min=1, metavar="N", help="Keep Prefect's flow runs, and checkpoints, of the last N days.")
    ] = 30,
    yes: Annotated[bool, typer.Option("--yes", help="Delete without asking.")] = False,
) -> None:
    """Delete unused runs, models, cache objects and flow runs, after listing them.

    Everything that a registered version, the alias history, the ledger of judgements, a branch, a tag or the workspace
    needs is kept: every version can still be verified, promoted, rolled back to and reproduced.
    The rest is deleted: MLflow's runs and models with their files, objects of DVC's cache, Prefect's flow runs.
    Without a terminal, and without --yes, it only lists.

    No run, training, retraining or reproduction may be active; `pipeline up` may. After a kill, run it again.

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
        console.print("nothing to delete: everything is in use")
        return
    _show(garbage)
    if not yes and not sys.stdin.isatty():
        console.print("nothing was deleted: pipeline gc --yes")
        return
    if not yes and not typer.confirm("Delete all of it permanently?"):
        console.print("nothing was deleted")
        return
    # Review again: before the answer, other processes may have worked for an hour.
    with console.status("deleting"), review_all(workspace, keep_runs=keep_runs, days=days) as garbage:
        delete_all(garbage)
    console.print("deleted")


@command(CARE, 20)
def backup(
    target: Annotated[
        Path, typer.Argument(metavar="DIRECTORY|FILE", help="Target directory, or a file ending in .tar.gz.")
    ],
) -> None:
    """Write MLflow's database and files, and Prefect's database, into one archive. Runs may continue meanwhile.

    The archive contains every file's digest, which a restore checks. Nothing is overwritten.
    It does not contain DVC's cache (`dvc push` is its backup), nor the content of git. A team's PostgreSQL and buckets
    have their own backup tools: the command names them.

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


@command(CARE, 30)
def restore(
    source: Annotated[Path, typer.Argument(metavar="FILE", help="An archive of `pipeline backup`.")],
    replace: Annotated[bool, typer.Option("--replace", help="Move existing files aside first.")] = False,
    prefect: Annotated[
        bool, typer.Option("--prefect", help="Also restore Prefect's database, which all your projects may share.")
    ] = False,
) -> None:
    """Restore an archive of `pipeline backup`, in the original folder or in another one.

    Every file's digest is checked before anything changes. Existing files are replaced only with --replace, and moved
    aside even then. Stop `pipeline up` and everything else first.

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
        console.print(f"replaced files: {place}", soft_wrap=True)
    console.print("check the result: pipeline verify")


@command(CARE, 40)
def upgrade() -> None:
    """Migrate the databases of MLflow and Prefect to the installed versions. The originals are kept.

    The migrations run on copies, which replace the originals only if no record was lost. Stop `pipeline up` and
    everything else first. A database of a newer version is refused. For a team's PostgreSQL:
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
                f"original: {database.kept}",
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
    for unneeded in named[:SHOWN]:
        line = f"  {unneeded.id}  {unneeded.name}  {as_size(unneeded.bytes)}"
        console.print(Text(line), soft_wrap=True)
    if len(named) > SHOWN:
        console.print(f"  and {len(named) - SHOWN:,} more")


def as_size(count: int) -> str:
    """Format a number of bytes in the largest unit of which there is at least one."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"
