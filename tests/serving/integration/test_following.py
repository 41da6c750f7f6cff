"""Following the file of the resolver, and the shadow, with real models and without a registry."""

import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from pipeline.data.traffic import read_traffic
from pipeline.errors import TrackingError
from pipeline.serving.current import MODELS, Current, write_current
from pipeline.serving.follower import Follower
from pipeline.serving.metrics import Metrics
from pipeline.serving.served_model import EXAMPLE_FILE, ModelHolder
from pipeline.serving.settings import ServeSettings
from pipeline.serving.shadow import Shadow
from pipeline.serving.traffic_log import TrafficLog
from tests.serving.models import EXAMPLE, copy_model, load_model, model_files
from tests.serving.running import make_settings

__all__ = ["model_files"]  # a fixture


@pytest.fixture
def settings(tmp_path: Path) -> ServeSettings:
    return make_settings(tmp_path)


def name_version(settings: ServeSettings, files: Path, number: int, *, age: float = 0, problem: str = "") -> Path:
    """Do what the resolver does for a version, and return the folder of its files."""
    scratch = settings.folder / MODELS / "new"
    contract = copy_model(files, scratch, number)
    folder = scratch.rename(settings.folder / MODELS / contract.litert_sha256)
    current = Current("garments", str(number), contract.litert_sha256, time.time() - age, problem or None)
    write_current(settings.current_file, current)
    return folder


def test_a_new_version_answers_after_its_check(settings: ServeSettings, model_files: Path) -> None:
    models = ModelHolder()
    follower = Follower(settings, models, Metrics())
    follower.poll()
    with pytest.raises(TrackingError):
        models.current()
    for number in (1, 2):
        name_version(settings, model_files, number)
        follower.poll()
        assert (models.current().version, models.problem) == (str(number), None)


def test_a_version_that_answers_its_example_otherwise_is_refused(settings: ServeSettings, model_files: Path) -> None:
    models = ModelHolder()
    follower = Follower(settings, models, Metrics())
    name_version(settings, model_files, 1)
    follower.poll()
    folder = name_version(settings, model_files, 2)
    with np.load(folder / EXAMPLE_FILE) as example:
        np.savez(folder / EXAMPLE_FILE, images=example["images"], probabilities=example["probabilities"][::-1])
    follower.poll()
    assert models.current().version == "1"
    assert "version 2 of garments cannot be served" in str(models.problem)
    name_version(settings, model_files, 3)
    follower.poll()
    assert (models.current().version, models.problem) == ("3", None)


@pytest.mark.parametrize("name", ["model.tflite", "contract.json", EXAMPLE_FILE])
def test_a_damaged_file_is_refused(settings: ServeSettings, model_files: Path, name: str) -> None:
    models = ModelHolder()
    folder = name_version(settings, model_files, 1)
    (folder / name).write_bytes((folder / name).read_bytes()[:-40])
    Follower(settings, models, Metrics()).poll()
    assert "version 1 of garments cannot be served" in str(models.problem)


def test_a_champion_of_before_the_start_waits_for_the_registry(settings: ServeSettings, model_files: Path) -> None:
    models = ModelHolder()
    name_version(settings, model_files, 1, age=3600)
    follower = Follower(settings, models, Metrics())
    follower.poll()
    assert models.problem == "waiting for the registry to confirm the champion"
    follower._started -= 60  # the registry does not answer
    follower.poll()
    assert models.current().version == "1"


def test_a_fixed_version_does_not_wait(settings: ServeSettings, model_files: Path) -> None:
    fixed, models = replace(settings, version="1"), ModelHolder()
    name_version(fixed, model_files, 1, age=3600)
    Follower(fixed, models, Metrics()).poll()
    assert models.current().version == "1"


def test_without_a_champion_nothing_answers(settings: ServeSettings, model_files: Path) -> None:
    models = ModelHolder()
    follower = Follower(settings, models, Metrics())
    name_version(settings, model_files, 1)
    follower.poll()
    write_current(settings.current_file, Current("garments", None, None, time.time(), "garments has no champion"))
    follower.poll()
    with pytest.raises(TrackingError, match="garments has no champion"):
        models.current()


def test_the_challenger_answers_in_the_shadow(model_files: Path, tmp_path: Path) -> None:
    challenger = ModelHolder()
    log = TrafficLog(tmp_path / "traffic", share=1.0, keep_images=False, keep_days=1, limit_mb=10)
    shadow = Shadow(challenger, log)
    champion = load_model(model_files, tmp_path / "1")
    answers = champion.predict(EXAMPLE)
    shadow.add("before", "1", champion.sha256, EXAMPLE, answers)
    shadow.add("other size", "1", champion.sha256, np.zeros((1, 9, 9), np.uint8), answers[:1])
    while not shadow._requests.empty():
        time.sleep(0.01)
    challenger.replace(load_model(model_files, tmp_path / "2", 2))
    shadow.add("after", "1", champion.sha256, EXAMPLE, answers)
    shadow.close()
    ends = datetime(2000, 1, 1, tzinfo=UTC), datetime(3000, 1, 1, tzinfo=UTC)
    rows = [row for table in read_traffic(tmp_path / "traffic", *ends) for row in table.to_pylist()]
    versions = {(row["request_id"], row["version"], row["shadow_version"]) for row in rows}
    assert versions == {("before", "1", None), ("other size", "1", None), ("after", "1", "2")}
