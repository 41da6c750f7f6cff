"""The commands of `docs/labels.md`, from the search to the corrected data, with a search and a page that are killed."""

import json
import os
import signal
import sys
import urllib.request

import pytest

from pipeline.data import table
from pipeline.data.corrections import CORRECTIONS
from pipeline.files import file_digest, read_json, write_json
from pipeline.review.items import ITEMS, Item, read_items, review_directory
from pipeline.review.verdicts import FORMAT
from tests.conftest import Project, stages_that_ran
from tests.documentation import read_blocks
from tests.processes import wait_until

PIPELINE = [sys.executable, "-m", "pipeline.cli"]
TRAIN = "data/dataset/train.parquet"


def start_search_and_kill(project: Project) -> tuple[str, int]:
    """Kill a search for wrong labels after its first fold. Returns the name and the time of the fold's file."""
    search = project.start(*PIPELINE, "review", "labels", "--folds", "3")
    folds = project.path / review_directory("labels") / "folds"
    wait_until(lambda: list(folds.glob("*-0.npz")))
    os.killpg(search.pid, signal.SIGKILL)
    search.communicate()
    (finished,) = folds.glob("*-0.npz")
    return finished.name, finished.stat().st_mtime_ns


def relabel(item: Item) -> dict[str, object]:
    return {"id": item.id, "given": item.given, "verdict": "relabel", "label": item.suggested}


def send_verdict(project: Project, page: str, verdict: dict[str, object]) -> None:
    """Start the page with its command, give a verdict as its script does, and kill the page."""
    process = project.start("bash", "-euc", f"exec {page.replace(' --open', '')}", PYTHONUNBUFFERED="1")
    assert process.stdout is not None
    try:
        address = process.stdout.readline().removeprefix("page: ").strip()
        body, headers = json.dumps(verdict).encode(), {"Content-Type": "application/json"}
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        opener.open(urllib.request.Request(f"{address}verdicts", body, headers), timeout=60).close()
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.mark.faults
@pytest.mark.timeout(900)
def test_the_page_leads_from_the_search_to_corrected_data_and_back(trained: Project) -> None:
    search, page, apply, export, second = (
        block.replace("pipeline run", "dvc repro split").replace("pipeline review", f"{' '.join(PIPELINE)} review")
        for block in read_blocks("docs/labels.md")
    )
    name, finished = start_search_and_kill(trained)
    output = trained.run("bash", "-euc", search).stdout
    assert "labels are suspect; out-of-fold accuracy" in output
    folds = trained.path / review_directory("labels") / "folds"
    assert (folds / name).stat().st_mtime_ns == finished
    assert len(list(folds.iterdir())) == 3

    items = read_items(trained.path / review_directory("labels") / ITEMS)
    listed = json.loads((trained.path / "labels.json").read_text())["items"]
    assert [item["id"] for item in listed] == [item.id for item in items]
    one, other = [item for item in items if not item.twins][:2]
    assert table.read_ids(trained.path / TRAIN).index(one.id) == one.official_row

    before, header = file_digest(trained.path / TRAIN), (trained.path / CORRECTIONS).read_text()
    send_verdict(trained, page.strip(), relabel(one))
    assert stages_that_ran(trained.run("bash", "-euc", apply).stdout) == ["ingest", "validate", "split"]
    assert file_digest(trained.path / TRAIN) != before
    (applied,) = read_json(trained.path / "reports/validation.json")["corrections"]
    classes = table.read_dataset(trained.path / TRAIN).classes
    expected = {"given": classes[one.given], "label": classes[one.suggested], "who": "tests", "images": 1}
    assert applied == expected | {"split": "train"}

    assert "labels.html" in trained.run("bash", "-euc", export).stdout
    file = {"format": FORMAT, "review": "labels", "dataset": "tiny", "who": "reader-2", "verdicts": [relabel(other)]}
    write_json(trained.path / "verdicts-labels-reader-2.json", file)
    assert "1 relabelled" in trained.run("bash", "-euc", second).stdout
    assert [line.split(",")[3] for line in (trained.path / CORRECTIONS).read_text().splitlines()[1:]] == [
        "tests",
        "reader-2",
    ]

    (trained.path / CORRECTIONS).write_text(header)
    assert stages_that_ran(trained.repro("split").stdout) == []  # the outputs are in DVC's cache
    assert file_digest(trained.path / TRAIN) == before
    assert "corrections" not in read_json(trained.path / "reports/validation.json")
