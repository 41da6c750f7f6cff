"""The command that creates a project from this one."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.app import CARE, command, console, enter_workspace


@command(CARE, 50)
def new(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Name of the project: lower-case letters, digits, hyphens.")
    ],
    directory: Annotated[
        Path | None,
        typer.Argument(metavar="DIRECTORY", help="New or empty directory. Default: NAME, next to this checkout."),
    ] = None,
    without: Annotated[
        str,
        typer.Option(
            "--without", metavar="ROOMS", help="Optional parts to leave out, separated by commas: docs/rooms.md."
        ),
    ] = "",
) -> None:
    """Create your own project from this one, with a new name and without its history.

    The new project has the tracked files of this checkout, in one commit. It does not have this project's history,
    changelog, measurements, batches, own datasets, corrections and DVC remotes. The distribution package, the download
    cache and the container image get the new name; the Python package and the command stay `pipeline`.

    --without deletes rooms, the optional parts of this project, with their tests, docs, parameters and schedules. Rooms
    that import a deleted room are deleted too.

    Examples:

        pipeline new parts
        pipeline new parts ~/projects/parts --without servers,notices
    """
    directory = directory.expanduser().resolve() if directory else None
    workspace = enter_workspace()
    from pipeline.scaffolding.new_project import create_project

    rooms = [room.strip() for room in without.split(",") if room.strip()]
    created = create_project(workspace, name, directory, rooms)
    console.print(f"{created.path}: {created.files:,} files, commit {created.commit[:7]}", soft_wrap=True)
    if created.without:
        console.print(f"without the rooms {', '.join(created.without)}", soft_wrap=True)
    console.print(f"next: cd {shlex.quote(str(created.path))} && make setup && make run", soft_wrap=True)
