"""The command that creates a project from this one."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.app import CARE, command, console, enter_workspace


@command(CARE, 50)
def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the project: small letters, digits, hyphens.")],
    directory: Annotated[
        Path | None,
        typer.Argument(metavar="DIRECTORY", help="New or empty. Default: NAME, beside this checkout."),
    ] = None,
    without: Annotated[
        str, typer.Option("--without", metavar="ROOMS", help="Rooms to delete, separated by commas: docs/rooms.md.")
    ] = "",
) -> None:
    """Create a project of your own from this one, under another name and without its history.

    It has the tracked files of this checkout and one commit. This project's history, changelog, measurements, batches,
    own datasets and DVC remotes are left out. Its download cache, package and container image have the new name.
    A room is deleted with its tests, pages, parameters and schedules, and with the rooms that import it.

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
