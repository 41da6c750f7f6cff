"""The examples of `docs/extending.md`, applied to a copy of the project, which then runs with all of them."""

import json
import re
import sys
from itertools import takewhile
from pathlib import Path

import pytest
from mlflow import MlflowClient

from pipeline.workspace import project_name
from tests.conftest import REPOSITORY, Project, stages_that_ran

PAGE = REPOSITORY / "docs/extending.md"
EDIT = re.compile(
    r"^(?P<verb>Create|Append to|Insert in) `(?P<path>[^`]+)`(, (?P<side>above|below) `(?P<anchor>[^`]+)`)?:\n\n"
    r"```\w+\n(?P<code>.*?)```$",
    re.MULTILINE | re.DOTALL,
)
REPLACEMENT = re.compile(r"^In `(?P<path>[^`]+)`, replace `(?P<old>[^`]+)` by `(?P<new>[^`]+)`\.", re.MULTILINE)


def apply_examples(page: str, root: Path) -> int:
    """Make the edits that the page describes below `root`. Returns their number."""
    edits, replacements = list(EDIT.finditer(page)), list(REPLACEMENT.finditer(page))
    for edit in edits:
        file, code = root / edit["path"], edit["code"]
        assert file.exists() == (edit["verb"] != "Create")
        if edit["verb"] == "Create":
            file.write_text(code)
        elif edit["verb"] == "Append to":
            file.write_text(f"{file.read_text()}\n{code}")
        else:
            lines = file.read_text().splitlines(keepends=True)
            (place,) = [number for number, line in enumerate(lines) if line.startswith(edit["anchor"])]
            place += edit["side"] == "below"
            blank = len(list(takewhile(str.isspace, reversed(lines[:place]))))  # the same distance on both sides
            file.write_text("".join([*lines[:place], code, *blank * ["\n"], *lines[place:]]))
    for edit in replacements:
        text = (root / edit["path"]).read_text()
        assert text.count(edit["old"]) == 1
        (root / edit["path"]).write_text(text.replace(edit["old"], edit["new"]))
    return len(edits) + len(replacements)


@pytest.fixture
def extended(project: Project) -> Project:
    """A project on `tiny` with all examples of the page, in which nothing has run."""
    page = PAGE.read_text()
    examples = page.count("\n```") // 2 + page.count("`, replace `")
    assert apply_examples(page, project.path) == examples
    project.set_params(**{"train.network": "linear", "train.epochs": 1})
    project.commit("extend the pipeline")
    return project


def test_every_example_works(extended: Project) -> None:
    assert stages_that_ran(extended.repro().stdout) == ["ingest", "validate", "split", "train", "evaluate", "register"]
    reports = extended.path / "reports"

    brightness = json.loads((reports / "brightness.json").read_text())
    assert len(brightness) == 10
    assert all(0 < mean < 255 for mean in brightness.values())

    settings = json.loads((reports / "training/settings.json").read_text())
    assert (settings["network"], settings["parameters"]) == ("linear", 28 * 28 * 10 + 10)

    metrics = json.loads((reports / "evaluation/metrics.json").read_text())
    assert 0 <= metrics["macro_precision"] <= 1

    validation = json.loads((reports / "validation.json").read_text())
    lit = next(found for found in validation["expectations"] if found["name"] == "lit_pixels")
    assert lit["passed"]
    assert set(lit["observed"]) == {"train", "test"}

    extended.run(sys.executable, "-m", "pipeline.cli", "run", "--force", "brightness")
    client = MlflowClient(f"sqlite:///{extended.path}/mlflow.db")
    runs = client.search_runs([found.experiment_id for found in client.search_experiments()])
    flow = next(run for run in runs if "stage.brightness" in run.data.tags)
    assert flow.data.tags["stage.brightness"] == "ran"
    assert "seconds/brightness" in flow.data.metrics
    assert any("test_macro_precision" in run.data.metrics for run in runs)

    load = "from pipeline.data.catalog import load_entry; print(load_entry('shoes').dataset.classes)"
    assert "('Sandal', 'Sneaker')" in extended.run(sys.executable, "-c", load).stdout
    assert "9 Ankle boot" in extended.run(sys.executable, "-m", "pipeline.cli", "classes").stdout
    for check in (["ruff", "check"], ["ruff", "format", "--check"], ["lint-imports"]):
        extended.run(*check)


def test_a_copys_own_settings_break_no_test(extended: Project) -> None:
    """The examples of the page are added, `train.epochs` is changed, and the project has another name."""
    file = extended.path / "pyproject.toml"
    file.write_text(file.read_text().replace(project_name(), "our-shoes"))  # in the extra `dev`, too
    own_files = [path for path in (REPOSITORY / "tests/unit").glob("*.py") if "REPOSITORY" in path.read_text()]
    tests = [str(path.relative_to(REPOSITORY)) for path in own_files]
    tests.append("tests/integration/test_validation.py::test_good_data_passes_without_a_warning")
    extended.run(sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests)
