"""Shared by all commands: the application, the console, the checkout."""

import json
import os
from pathlib import Path
from typing import Any

import typer

from pipeline.console import SafeConsole
from pipeline.redaction import CONTROL
from pipeline.workspace import find_workspace

app = typer.Typer(
    name="pipeline",
    help="Train, judge and register an image classifier with DVC, Prefect, MLflow and Great Expectations.",
    epilog="First run without a download: set dataset.name: tiny in params.yaml, then pipeline run",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
console = SafeConsole()


def enter_workspace() -> Path:
    """Change into the root of the checkout that the current directory belongs to."""
    workspace = find_workspace()
    os.chdir(workspace)
    return workspace


def print_json(content: Any) -> None:
    """Print plain JSON for programs, without the terminal's colours and line breaks."""
    text = json.dumps(content, indent=2, ensure_ascii=False)  # which escapes the control characters of ASCII
    print(CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text))
