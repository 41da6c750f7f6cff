"""The files that a code host reads: valid by their schemas, and their commands exist. docs/ci.md describes them."""

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from pipeline.cli.__main__ import app
from pipeline.files import parse_yaml
from tests.conftest import REPOSITORY, create_project

WORKFLOWS = sorted(REPOSITORY.glob(".github/workflows/*.yml"))
ACTIONS = sorted(REPOSITORY.glob(".github/actions/*/action.yml"))
DEVCONTAINER = REPOSITORY / ".devcontainer/devcontainer.json"
SCHEMAS = {
    "github-workflows": WORKFLOWS,
    "github-actions": ACTIONS,
    "github-issue-forms": [path for path in REPOSITORY.glob(".github/ISSUE_TEMPLATE/*.yml") if path.stem != "config"],
    "github-issue-config": [REPOSITORY / ".github/ISSUE_TEMPLATE/config.yml"],
    "gitlab-ci": [REPOSITORY / ".gitlab-ci.yml"],
    "citation-file-format": list(REPOSITORY.glob("CITATION.cff")),  # a new project has none
}
MAKE = re.compile(r"\bmake ((?:[\w./$\"-]+(?:=\S+)? ?)+)")
PIPELINE = re.compile(r"\bpipeline(?:\.cli)? ([\w-]+)")


def steps(path: Path) -> Iterator[dict[str, Any]]:
    """The steps of all jobs of a workflow, or of an action."""
    content = parse_yaml(path.read_bytes())
    for job in content.get("jobs", {"": content.get("runs")}).values():
        yield from job["steps"]


def scripts() -> dict[str, str]:
    """The shell commands of the workflows, the actions, GitLab's jobs, the container and the hooks."""
    found = {
        f"{path.name}:{number}": step["run"]
        for path in (*WORKFLOWS, *ACTIONS)
        for number, step in enumerate(steps(path))
        if "run" in step
    }
    for name, job in yaml.safe_load((REPOSITORY / ".gitlab-ci.yml").read_text()).items():
        if isinstance(job, dict):
            commands = [*job.get("before_script", ()), *job.get("script", ())]
            found[f"gitlab:{name}"] = "\n".join(commands).replace("$CI_JOB_NAME", name.replace(".make", "lint"))
    for hook in yaml.safe_load((REPOSITORY / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]:
        found[f"hook:{hook['id']}"] = hook["entry"]
    found["devcontainer"] = read_devcontainer()["postCreateCommand"]
    found |= {path.name: path.read_text() for path in REPOSITORY.glob(".ci/*") if path.suffix == ""}
    return found


def read_devcontainer() -> dict[str, Any]:
    """The description of the container, without the comments that its format allows."""
    lines = DEVCONTAINER.read_text().splitlines()
    return parse_yaml("\n".join(line for line in lines if not line.startswith("//")))


@pytest.mark.parametrize("schema", SCHEMAS)
def test_files_follow_their_schema(schema: str) -> None:
    if files := SCHEMAS[schema]:
        check("check-jsonschema", "--builtin-schema", f"vendor.{schema}", *map(str, files))


def test_every_job_has_a_time_limit_and_the_linter_finds_nothing() -> None:
    check("check-jsonschema", "--builtin-schema", "custom.github-workflows-require-timeout", *map(str, WORKFLOWS))
    check("zizmor", "--offline", "--quiet", ".github")


def check(program: str, *arguments: str) -> None:
    command = [str(Path(sys.executable).with_name(program)), *arguments]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_a_workflow_may_only_read_and_a_job_that_writes_runs_no_code_of_a_pull_request() -> None:
    for path in WORKFLOWS:
        content = parse_yaml(path.read_bytes())
        triggers = content["on"]
        assert content["permissions"] == {"contents": "read"}
        assert "concurrency" in content
        assert "pull_request_target" not in triggers
        for job in content["jobs"].values():
            if "write" in job.get("permissions", {}).values() and "pull_request" in triggers:
                assert not [step for step in job["steps"] if "checkout" in step.get("uses", "")]


@pytest.mark.parametrize(("name", "script"), scripts().items())
def test_the_commands_exist(name: str, script: str) -> None:
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    for targets in MAKE.findall(script):
        wanted = [word.strip('"').replace("$INSTALL", "dev") for word in targets.split() if "=" not in word]
        # `--question` asks without running anything; 2 is an error, such as a target without a rule.
        asked = subprocess.run(
            ["make", "--question", *wanted], cwd=REPOSITORY, capture_output=True, text=True, check=False
        )
        assert asked.returncode in (0, 1), asked.stderr
    for command in PIPELINE.findall(script):
        assert command in get_command(app).commands  # type: ignore[attr-defined]


def test_the_container_runs_what_the_readme_says() -> None:
    """tests/e2e/test_readme.py runs this command in a fresh clone, on real data."""
    assert read_devcontainer()["postCreateCommand"] == "make run"
    assert re.search(r"^```sh\nmake run\n```$", (REPOSITORY / "README.md").read_text(), re.MULTILINE)


def test_release_notes_are_the_section_of_the_tagged_version(tmp_path: Path) -> None:
    version = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]
    (tmp_path / ".ci").mkdir()
    (tmp_path / ".ci/release_notes.py").write_text((REPOSITORY / ".ci/release_notes.py").read_text())
    (tmp_path / "pyproject.toml").write_text(f'[project]\nname = "parts"\nversion = "{version}"\n')
    changelog = tmp_path / "CHANGELOG.md"
    command = [sys.executable, str(tmp_path / ".ci/release_notes.py")]

    changelog.write_text(f"# Changelog\n\n## {version}\n\n- First.\n\n## 0.0.1\n\n- Older.\n")
    printed = subprocess.run([*command, f"v{version}"], capture_output=True, text=True, check=True)
    assert printed.stdout == "- First.\n"
    wrong = subprocess.run([*command, "v9.9.9"], capture_output=True, text=True, check=False)
    assert (wrong.returncode, wrong.stdout) == (1, "")
    assert f"Expected v{version}, found v9.9.9" in wrong.stderr
    changelog.write_text("# Changelog\n\n## Unreleased\n\n- First.\n")
    missing = subprocess.run([*command, f"v{version}"], capture_output=True, text=True, check=False)
    assert missing.returncode == 1
    assert "has no section" in missing.stderr


@pytest.mark.faults
def test_the_job_on_tiny_runs_from_nothing_to_a_champion(tmp_path: Path) -> None:
    project = create_project(tmp_path / "project", tmp_path / "home")
    project.provide_environment()
    (action,) = (step for step in steps(ACTIONS[0]) if "run" in step)
    job = parse_yaml((REPOSITORY / ".github/workflows/ci.yml").read_bytes())["jobs"]["tiny"]
    script = "\n".join([action["run"], *(step["run"] for step in job["steps"] if "run" in step)])
    printed = project.run("bash", "-euc", script, INSTALL="run").stdout
    assert "tiny version 1 (champion)" in printed
    assert project.run("git", "status", "--porcelain").stdout == ""
