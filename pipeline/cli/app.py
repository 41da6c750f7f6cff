"""Shared by all commands: the application, the order of its help, the console, the checkout."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from pipeline.redaction import CONTROL
from pipeline.safe_console import SafeConsole
from pipeline.workspace import PROJECT_FILE, describe_project, find_workspace

PANELS = EVERY_DAY, REGISTRY, UNATTENDED, CARE = "Every day", "The registry", "Unattended", "Care"  # of the help

Command = TypeVar("Command", bound=Callable[..., Any])


class _OrderedGroup(typer.core.TyperGroup):
    """List the commands by panel and place: rooms add theirs in the order of their names."""

    def list_commands(self, ctx: Any) -> list[str]:
        return sorted(super().list_commands(ctx), key=_places.__getitem__)


app = typer.Typer(
    name="pipeline",
    cls=_OrderedGroup,
    help="Train, judge and register an image classifier with DVC, Prefect, MLflow and Great Expectations.",
    epilog="First run without a download: set dataset.name: tiny in params.yaml, then pipeline run",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
console = SafeConsole()


def _print_version(wanted: bool) -> None:
    if wanted:
        from pipeline.git import describe_commit

        commit = describe_commit(PROJECT_FILE.parent)
        print(describe_project() + (f" (commit {commit})" if commit else ""))
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and the commit."),
    ] = False,
) -> None:
    """Hold the options of the command line itself."""


_places: dict[str, tuple[int, int]] = {}  # command: number of its panel, place in the panel


def command(panel: str, place: int, **options: Any) -> Callable[[Command], Command]:
    """Add a function to the command line. Its name is the command's.

    Args:
        panel: the panel of the help that shows it.
        place: where in that panel; gaps between these numbers leave space for others.
        options: of `typer.Typer.command`.
    """

    def add(function: Command) -> Command:
        _places[function.__name__.replace("_", "-")] = PANELS.index(panel), place
        return app.command(rich_help_panel=panel, **options)(function)

    return add


def group(name: str, panel: str, place: int) -> typer.Typer:
    """Add a command that has commands of its own."""
    _places[name] = PANELS.index(panel), place
    made = typer.Typer(invoke_without_command=True, rich_markup_mode="markdown")
    app.add_typer(made, name=name, rich_help_panel=panel)
    return made


def enter_workspace() -> Path:
    """Change into the root of the checkout that the current directory belongs to."""
    workspace = find_workspace()
    os.chdir(workspace)
    return workspace


def print_json(content: Any) -> None:
    """Print plain JSON for programs, without the terminal's colours and line breaks."""
    text = json.dumps(content, indent=2, ensure_ascii=False)  # which escapes the control characters of ASCII
    print(CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text))
