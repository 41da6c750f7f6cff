"""Execute the `sh` blocks of README and docs that no other test executes, in a copy of a project with a champion.

Its dataset is `tiny`: the script of a page names this one instead of Fashion-MNIST, and places of the copy instead of
those of the reader's machine. Each page has a copy of its own.
"""

import re
import subprocess

import numpy as np
import pytest
import yaml
from PIL import Image

from pipeline.data import tiny
from pipeline.data.catalog import load_entry
from tests.conftest import Project
from tests.documentation import find_pages, read_unclaimed_blocks

# Commands of pages that are executed with less work, because another page executes them as they are.
SHORTER = {
    "docs/data.md": {"pipeline run": "pipeline run --until split"},
    "docs/training.md": {"train.preset=cnn": "train.preset=cnn -S train.epochs=1"},
}
PAGES = [page for page in find_pages() if read_unclaimed_blocks(page)]
# The code of the copy runs, in the environment of the tests, which has everything: nothing is installed.
FUNCTIONS = """
set -euo pipefail
pipeline() { python -m pipeline.cli "$@"; }
make() { case "$1" in run) pipeline run;; setup | extras) ;; *) command make "$@";; esac; }
"""


def furnish(project: Project) -> None:
    """Add what the pages speak of: pictures of the reader's, an environment, and a remote repository."""
    images, labels = tiny.generate(40, seed=300)
    names = load_entry("tiny").dataset.classes
    march, hats = project.home / "photos-of-march", project.home / "hats/Hat"
    for folder in (hats, project.path / "photos"):
        folder.mkdir(parents=True)
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        folder = march / names[label].replace("/", "_")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{number}.png")
    for number, image in enumerate(tiny.generate(200, seed=301)[0]):
        Image.fromarray(image.T).save(hats / f"{number}.png")
    for name in ("shirt.png", "shoe.png", "photos/1.jpg", "photos/2.jpg"):
        Image.fromarray(images[0]).save(project.path / name)
    np.savez(project.path / "images.npz", images=images[:3])
    (project.path / ".venv/bin").mkdir(parents=True)
    (project.path / ".venv/bin/activate").touch()
    project.run("git", "clone", "--quiet", "--bare", str(project.path), str(project.home / "origin.git"))
    project.run("git", "remote", "add", "origin", str(project.home / "origin.git"))
    project.run("git", "fetch", "--quiet")
    project.run("git", "branch", "--quiet", "--set-upstream-to", "origin/main")


def replacements(project: Project) -> dict[str, str]:
    """Return what stands in the pages, and what replaces it in this project."""
    lock = yaml.safe_load((project.path / "dvc.lock").read_text())
    return {
        "fashion-mnist": "tiny",
        "~/": f"{project.home}/",
        "/mnt/backups": str(project.home / "backups"),
        "s3://data/dvc": str(project.home / "remote"),
        "683d9031": lock["stages"]["split"]["outs"][0]["md5"][:8],
        "e5d431e": project.run("git", "rev-parse", "HEAD~1").stdout[:7],  # `template` committed its lock later
    }


@pytest.mark.faults
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page_work(page: str, trained: Project) -> None:
    trained.home.mkdir()
    furnish(trained)
    script = "".join(block.code for block in read_unclaimed_blocks(page))
    for named, ours in (SHORTER.get(page, {}) | replacements(trained)).items():
        script = script.replace(named, ours)
    executed = subprocess.run(
        ["bash", "-c", FUNCTIONS + script],
        cwd=trained.path,
        env=trained.environment | {"DVC_GLOBAL_CONFIG_DIR": str(trained.home)},
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    assert executed.returncode == 0, executed.stdout[-8000:]
    assert not re.search(r"^Traceback", executed.stdout, re.MULTILINE), executed.stdout[-8000:]
