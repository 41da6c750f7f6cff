"""Shared by all commands: the application, the order of its help, the console, the checkout."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from pipeline.redaction import CONTROL
from pipeline.safe_console import PlainConsole, SafeConsole
from pipeline.workspace import PROJECT_FILE, describe_project, find_workspace

PANELS = EVERY_DAY, REGISTRY, UNATTENDED, CARE = "Every day", "The registry", "Unattended", "Care"  # of the help

Command = TypeVar("Command", bound=Callable[..., Any])


class PlainCommand(typer.core.TyperCommand):
    """A command whose help has no names of types, and in a pipe no lines around it."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the parameters."""
        return _name_values(super().get_params(ctx))

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the help."""
        _prepare_help(self)
        super().format_help(ctx, formatter)


class _Group(typer.core.TyperGroup):
    """Like PlainCommand, with commands of its own."""

    def get_params(self, ctx: Any) -> list[Any]:
        return _name_values(super().get_params(ctx))

    def format_help(self, ctx: Any, formatter: Any) -> None:
        _prepare_help(self)
        super().format_help(ctx, formatter)


def _name_values(params: list[Any]) -> list[Any]:
    """Name values in the help: those of options by the last word of the option. Choices are listed."""
    for each in params:
        if each.type_descriptor.is_choice:
            continue
        if each.param_type_name == "argument":
            each.display_type_rich = lambda ctx: None  # its name is shown
        elif each.metavar is None:
            each.metavar = "" if each.is_flag else each.name.rpartition("_")[2].upper()
    return params


def _prepare_help(command: Any) -> None:
    """Have Typer print the help without lines in pipes, and each example on its own line.

    Examples that follow the first sentence would lose their indent, and be joined, without a later line that has none.
    """
    _draw_no_lines_in_pipes()
    command.help = f"{command.help or ''}\n\n<!-- -->"  # a line without indent, which is not shown


def _draw_no_lines_in_pipes() -> None:
    """Have Typer print help and errors like this project's tables. It has no setting for this."""
    from typer import rich_utils  # takes long to import

    vars(rich_utils)["Console"] = PlainConsole


class _OrderedGroup(_Group):
    """List the commands by panel and place: rooms add theirs in the order of their names."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except Exception as error:
            if hasattr(error, "format_message"):  # Typer prints it
                _draw_no_lines_in_pipes()
            raise

    def list_commands(self, ctx: Any) -> list[str]:
        return sorted(super().list_commands(ctx), key=_places.__getitem__)


class _Typer(typer.Typer):
    def command(self, name: str | None = None, **options: Any) -> Callable[[Command], Command]:
        return super().command(name, **{"cls": PlainCommand, **options})


app = _Typer(
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
    made = _Typer(cls=_Group, invoke_without_command=True, rich_markup_mode="markdown")
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
