"""A new project: this one's files under another name, in a git repository of its own."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from pipeline.scaffolding.new_project import LEFT_OUT
from pipeline.workspace import project_name
from tests.conftest import REPOSITORY, Project

NEW = (sys.executable, "-m", "pipeline.cli", "new")
# Kill the process after the files are there, when git is about to commit them.
KILLED = """
import os, signal
from pipeline.cli.__main__ import app
from pipeline.scaffolding import new_project

new_project.commit = lambda *arguments, **options: os.kill(os.getpid(), signal.SIGKILL)
app(["new", "parts"])
"""


@pytest.fixture
def parts(project: Project) -> Path:
    """Where `pipeline new parts` puts the project by default."""
    return project.path.with_name("parts")


def read(path: Path) -> str:
    return path.read_text("utf-8")


def test_the_copy_has_its_own_name_and_one_commit(project: Project, parts: Path) -> None:
    (project.path / "untracked.txt").touch()
    (project.path / "docs/data.md").write_text("# Changed\n")
    (project.path / "pyproject.toml").write_text(
        read(project.path / "pyproject.toml").replace('version = "0.1.0"', 'version = "3.2.1"')
    )
    printed = project.run(*NEW, "parts", "--without", "notices").stdout
    assert "without the rooms monitoring, notices, retraining, servers" in printed
    git = ("git", "-C", str(parts))
    assert project.run(*git, "log", "--format=%an %s").stdout == "tests Create parts\n"
    assert project.run(*git, "status", "--porcelain").stdout == ""
    names = project.run(*git, "ls-files").stdout.splitlines()
    assert f"{len(names):,} files" in printed
    assert "untracked.txt" not in names
    assert os.access(parts / ".ci/run", os.X_OK)
    assert read(parts / "docs/data.md") == "# Changed\n"

    metadata = tomllib.loads(read(parts / "pyproject.toml"))["project"]
    assert (metadata["name"], metadata["version"]) == ("parts", "0.1.0")
    for readme in parts.glob("README*.md"):
        assert read(readme).startswith("# parts\n")
        assert "docs/measured.md" not in read(readme)
    assert f"{project_name()} at commit" in read(parts / "CHANGELOG.md")
    former = project.run(*git, "grep", "-il", project_name(), check=False).stdout.split()
    assert former == ["CHANGELOG.md"]
    program = "from pipeline.data.dataset_files import cache_directory; print(cache_directory().name)"
    environment = {key: value for key, value in project.environment.items() if "CACHE" not in key}
    found = subprocess.run(
        [sys.executable, "-c", program], cwd=parts, env=environment, capture_output=True, text=True, check=True
    )
    assert found.stdout == "parts\n"
    assert not (parts / "pipeline/notices").exists()


def test_compose_names_the_image(project: Project, parts: Path) -> None:
    if not (project.path / "compose.yaml").exists():
        pytest.skip("the room servers was deleted")
    project.run(*NEW, "parts")
    assert "image: parts:0.1.0\n" in read(parts / "compose.yaml")


def test_a_project_of_a_project_leaves_no_word_of_its_name(project: Project, parts: Path) -> None:
    project.run(*NEW, "stages")  # a word that code and docs have in many places
    stages = Project(project.path.with_name("stages"), project.home)
    stages.run(*NEW, "parts", **identity(project))
    for path in ("pipeline/stages/train.py", "dvc.yaml", "docs/architecture.md"):
        assert read(parts / path) == read(project.path / path)


def identity(project: Project) -> dict[str, str]:
    """A git configuration with an author, as users have it in their home."""
    file = project.home / "gitconfig"
    file.write_text("[user]\n\tname = tests\n\temail = tests@example.invalid\n")
    return {"GIT_CONFIG_GLOBAL": str(file)}


def test_what_belongs_to_this_projects_data_is_left_out(project: Project, parts: Path) -> None:
    for name, content in {
        "data/incoming/march.npz.dvc": "outs: []\n",
        "data/own/shoes.dvc": "outs: []\n",
        "data/catalog/shoes.yaml": "title: shoes\n",
        "data/corrections.csv": "id,given,label\nab,1,2\n",
        "benchmarks/results.md": "# Results\n",
    }.items():
        (project.path / name).parent.mkdir(parents=True, exist_ok=True)
        (project.path / name).write_text(content)
    config = project.path / ".dvc/config"
    core = read(config)
    config.write_text(f"{core}    remote = team\n['remote \"team\"']\n    url = s3://secret/dvc\n")
    project.run("git", "add", "--all", "--force")
    project.set_params(**{"dataset.name": "shoes", "dataset.path": "data/own/shoes"})
    project.commit("work on shoes")
    (project.path / "dvc.lock").write_text("schema: '2.0'\nstages: {}\n")
    project.run("git", "add", "dvc.lock")
    project.run(*NEW, "parts")

    names = project.run("git", "-C", str(parts), "ls-files").stdout.splitlines()
    assert not {"data/incoming/march.npz.dvc", "data/own/shoes.dvc", "data/catalog/shoes.yaml", "dvc.lock"} & set(names)
    assert not {"benchmarks/results.md", "CITATION.cff"} & set(names)
    assert {"data/incoming/.gitkeep", "data/local/.gitkeep"} <= set(names)
    assert read(parts / "data/corrections.csv") == "id,given,label\n"
    assert read(parts / ".dvc/config") == core
    dataset = yaml.safe_load(read(parts / "params.yaml"))["dataset"]
    assert (dataset["name"], dataset["path"]) == ("fashion-mnist", "data/local")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["Parts"], r"cannot use this name for a project\n.*lower-case letters"),
        (["my_parts"], "cannot use this name for a project"),
        (["-parts-"], "No such option|cannot use this name for a project"),
        (["../parts"], "cannot use this name for a project"),
        (["p" * 65], "cannot use this name for a project"),
        (["mlflow"], "cannot use the name mlflow"),
        (["parts", "sub/parts"], "is inside this checkout"),
        (["parts", "."], "is inside this checkout"),
        (["parts", "../full"], r"full exists already(?s:.*)found: +a directory with files in it"),
        (["parts", "../full/file.txt"], r"file.txt exists already(?s:.*)found: +a file"),
        (["parts", "--without", "garage,shed"], "rooms that this project does not have(?s:.*)garage, shed"),
    ],
)
def test_bad_input_is_refused_and_creates_nothing(project: Project, arguments: list[str], message: str) -> None:
    full = project.path.with_name("full")
    full.mkdir()
    (full / "file.txt").write_text("mine")
    before = sorted(project.path.parent.iterdir())
    refused = project.run(*NEW, *arguments, check=False)
    assert refused.returncode in (1, 2)
    assert re.search(message, refused.stdout)
    assert sorted(project.path.parent.iterdir()) == before
    assert [path.name for path in full.iterdir()] == ["file.txt"]
    assert read(full / "file.txt") == "mine"
    assert project.run("git", "status", "--porcelain").stdout == ""


def test_without_an_author_the_error_says_how_to_set_one(project: Project, parts: Path) -> None:
    project.run("git", "config", "--unset", "user.email")
    refused = project.run(*NEW, "parts", check=False, GIT_CONFIG_GLOBAL="/dev/null", GIT_CONFIG_SYSTEM="/dev/null")
    assert refused.returncode == 1
    assert "git has no author for the first commit" in refused.stdout
    assert "git config --global user.name" in refused.stdout
    assert not parts.exists()


def test_code_of_another_checkout_is_refused(project: Project, parts: Path) -> None:
    environment = {"PYTHONPATH": str(REPOSITORY), "PYTHONSAFEPATH": "1"}
    refused = project.run(*NEW, "parts", check=False, **environment)
    assert refused.returncode == 1
    assert "the running code belongs to another checkout" in refused.stdout
    assert not parts.exists()


def test_an_empty_directory_is_used_and_a_killed_copy_leaves_no_project(project: Project, parts: Path) -> None:
    parts.mkdir()
    assert project.run(sys.executable, "-c", KILLED, check=False).returncode == -9
    assert list(parts.iterdir()) == []
    project.run(*NEW, "parts")
    assert (parts / ".git").is_dir()
    assert [path.name for path in parts.parent.iterdir() if path.name.endswith(".partial")] == []


def test_what_is_left_out_is_there() -> None:
    missing = [pattern for pattern in LEFT_OUT if pattern.startswith("tests/") and not (REPOSITORY / pattern).exists()]
    assert missing in ([], [pattern for pattern in LEFT_OUT if pattern.startswith("tests/")])  # a copy has none
