"""Remedies that messages print: each is run as it stands, or checked to be a command that exists."""

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.main import get_command

from pipeline.cli.__main__ import app
from pipeline.errors import DataError, FlowError, ParamsError
from pipeline.flows.dvc_process import read_plan
from pipeline.flows.run import run_training
from pipeline.flows.summary import Summary
from pipeline.git import git
from pipeline.params import load_params
from pipeline.registry.sync import Synced
from tests.conftest import REPOSITORY
from tests.unit.test_rooms import EXCEPTIONS

COMMANDS = set(get_command(app).commands)  # type: ignore[attr-defined]
NEEDS_REASON = ("promote", "rollback")


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory in no repository, for somebody who is unknown to git."""
    directory = tmp_path / "a folder"
    directory.mkdir()
    (tmp_path / "gitconfig").touch()
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", os.devnull)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    return directory


def remedy_of(error: Exception) -> str:
    return str(error).partition("remedy:")[2].strip()


def texts() -> Iterator[tuple[str, str]]:
    """The strings of the package with their places; what is filled in is left as braces."""
    for path in (REPOSITORY / "pipeline").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "{}" for part in node.values]
                yield f"{path}:{node.lineno}", "".join(map(str, parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield f"{path}:{node.lineno}", node.value


def test_every_command_that_a_text_names_exists_and_has_what_it_requires() -> None:
    wrong = []
    for place, text in texts():
        for named in re.findall(r"`pipeline ([a-z-]+)[^`]*`", text):
            is_exception = EXCEPTIONS.get(Path(place.rpartition(":")[0])) == named  # in a project without the servers
            wrong += [f"{place}: {named}"] if named not in COMMANDS and not is_exception else []
        if re.search(rf"pipeline ({'|'.join(NEEDS_REASON)}) [{{A-Z0-9]", text) and "--reason" not in text:
            wrong.append(f"{place}: no --reason in {text!r}")
    assert wrong == []


def test_a_merge_conflict_in_the_lock_is_resolved_by_the_command_that_is_printed(alone: Path) -> None:
    git(alone, "init", "--quiet", "--initial-branch", "main")
    git(alone, "config", "user.name", "a name")
    git(alone, "config", "user.email", "a@b.example")
    (alone / ".dvc").mkdir()
    (alone / ".dvc/config").write_text("[core]\n    analytics = false\n    check_update = false\n")
    (alone / "dvc.yaml").write_text("stages:\n  one:\n    cmd: 'true'\n    deps: [dep]\n")
    (alone / "dep").touch()
    for branch, digest in (("main", "a"), ("ours", "b"), ("theirs", "c")):
        if branch != "main":
            git(alone, "checkout", "--quiet", "-b", branch, "main")
        entry = f"    deps:\n    - {{path: dep, hash: md5, md5: {digest * 32}, size: 0}}\n"
        (alone / "dvc.lock").write_text(f"schema: '2.0'\nstages:\n  one:\n    cmd: 'true'\n{entry}")
        git(alone, "add", ".")
        git(alone, "commit", "--quiet", "--message", branch)
    with pytest.raises(FlowError, match="CONFLICT|^git merge failed"):
        git(alone, "merge", "ours")
    with pytest.raises(FlowError, match="DVC cannot read this workspace") as caught:
        read_plan(alone)
    command = remedy_of(caught.value).partition(" (or --theirs)")[0]
    assert command.startswith("git checkout --ours ")
    subprocess.run(command, shell=True, cwd=alone, check=True)
    assert read_plan(alone).names == ("one",)


def test_an_edited_file_is_never_answered_by_a_command_that_drops_the_edits(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("dataset: [")
    with pytest.raises(ParamsError, match="remedy: +correct it; `git diff "):
        load_params(path)
    path.write_text("a: 1\n<<<<<<< HEAD\nb: 1\n=======\nb: 2\n>>>>>>> theirs\n")
    with pytest.raises(ParamsError, match="remedy: +resolve the merge conflict in .*params.yaml, then: git add"):
        load_params(path)


def test_without_a_repository_a_run_is_refused_with_a_remedy_that_works(alone: Path) -> None:
    (alone / "dvc.yaml").write_text("stages: {}\n")
    with pytest.raises(FlowError, match="is not a git repository") as caught:
        run_training(alone, until=None, force=None, if_busy="leave")
    assert [path.name for path in alone.iterdir()] == ["dvc.yaml"]  # no server, no lock
    subprocess.run(remedy_of(caught.value), shell=True, check=True, capture_output=True)
    assert git(alone, "log", "--format=%an %s") == "YOUR NAME Start from the archive"


def test_who_commits_is_asked_before_a_commit_is_advised(alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(alone)
    git(alone, "init", "--quiet")
    for name in ("dvc.yaml", "dvc.lock"):
        (alone / name).touch()
    advised = list(Summary((), Synced(), True).next_steps())[-2:]
    assert [name for name, _ in advised] == ["first", "keep"]
    for _, command in advised:
        subprocess.run(command + ("" if "config" in command else " --message one"), shell=True, check=True)
    assert git(alone, "log", "--format=%an") == "YOUR NAME"


def test_make_refuses_an_unpacked_archive_before_it_installs(alone: Path) -> None:
    for name in ("Makefile", "pyproject.toml", "requirements.lock"):
        shutil.copy(REPOSITORY / name, alone)
    command = ["make", "run", f"PYTHON={sys.executable}"]
    result = subprocess.run(command, cwd=alone, capture_output=True, text=True, check=False)
    assert result.returncode
    assert "git init && git add ." in result.stdout
    assert not (alone / ".venv").exists()


@pytest.mark.parametrize("place", ["profile", "file"])
def test_a_server_that_is_down_is_removed_where_it_was_configured(alone: Path, place: str) -> None:
    address = "http://127.0.0.1:9/api"
    if place == "profile":
        profiles = f'active = "my team"\n[profiles."my team"]\nPREFECT_API_URL = "{address}"\n'
        (alone / "profiles.toml").write_text(profiles)
        remedy = "or prefect --profile 'my team' config unset PREFECT_API_URL: "
    else:
        (alone / "prefect.toml").write_text(f'[api]\nurl = "{address}"\n')
        remedy = "or take it out of the file that `prefect config view` names"
    program = f"from pipeline.flows.prefect_server import require_response; require_response('{address}')"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    environment |= {"PREFECT_HOME": str(alone), "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, cwd=alone, env=environment, capture_output=True, text=True, check=False)
    assert remedy in result.stderr


def test_a_damaged_file_with_a_space_in_its_name_is_removed_by_the_command_that_is_printed(alone: Path) -> None:
    from pipeline.data import table

    path = alone / "train.parquet"
    path.write_bytes(b"no table")
    with pytest.raises(DataError, match="is damaged") as caught:
        table.read_ids(path)
    subprocess.run(remedy_of(caught.value).partition(" && ")[0], shell=True, check=True)
    assert not path.exists()
