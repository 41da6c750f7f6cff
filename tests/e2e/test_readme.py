"""Run the commands of the README and its first pages in a fresh clone, in their order: the full pass on real data."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from pipeline.files import file_digest
from tests.conftest import DECLARED_STAGES, REPOSITORY, create_project
from tests.documentation import read_blocks

LINK = re.compile(r"\]\((?!https?:)([^)#]+)#?([^)]*)\)")
REAL_DATA_STAGES = ("ingest", "validate", "split")  # their bytes are the same on every machine


def blocks() -> list[str]:
    """The shell blocks of three pages, each of which continues where the one before it ended."""
    return [*read_blocks("README.md"), *read_blocks("docs/tasks.md"), *read_blocks("docs/guarantees.md")]


def test_the_committed_lock_is_in_step_with_the_parameters() -> None:
    params = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
    lock = yaml.safe_load((REPOSITORY / "dvc.lock").read_text())
    assert set(lock["stages"]) == set(DECLARED_STAGES)
    for stage, entry in lock["stages"].items():
        for key, value in entry.get("params", {}).get("params.yaml", {}).items():
            current = params
            for part in key.split("."):
                current = current[part]
            assert current == value, f"{stage}: {key}"


def test_the_committed_lock_is_of_the_committed_code() -> None:
    lock = yaml.safe_load((REPOSITORY / "dvc.lock").read_text())
    for stage, entry in lock["stages"].items():
        for dep in entry["deps"]:
            path = REPOSITORY / dep["path"]
            if path.is_file() and path.suffix in (".py", ".txt"):
                assert file_digest(path, "md5") == dep["md5"], (
                    f"{stage} was locked with another {dep['path']}: dvc repro"
                )


@pytest.mark.parametrize("page", [path.name for path in REPOSITORY.glob("README*.md")])
def test_links_lead_to_pages_and_headings(page: str) -> None:
    for link, heading in LINK.findall((REPOSITORY / page).read_text()):
        assert (REPOSITORY / link).exists(), link
        if heading:
            titles = re.findall(r"^#+ (.*)$", (REPOSITORY / link).read_text(), re.MULTILINE)
            assert heading in [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles], link


@pytest.mark.faults  # beside them for the minutes that it takes
@pytest.mark.timeout(1200)
def test_the_readme_works_from_a_fresh_clone(tmp_path: Path) -> None:
    clone = create_project(tmp_path / "clone", tmp_path / "home")
    committed = yaml.safe_load((clone.path / "dvc.lock").read_text())
    environment = clone.environment | {"PATH": os.environ["PATH"], "HOME": os.environ["HOME"]}
    environment.pop("VIRTUAL_ENV", None)
    script = "set -euo pipefail\n" + "\n".join(blocks())
    assert "make run" in script
    result = subprocess.run(
        [shutil.which("bash") or "bash", "-c", script],
        cwd=clone.path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-8000:]
    assert "Data and pipelines are up to date." in result.stdout
    assert (clone.path / "mlflow.db").is_file()

    lock = yaml.safe_load((clone.path / "dvc.lock").read_text())
    for stage in REAL_DATA_STAGES:
        for made, expected in zip(lock["stages"][stage]["outs"], committed["stages"][stage]["outs"], strict=True):
            assert (made["path"], made["md5"]) == (expected["path"], expected["md5"])
    metrics = json.loads((clone.path / "reports/evaluation/metrics.json").read_text())
    assert metrics["images"] == 10_000
    assert metrics["accuracy"] >= 0.87
    assert metrics["saliency"]["gain"] >= 0.05
    assert metrics["saliency"]["marked"] >= 2 * metrics["saliency"]["random"]
