"""The commands of `docs/new-project.md`: the new project is linted, its unit tests pass, and the pipeline runs."""

import re
import sys
from pathlib import Path

import pytest

from tests.conftest import Project, stages_that_ran
from tests.documentation import read_blocks

LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)[^)]*\)")


@pytest.mark.faults
@pytest.mark.timeout(1200)
def test_a_project_without_two_rooms_passes_its_checks_and_trains(project: Project, tmp_path: Path) -> None:
    (script,) = read_blocks("docs/new-project.md")
    # The code of the current directory, unlike the installed `pipeline`.
    project.run("bash", "-euc", script.replace("pipeline new", f"{sys.executable} -m pipeline.cli new"))
    parts = Project(tmp_path / "parts", tmp_path / "home")
    assert not {"servers", "notices"} & {path.name for path in (parts.path / "pipeline").iterdir()}

    for command in (("ruff", "check", "."), ("ruff", "format", "--check", "."), ("mypy",), ("lint-imports",)):
        parts.run(*command)
    parts.run(sys.executable, "-m", "mkdocs", "build", "--strict")
    units = ["tests/unit", *(str(path) for path in sorted(parts.path.glob("tests/*/unit")))]
    parts.run(sys.executable, "-m", "pytest", "--quiet", "-p", "no:cacheprovider", *units)
    parts.run(sys.executable, "-m", "pytest", "--quiet", "-p", "no:cacheprovider", "--collect-only", "tests")
    pages = [*parts.path.glob("*.md"), *parts.path.glob("docs/**/*.md")]
    broken = [
        (page.name, link)
        for page in pages
        for link in LINK.findall(page.read_text())
        if not (page.parent / link).exists()
    ]
    assert broken == []

    assert stages_that_ran(parts.repro().stdout) == ["ingest", "validate", "split", "train", "evaluate", "register"]
    assert " champion " in parts.run(sys.executable, "-m", "pipeline.cli", "versions").stdout
    assert parts.run("git", "status", "--porcelain", "--", ":!dvc.lock").stdout == ""
