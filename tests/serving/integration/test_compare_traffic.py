"""`pipeline compare --traffic`, on a real registry and a log that the server's writer wrote."""

import json
import shutil
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from pipeline.cli.__main__ import app
from pipeline.data.traffic import FEEDBACK, TRAFFIC, Label, add_labels
from pipeline.errors import DataError
from pipeline.serving.traffic_log import TrafficLog
from pipeline.serving.traffic_rows import ShadowAnswers
from tests.integration.recorded import CLASSES, empty_store
from tests.serving.models import EXAMPLE, ServingWorkspace, model_files, serving_workspace

__all__ = ["empty_store", "model_files", "serving_workspace"]  # fixtures

pytestmark = pytest.mark.xdist_group("serving-requests")
COMMAND = ["compare", "1", "2", "--traffic", "--model", "garments"]
BAG, SHIRT, DRESS = np.eye(3, dtype=np.float32) * 0.7 + 0.1  # of CLASSES


@pytest.fixture
def both(serving_workspace: ServingWorkspace, monkeypatch: pytest.MonkeyPatch) -> ServingWorkspace:
    """A workspace with versions whose networks are the same, as the current directory and with an empty log."""
    monkeypatch.chdir(serving_workspace.root)
    for directory in (TRAFFIC, FEEDBACK):
        shutil.rmtree(serving_workspace.root / directory, ignore_errors=True)
    return serving_workspace


def digest_of(workspace: ServingWorkspace, number: str) -> str:
    return str(workspace.client.get_model_version("garments", number).tags["model.tflite.sha256"])


def write(workspace: ServingWorkspace, fill: Callable[[TrafficLog], Any], *, keep: bool = False) -> None:
    log = TrafficLog(workspace.root / TRAFFIC, share=1.0, keep_images=keep, keep_days=30, limit_mb=100)
    fill(log)
    log.close()


def compare() -> dict[str, Any]:
    result = CliRunner().invoke(app, [*COMMAND, "--json"], catch_exceptions=False)
    return dict(json.loads(result.output))


def test_answers_in_the_shadow_are_compared_and_labels_counted(both: ServingWorkspace) -> None:
    request = str(uuid.uuid4())
    shadow = ShadowAnswers("2", digest_of(both, "2"), np.stack([BAG, DRESS, DRESS]))
    write(both, lambda log: log.add(request, "1", digest_of(both, "1"), EXAMPLE, np.stack([BAG, SHIRT, SHIRT]), shadow))
    now = datetime.now(UTC).isoformat()
    add_labels(both.root / FEEDBACK, [Label(request, 1, "Dress", "Ada", now), Label(request, 0, "Bag", "Ada", now)])
    found = compare()
    assert (found["logged"], found["images"], found["differing"]) == (3, 3, 2)
    assert found["differences"] == [{"first": CLASSES[1], "second": CLASSES[2], "images": 2}]
    assert found["confidences"] == pytest.approx([0.8, 0.8])
    assert found["labelled"].items() >= {"images": 2, "gained": 1, "lost": 0}.items()
    told = " ".join(CliRunner().invoke(app, COMMAND, catch_exceptions=False).output.split())
    assert "3 of 3 images in the traffic log" in told
    assert "only version 1 right 0, only version 2 right 1" in told


def test_a_version_that_did_not_answer_is_asked_for_the_images_in_the_log(both: ServingWorkspace) -> None:
    write(both, lambda log: log.add(str(uuid.uuid4()), "9", "0" * 64, EXAMPLE, np.stack([BAG, BAG, BAG])), keep=True)
    found = compare()
    assert (found["images"], found["differing"], found["labelled"]) == (3, 0, None)  # the networks are the same


def test_a_log_without_answers_of_both_is_refused(both: ServingWorkspace) -> None:
    write(both, lambda log: log.add(str(uuid.uuid4()), "1", digest_of(both, "1"), EXAMPLE, np.stack([BAG] * 3)))
    with pytest.raises(DataError, match="no image in the traffic log has an answer of both versions") as refused:
        CliRunner().invoke(app, COMMAND, catch_exceptions=False)
    assert refused.value.found.startswith("3 images since")


def test_an_empty_log_is_refused(both: ServingWorkspace, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no image"):
        CliRunner().invoke(app, COMMAND, catch_exceptions=False)
