"""The entry point of `pipeline`, and of `python -m pipeline.cli`."""

import gc
import sys
from typing import Any

# Importing a module of commands adds them to the application.
from pipeline.cli import (  # noqa: F401
    care,
    compare,
    lineage,
    monitor,
    notify,
    predict,
    registry,
    retrain,
    schedule,
    up,
    work,
)
from pipeline.cli.app import app
from pipeline.console import SafeConsole
from pipeline.errors import PipelineError
from pipeline.process import exit_now
from pipeline.proxies import bypass_proxy

PANELS = {  # of `pipeline --help`, each with its commands in the order of their usual first use
    "Every day": ("run", "status", "params", "schema", "ui", "predict", "add-data"),
    "The registry": ("versions", "compare", "history", "promote", "rollback", "lineage", "reproduce", "verify", "sync"),
    "Unattended": ("up", "schedule", "retrain", "monitor", "notify"),
    "Care": ("gc", "backup", "restore", "upgrade"),
}


def _arrange() -> None:
    """Assign the commands to their panels and sort them; they are registered in the order of their modules' names."""
    panels = {name: panel for panel, names in PANELS.items() for name in names}
    commands: list[Any] = [*app.registered_commands, *app.registered_groups]
    for command in commands:
        command.rich_help_panel = panels[_name(command)]
    app.registered_commands.sort(key=lambda command: list(panels).index(_name(command)))


def _name(command: Any) -> str:
    return str(command.name or command.callback.__name__.replace("_", "-"))


_arrange()


def main() -> None:
    """Run the command line. Errors that the user can fix are printed without a traceback."""
    bypass_proxy()
    try:
        app()
    except (PipelineError, OSError) as error:
        from pipeline.stages.entrypoint import explain

        told = explain(error) if isinstance(error, OSError) else error
        SafeConsole(stderr=True).print(str(told), style="red", soft_wrap=True)
        sys.exit(told.exit_code)
    finally:
        gc.freeze()  # or the interpreter searches all of MLflow and Prefect for cycles at its end: half a second
        exit_now()


if __name__ == "__main__":
    main()
