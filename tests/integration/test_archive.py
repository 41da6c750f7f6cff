"""The model file: equal bytes for equal models, loads where none of our code is, and says so when it is damaged."""

import json
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from pipeline.data import tiny
from pipeline.errors import ModelError
from pipeline.models import archive, backend, networks
from pipeline.models.inference import predict
from pipeline.models.tasks import Task, create_task
from pipeline.params import TrainSettings, parse_params
from tests.conftest import REPOSITORY

RAW = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
CLASSES = [str(label) for label in range(10)]
SOFTMAX = create_task("sparse_categorical_crossentropy", CLASSES)
IMAGES, _ = tiny.generate(30, 5)


def settings_of(preset: str) -> TrainSettings:
    return parse_params(RAW | {"train": RAW["train"] | {"preset": preset}}).train.settings


def save(path: Path, preset: str = "mlp", task: Task = SOFTMAX, **changes: object) -> backend.keras.Model:
    """An untrained network of a preset, as `train` would save it."""
    settings = replace(settings_of(preset), **changes)
    backend.make_repeatable(3)
    network = networks.create_network(settings, task, (28, 28), "bfloat16")
    exported = archive.export(network, settings, task, steps=100)
    archive.save(exported, path)
    return exported


def python(code: str, *arguments: object, cwd: Path) -> str:
    """Run code in a fresh interpreter that cannot see this project."""
    command = [sys.executable, "-I", "-c", code, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("preset", RAW["presets"])
def test_equal_models_have_equal_bytes_whatever_was_made_before(preset: str, tmp_path: Path) -> None:
    save(tmp_path / "first.keras", preset)
    backend.keras.Sequential([backend.keras.layers.Dense(3), backend.keras.layers.ReLU()])
    save(tmp_path / "second.keras", preset)
    assert (tmp_path / "first.keras").read_bytes() == (tmp_path / "second.keras").read_bytes()
    save(tmp_path / "other.keras", preset, learning_rate=0.001)
    assert (tmp_path / "first.keras").read_bytes() != (tmp_path / "other.keras").read_bytes()


def test_nothing_in_the_file_tells_when_or_where_it_was_made(tmp_path: Path) -> None:
    save(tmp_path / "model.keras")
    with zipfile.ZipFile(tmp_path / "model.keras") as saved:
        assert {entry.date_time for entry in saved.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert json.loads(saved.read("metadata.json")).keys() == {"keras_version"}
        config = saved.read("config.json").decode()
    assert str(tmp_path) not in config
    ids = [int(part.split(",")[0].strip("}] ")) for part in config.split('"shared_object_id": ')[1:]]
    assert max(ids, default=0) < 1000


ANSWERS_ELSEWHERE = """
import os, sys
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import keras, numpy
images = numpy.load("images.npy")
for preset in sys.argv[1:]:
    model = keras.saving.load_model(preset + ".keras")
    numpy.save(preset + ".npy", model(images).numpy())
    print(model.optimizer.name, float(model.optimizer.learning_rate), "pipeline" in sys.modules, model.loss.name)
    model.fit(images, numpy.zeros(len(images)), epochs=1, verbose=0)
"""


def test_it_answers_the_same_and_trains_on_where_none_of_our_code_is(tmp_path: Path) -> None:
    settings = {preset: settings_of(preset) for preset in RAW["presets"]}
    exported = {
        preset: save(tmp_path / f"{preset}.keras", preset, schedule="constant", widths=settings[preset].widths[:2])
        for preset in settings
    }
    np.save(tmp_path / "images.npy", IMAGES)
    said = python(ANSWERS_ELSEWHERE, *settings, cwd=tmp_path).splitlines()
    for preset, line in zip(settings, said, strict=True):
        optimizer, learning_rate, ours, loss = line.split()
        assert optimizer == settings[preset].optimizer
        assert float(learning_rate) == pytest.approx(settings[preset].learning_rate)
        assert (ours, loss) == ("False", "sparse_categorical_crossentropy")
        assert np.array_equal(np.load(tmp_path / f"{preset}.npy"), exported[preset](IMAGES).numpy()), preset


@pytest.mark.parametrize(
    ("task", "outputs"),
    [
        (SOFTMAX, 10),
        (create_task("categorical_crossentropy", CLASSES), 10),
        (create_task("binary_crossentropy", CLASSES, [7]), 1),
    ],
    ids=["sparse", "categorical", "binary"],
)
@pytest.mark.filterwarnings("error::UserWarning")
def test_it_loads_compiled_and_answers_in_float32(task: Task, outputs: int, tmp_path: Path) -> None:
    exported = save(tmp_path / "model.keras", task=task)
    loaded = archive.load(tmp_path / "model.keras")
    answers = predict(loaded, IMAGES)
    assert (answers.shape, answers.dtype) == ((30, outputs), np.float32)
    assert np.array_equal(answers, predict(exported, IMAGES))
    assert loaded.optimizer.get_config() == exported.optimizer.get_config()
    loss, accuracy = loaded.evaluate(IMAGES, task.encode(np.zeros(30, np.uint8)), verbose=0)
    assert np.isfinite(loss)
    assert 0 <= accuracy <= 1


def test_answers_do_not_depend_on_the_images_beside_them(tmp_path: Path) -> None:
    network = save(tmp_path / "model.keras", "cnn", widths=(4, 6))
    together = predict(network, np.repeat(IMAGES, 40, axis=0))[::40]
    assert np.array_equal(predict(network, IMAGES), together)
    assert predict(network, IMAGES[:0]).shape == (0, 10)


def test_a_missing_or_damaged_file_is_named_with_what_brings_it_back(tmp_path: Path) -> None:
    path = tmp_path / "model.keras"
    with pytest.raises(ModelError, match=r"(?s)model.keras is missing.*dvc repro train"):
        archive.load(path)
    save(path)
    whole = path.read_bytes()
    middle = len(whole) // 2
    flipped = whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :]
    for content in (whole[:-100], whole[:middle], flipped, b"", b"not a zip archive"):
        path.write_bytes(content)
        with pytest.raises(ModelError, match=r"(?s)model.keras is damaged.*dvc checkout"):
            archive.load(path)
    with zipfile.ZipFile(path, "w") as other:
        other.writestr("readme.txt", "an archive of something else")
    with pytest.raises(ModelError, match="is damaged"):
        archive.load(path)


def test_a_failed_save_leaves_the_former_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "model.keras"
    save(path)
    before = path.read_bytes()

    class Unsaveable(backend.keras.layers.Layer):
        def call(self, inputs: object) -> object:
            return inputs

        def get_config(self) -> dict[str, object]:
            raise RuntimeError("cannot be described")

    inputs = backend.keras.Input((2,))
    with pytest.raises(RuntimeError, match="cannot be described"):
        archive.save(backend.keras.Model(inputs, Unsaveable()(inputs)), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
