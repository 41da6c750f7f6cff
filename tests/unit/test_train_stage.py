"""What the train stage decides before it trains: views, sources, the checkpoint's name; and what it says meanwhile."""

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.data import table, tiny
from pipeline.evaluation.training_report import write_training
from pipeline.files import read_json
from pipeline.models.inputs import Examples, Stream
from pipeline.models.training import Progress
from pipeline.params import load_params
from pipeline.stages import train as stage
from tests.conftest import REPOSITORY

SETTINGS = load_params(REPOSITORY / "params.yaml").train.settings
CLASSES = tuple(str(label) for label in range(10))
DATASET = table.Dataset("garments", 28, 28, CLASSES, CLASSES, flip=True)


@pytest.fixture
def splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace with 60 images to train on and 20 to validate on, which is the current directory."""
    for file, count in ((stage.TRAIN, 60), (stage.VALIDATION, 20)):
        images, labels = tiny.generate(count, count)
        ids = table.strings([str(number) for number in range(count)])
        with table.writer(tmp_path / file, DATASET) as rows:
            rows.write(images, labels, ids, ids)
    (tmp_path / stage.PINS).write_text("")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("survive", "tta", "resolved"),
    [(True, "flip", "flip"), (True, "shift", "shift"), (False, "flip", "none"), (False, "shift", "shift")],
)
def test_images_are_mirrored_only_where_the_classes_survive_it(survive: bool, tta: str, resolved: str) -> None:
    asked = replace(SETTINGS, flip=True, tta=tta)
    settings = stage._resolve_views(asked, replace(DATASET, flip=survive))
    assert (settings.flip, settings.tta) == (survive, resolved)
    assert not stage._resolve_views(replace(asked, flip=False), DATASET).flip


def test_images_are_streamed_when_they_take_more_than_the_limit(splits: Path) -> None:
    size = 80 * 28 * 28
    assert [type(source) for source in stage._open_sources(DATASET, size)] == [Examples, Examples]
    train, validation = stage._open_sources(DATASET, size - 1)
    assert (type(train), type(validation)) == (Stream, Stream)
    assert (train.shape, validation.shape) == ((60, 28, 28), (20, 28, 28))


def test_each_training_has_a_checkpoint_of_its_own(splits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "main_repository", lambda: splits)

    def name(threads: int = 2) -> str:
        return stage._find_checkpoint({"seed": 1, "threads": threads}, read_only=False).path.name

    names = [name(), name(threads=4)]
    assert names[0] == name()
    for variable in stage.COMPILER_FLAGS:
        monkeypatch.setenv(variable, "other")
        names.append(name())
    for file in (stage.TRAIN, stage.VALIDATION, stage.PINS):
        (splits / file).write_bytes((splits / file).read_bytes() + b"other")
        names.append(name())
    for module in (table, stage):
        monkeypatch.setattr(module, "__file__", str(splits / stage.PINS))
        names.append(name())
    assert len(set(names)) == len(names)


def test_a_long_epoch_prints_its_progress_and_the_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 100.0
    monkeypatch.setattr(stage.time, "monotonic", lambda: now)
    terminal = stage._Terminal(epochs=3, images=6000)
    for seconds in (1, 6, 7, 12):
        now = 100.0 + seconds
        terminal.print_progress(Progress(epoch=2, done=0.25, loss=0.5, images_per_second=100.0))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2  # not after a second, nor a second after the first line
    for part in ("25% of epoch 2", "100 images/s", "loss 0.5000", "1:45 left"):  # 1.75 epochs of 60 seconds
        assert part in lines[0]


def test_the_metrics_are_those_of_the_kept_epoch_on_the_validation_split(tmp_path: Path) -> None:
    epoch = {"loss": 0.5, "accuracy": 0.8, "validation_loss": 0.123456789, "validation_accuracy": 0.9}
    epoch |= {"learning_rate": 0.1}
    history = [epoch | {"epoch": 1}, epoch | {"epoch": 2, "validation_loss": float("nan"), "validation_accuracy": 0.1}]
    write_training(tmp_path / "report", history, {"best_epoch": 1})
    assert read_json(tmp_path / "report/metrics.json") == {"validation_accuracy": 0.9, "validation_loss": 0.123457}
    write_training(tmp_path / "report", history, {"best_epoch": 2})
    assert read_json(tmp_path / "report/metrics.json") == {"validation_accuracy": 0.1, "validation_loss": None}
