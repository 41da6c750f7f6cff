"""The command line, without what it starts."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from pipeline.cli.__main__ import app
from pipeline.cli.app import PANELS
from pipeline.git import describe_commit, git_or_none

REPOSITORY = Path(__file__).resolve().parents[2]
TOP = get_command(app).commands  # type: ignore[attr-defined]
COMMANDS = sorted([*TOP, *(f"{name} {each}" for name, group in TOP.items() for each in getattr(group, "commands", ()))])


@pytest.mark.parametrize(
    ("arguments", "until", "force"),
    [
        ([], None, None),
        (["--force"], None, "all"),
        (["--force", "train"], None, "train"),
        (["--force=train"], None, "train"),
        (["--force", "--until", "split"], "split", "all"),
        (["--until", "split", "--force"], "split", "all"),
    ],
)
def test_force_may_stand_alone(arguments: list[str], until: str | None, force: str | None) -> None:
    context = get_command(app).commands["run"].make_context("run", arguments)  # type: ignore[attr-defined]
    assert context.params == {"until": until, "force": force, "if_busy": "leave"}


def test_the_help_lists_the_panels_in_order_with_the_core_commands_in_order() -> None:
    text = CliRunner().invoke(app, ["--help"]).output
    found = [panel for panel in PANELS if f"   {panel} " in text]
    assert [text.index(f"   {panel} ") for panel in found] == sorted(text.index(f"   {panel} ") for panel in found)
    ordered = ["run", "status", "params", "schema", "predict", "versions", "compare", "history", "promote", "rollback"]
    assert [text.index(f"  {name} ") for name in ordered] == sorted(text.index(f"  {name} ") for name in ordered)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_with_an_example(command: str) -> None:
    result = CliRunner().invoke(app, [*command.split(), "--help"])
    assert result.exit_code == 0
    lines = [line.strip() for line in result.output.splitlines() if "Usage: " not in line]
    examples = [line for line in lines if f"pipeline {command}" in line]
    assert examples or "Commands" in lines  # a group lists its commands
    assert all(example.count("pipeline ") == 1 for example in examples)  # each on its own line


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_the_help_describes_each_value_without_types_and_draws_no_lines_in_a_pipe(command: str) -> None:
    output = CliRunner().invoke(app, [*command.split(), "--help"]).output
    assert not re.search(r"<(str|int|float|bool|path|file|directory)|TEXT|INTEGER|[│╭─]", output)
    found: Any = get_command(app)
    for name in command.split():
        found = found.commands[name]
    assert [each.name for each in found.params if not each.help and not each.hidden] == []


def test_the_version_is_that_of_the_project_with_its_commit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    monkeypatch.chdir(tmp_path)  # also outside a checkout
    printed = CliRunner().invoke(app, ["--version"], catch_exceptions=False)
    assert printed.exit_code == 0
    assert printed.output.startswith(f"{project['name']} {project['version']}")
    if commit := git_or_none(REPOSITORY, "rev-parse", "HEAD"):
        assert f" (commit {commit[:10]}" in printed.output
    assert describe_commit(tmp_path) == ""


def test_an_error_draws_no_lines_in_a_pipe() -> None:
    result = CliRunner().invoke(app, ["versions", "--modl", "mnist"])
    assert result.exit_code == 2
    assert "No such option: --modl" in result.output
    assert not re.search("[│╭─]", result.output)


def test_help_imports_no_heavy_package() -> None:
    heavy = "{'mlflow', 'prefect', 'dvc', 'tensorflow', 'numpy', 'pandas', 'pyarrow', 'pydantic', 'great_expectations'}"
    program = f"import sys, pipeline.cli.__main__; print({heavy} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


def test_schema_is_json() -> None:
    schema = json.loads(CliRunner().invoke(app, ["schema"]).output)
    assert {"dataset", "train", "presets"} <= schema["properties"].keys()


def test_params_are_shown_with_the_presets_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY / "pipeline" / "flows")
    params = json.loads(CliRunner().invoke(app, ["params"]).output)
    assert params["train"]["settings"]["epochs"] >= 1


def test_outside_a_checkout_the_error_says_what_to_do(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pipeline.cli", "run"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "this is not a pipeline checkout" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_file_that_cannot_be_read_is_an_error_in_words(tmp_path: Path) -> None:
    (tmp_path / "dvc.yaml").touch()
    (tmp_path / "params.yaml").mkdir()
    command = [sys.executable, "-m", "pipeline.cli", "params"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "cannot read or write params.yaml" in result.stderr
    assert "Traceback" not in result.stderr
