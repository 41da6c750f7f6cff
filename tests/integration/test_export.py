"""The exported model: equal bytes on a rerun, the answers of the network, without TensorFlow."""

import hashlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from pipeline.data import tiny
from pipeline.errors import ModelError
from pipeline.models import archive, backend, export, interpreter, networks
from pipeline.models.contract import read_contract
from pipeline.models.inference import predict
from pipeline.models.tasks import Task, create_task
from pipeline.params import TrainSettings, parse_params
from tests.conftest import REPOSITORY

RAW = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
CLASSES = [str(label) for label in range(10)]
SOFTMAX = create_task("sparse_categorical_crossentropy", CLASSES)
BINARY = create_task("binary_crossentropy", CLASSES, [7])
SMALL = {"widths": (4, 6)}
IMAGES, LABELS = tiny.generate(600, 5)
SUBJECT = export.Subject("tiny", tuple(CLASSES), tuple(CLASSES), ground=0)


def settings_of(preset: str, **changes: object) -> TrainSettings:
    return replace(parse_params(RAW | {"train": RAW["train"] | {"preset": preset}}).train.settings, **changes)


def create(preset: str = "mlp", task: Task = SOFTMAX, **changes: object) -> backend.keras.Model:
    """A network as `train` would save it, with random weights in every layer."""
    settings = settings_of(preset, **changes)
    backend.make_repeatable(3)
    network = networks.create_network(settings, task, (28, 28), "bfloat16")
    networks.whiten(network, lambda count: IMAGES[:count])
    generator = np.random.default_rng(4)
    answer = network.get_layer("answer")
    answer.set_weights([generator.normal(0, 0.1, weights.shape) for weights in answer.get_weights()])
    return archive.export(network, settings, task, steps=100)


def quantization(max_drop: float = 1.0, labels: np.ndarray = LABELS) -> export.Quantization:
    validation = [(IMAGES[:300], labels[:300]), (IMAGES[300:], labels[300:])]
    return export.Quantization(IMAGES[::5], validation, max_drop)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a small model with views and an int8 file, as `train` writes it. Not to be changed."""
    directory = tmp_path_factory.mktemp("model")
    network, blocks = create("cnn", **SMALL), [IMAGES[:300], IMAGES[300:]]
    export.write_model(directory, network, SOFTMAX, blocks, SUBJECT, quantization())
    return directory


@pytest.mark.parametrize(
    ("preset", "changes", "task"),
    [
        *[(preset, {}, SOFTMAX) for preset in RAW["presets"]],
        ("cnn", SMALL | {"tta": "none", "pool_stem": False}, SOFTMAX),
        ("cnn", SMALL | {"tta": "flip", "flip": True, "whitening": 0}, SOFTMAX),
        ("cnn", SMALL | {"tta": "shift", "flip": True}, create_task("categorical_crossentropy", CLASSES)),
        ("mlp", {"tta": "shift", "flip": True}, BINARY),
        ("mlp", {"widths": ()}, BINARY),
    ],
)
def test_the_exported_model_gives_the_answers_of_the_network(
    preset: str, changes: dict[str, object], task: Task
) -> None:
    network = create(preset, task, **changes)
    exported = interpreter.ExportedModel(export.convert(network))
    assert (exported.shape, exported.units) == ((28, 28), task.units)
    check = export.compare(network, exported, [IMAGES])
    assert (check.images, check.other_top_class) == (600, 0)
    assert 0 <= check.largest_difference < 1e-5
    assert exported.predict(IMAGES).std(axis=0).max() > 1e-3  # weights and images both matter


def test_a_saved_network_that_pads_uint8_is_exported_with_todays_views() -> None:
    """Release 0.1.0 made the views in this way."""
    ops, inner = backend.keras.ops, create("cnn", tta="none", **SMALL)
    image = backend.keras.Input((28, 28), dtype="uint8", name="image")
    up_left = ops.pad(image, [[0, 0], [0, 1], [0, 1]])[:, 1:, 1:]
    down_right = ops.pad(image, [[0, 0], [1, 0], [1, 0]])[:, :-1, :-1]
    answers = [
        answer for view, weight in [(image, 2), (up_left, 1), (down_right, 1)] for answer in [inner(view)] * weight
    ]
    network = backend.keras.Model(image, backend.keras.layers.Average(name="average")(answers), name="cnn_views")
    with pytest.raises(ModelError, match="Pad"):
        export.convert(network)
    exported = interpreter.ExportedModel(export.convert(networks.rebuild_views(network, "shift", flip=False)))
    assert export.compare(network, exported, [IMAGES]).other_top_class == 0


def test_a_network_that_was_trained_on_replicas_is_exported() -> None:
    settings = settings_of("cnn", **SMALL)
    strategy = backend.tf.distribute.MirroredStrategy(["/cpu:0"])
    with strategy.scope():
        network = networks.create_network(settings, SOFTMAX, (28, 28))
    saved = archive.export(network, settings, SOFTMAX, steps=100)
    export.compare(saved, interpreter.ExportedModel(export.convert(saved)), [IMAGES])


CONVERT = """
import hashlib, sys
from tests.integration.test_export import IMAGES, SMALL, create, export
network = create("cnn", **SMALL)
for representative in (None, IMAGES[::5]):
    print(hashlib.sha256(export.convert(network, representative)).hexdigest())
"""


def test_another_process_writes_the_same_bytes(model: Path) -> None:
    backend.keras.Sequential([backend.keras.layers.Dense(3), backend.keras.layers.ReLU()])
    again = export.convert(create("cnn", **SMALL))
    assert again == (model / "model.tflite").read_bytes()
    command = [sys.executable, "-c", CONVERT]
    result = subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, text=True)
    int8 = (model / "quantized/model.int8.tflite").read_bytes()
    assert result.stdout.split() == [hashlib.sha256(content).hexdigest() for content in (again, int8)]
    assert str(REPOSITORY).encode() not in again


def test_the_contract_binds_both_files(model: Path) -> None:
    contract = read_contract(model / "contract.json")
    for name, digest in [("model.keras", contract.keras_sha256), ("model.tflite", contract.litert_sha256)]:
        assert hashlib.sha256((model / name).read_bytes()).hexdigest() == digest
    assert (contract.shape, contract.check.images) == ((28, 28), 600)
    ours = predict(archive.load(model / "model.keras"), IMAGES)
    theirs = interpreter.load(model / "model.tflite", contract).predict(IMAGES)
    assert np.abs(ours - theirs).max() <= contract.check.largest_difference


def test_answers_depend_neither_on_other_images_nor_on_threads(model: Path) -> None:
    contract = read_contract(model / "contract.json")
    answers = interpreter.load(model / "model.tflite", contract).predict(IMAGES)
    assert (answers.shape, answers.dtype) == ((600, 10), np.float32)
    for threads in (1, 3):
        other = interpreter.load(model / "model.tflite", contract, threads=threads)
        parts = [other.predict(part) for part in (IMAGES[:1], IMAGES[1:6], IMAGES[6:])]
        assert np.array_equal(np.concatenate(parts), answers)
        assert other.predict(IMAGES[:0]).shape == (0, 10)


ANSWER = """
import sys
from pathlib import Path
import numpy as np
from pipeline.models import interpreter
from pipeline.models.contract import read_contract
model = interpreter.load(Path(sys.argv[1], "model.tflite"), read_contract(Path(sys.argv[1], "contract.json")))
np.save(sys.argv[2], model.predict(np.load(sys.argv[3])))
print([name for name in sys.modules if name in ("tensorflow", "keras")])
"""


def test_tensorflow_is_not_needed_for_answers(model: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", IMAGES)
    command = [sys.executable, "-c", ANSWER, model, tmp_path / "answers.npy", tmp_path / "images.npy"]
    result = subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, text=True)
    assert (result.stdout.strip(), result.stderr) == ("[]", "")
    contract = read_contract(model / "contract.json")
    answers = interpreter.load(model / "model.tflite", contract).predict(IMAGES)
    assert np.array_equal(np.load(tmp_path / "answers.npy"), answers)


def test_a_missing_damaged_or_foreign_file_is_refused(model: Path, tmp_path: Path) -> None:
    path, contract = tmp_path / "model.tflite", read_contract(model / "contract.json")
    with pytest.raises(ModelError, match=r"(?s)model.tflite is missing.*dvc repro train"):
        interpreter.load(path, contract)
    whole = (model / "model.tflite").read_bytes()
    middle = len(whole) // 2
    for content in (b"", whole[:-100], whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]):
        path.write_bytes(content)
        with pytest.raises(ModelError, match=r"(?s)not the file of its contract.*dvc checkout"):
            interpreter.load(path, contract)
    for content in (b"", b"not a model", whole[:-100], (model / "model.keras").read_bytes()):
        path.write_bytes(content)
        same_digest = replace(contract, litert_sha256=hashlib.sha256(content).hexdigest())
        with pytest.raises(ModelError, match="LiteRT cannot load the model"):
            interpreter.load(path, same_digest)
    path.write_bytes(whole)
    task = replace(contract.task, units=1)
    for other in (replace(contract, height=20), replace(contract, task=task)):
        with pytest.raises(ModelError, match="does not do what its contract says"):
            interpreter.load(path, other)


def test_images_of_another_size_or_type_are_refused(model: Path) -> None:
    exported = interpreter.load(model / "model.tflite", read_contract(model / "contract.json"))
    for images in (IMAGES[:, :20], IMAGES[0], IMAGES.astype(np.float32)):
        with pytest.raises(ModelError, match=r"(?s)does not take these images.*\[n, 28, 28\]"):
            exported.predict(images)
    assert exported.predict(IMAGES[:2]).shape == (2, 10)  # it still answers


def test_a_model_of_another_kind_is_refused() -> None:
    for shape, outputs in [((5,), 2), ((28, 28, 4), 2)]:
        image = backend.keras.Input(shape, dtype="uint8")
        flat = backend.keras.layers.Flatten()(backend.keras.layers.Rescaling(1.0)(image))
        network = backend.keras.Model(image, backend.keras.layers.Dense(outputs)(flat))
        with pytest.raises(ModelError, match="another input or output"):
            interpreter.ExportedModel(export.convert(network))


def test_files_that_answer_differently_are_refused(tmp_path: Path) -> None:
    network = create()
    exported = interpreter.ExportedModel(export.convert(network))
    kernel, bias = network.get_layer("answer").get_weights()
    network.get_layer("answer").set_weights([kernel, bias + np.eye(10, dtype=np.float32)[0] * 1e-2])
    with pytest.raises(ModelError, match=r"(?s)does not give the answers.*at most 0.0001.*a difference of 0.0"):
        export.compare(network, exported, [IMAGES])
    network.get_layer("answer").set_weights([kernel, bias * np.nan])
    with pytest.raises(ModelError, match="a difference of nan"):
        export.compare(network, exported, [IMAGES])


def test_one_image_on_the_border_of_two_classes_is_no_reason_to_refuse() -> None:
    network = create()
    kernel, bias = network.get_layer("answer").get_weights()
    network.get_layer("answer").set_weights([kernel * 0, bias * 0])
    exported = interpreter.ExportedModel(export.convert(network))  # all classes are equally probable
    bias = np.eye(10, dtype=np.float32)[5] * 1e-6
    network.get_layer("answer").set_weights([kernel * 0, bias])
    assert export.compare(network, exported, [IMAGES[:1]]).other_top_class == 1
    with pytest.raises(ModelError, match="another class for 2 of 2 validation images"):
        export.compare(network, exported, [IMAGES[:1], IMAGES[1:2]])


def test_a_layer_that_litert_does_not_have_is_named() -> None:
    image = backend.keras.Input((28, 28), dtype="uint8")
    padded = backend.keras.ops.pad(image, [[0, 0], [1, 1], [1, 1]])  # of uint8
    network = backend.keras.Model(image, backend.keras.layers.Flatten()(backend.keras.layers.Rescaling(1.0)(padded)))
    with pytest.raises(ModelError, match=r"(?s)cannot convert the network.*Pad"):
        export.convert(network)


@pytest.mark.parametrize(
    ("preset", "changes", "task"),
    [
        *[(preset, {}, SOFTMAX) for preset in RAW["presets"]],
        ("cnn", SMALL | {"tta": "flip", "flip": True, "whitening": 0}, SOFTMAX),
        ("mlp", {"tta": "shift", "flip": True}, BINARY),
    ],
)
def test_the_int8_model_takes_the_same_pixels_and_answers_nearly_the_same(
    preset: str, changes: dict[str, object], task: Task
) -> None:
    network, images = create(preset, task, **changes), IMAGES[:100]
    contents = export.convert(network), export.convert(network, IMAGES[::10])
    exact, int8 = map(interpreter.ExportedModel, contents)
    assert (int8.shape, int8.units) == ((28, 28), task.units)
    ours, theirs = exact.predict(images), int8.predict(images)
    if "widths" not in changes:
        assert len(contents[1]) < 0.4 * len(contents[0])
    resolution = 1 / 256  # of a probability in int8
    assert np.abs(ours - theirs).mean() < max(resolution, 0.2 * ours.std(axis=0).mean())
    assert np.array_equal(np.concatenate([int8.predict(images[:1]), int8.predict(images[1:])]), theirs)


def test_the_contract_has_the_int8_file_and_what_it_lost(model: Path, tmp_path: Path) -> None:
    file, contract = model / "quantized/model.int8.tflite", read_contract(model / "contract.json")
    assert contract.int8
    answers = interpreter.load_int8(file, contract).predict(IMAGES).argmax(axis=1)
    exact = interpreter.load(model / "model.tflite", contract).predict(IMAGES).argmax(axis=1)
    assert contract.int8.accuracy == pytest.approx((answers == LABELS).mean(), abs=1e-6)
    assert contract.int8.float_accuracy == pytest.approx((exact == LABELS).mean(), abs=1e-6)
    assert (contract.int8.images, contract.int8.other_top_class) == (600, (answers != exact).sum())
    with pytest.raises(ModelError, match="not the file of its contract"):
        interpreter.load_int8(model / "model.tflite", contract)


def test_without_quantization_the_other_files_are_the_same(model: Path, tmp_path: Path) -> None:
    (tmp_path / "quantized").mkdir()
    (tmp_path / "quantized/model.int8.tflite").touch()  # of a former training
    export.write_model(tmp_path, create("cnn", **SMALL), SOFTMAX, [IMAGES], SUBJECT)
    assert [path.name for path in (tmp_path / "quantized").iterdir()] == ["NOTE.txt"]
    for name in ("model.keras", "model.tflite"):
        assert (tmp_path / name).read_bytes() == (model / name).read_bytes()
    without, contract = (json.loads((path / "contract.json").read_text()) for path in (tmp_path, model))
    assert without == {key: value for key, value in contract.items() if key != "int8"}


def test_an_int8_model_that_loses_too_much_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    network = create("cnn", **SMALL)
    labels = interpreter.ExportedModel(export.convert(network)).predict(IMAGES).argmax(axis=1)
    black = export.Quantization(IMAGES[:5] * 0, [(IMAGES, labels.astype(np.uint8))], 0.05)  # ranges of no use
    with pytest.raises(ModelError, match=r"(?s)loses too much accuracy.*at most 5 points.*instead of 100.00%.*none"):
        export.write_model(tmp_path, network, SOFTMAX, [IMAGES], SUBJECT, black)
    assert list(tmp_path.iterdir()) == []


def test_a_model_of_a_yes_or_no_task_says_which_classes_are_a_yes(tmp_path: Path) -> None:
    export.write_model(tmp_path, create(task=BINARY), BINARY, [IMAGES], SUBJECT, quantization())
    contract = read_contract(tmp_path / "contract.json")
    assert contract.int8
    answers = interpreter.load(tmp_path / "model.tflite", contract).predict(IMAGES)[:, 0] > 0.5
    assert contract.int8.float_accuracy == pytest.approx((answers == (LABELS == 7)).mean(), abs=1e-6)
    assert (contract.task.units, contract.task.positive_classes, contract.create_task()) == (1, ("7",), BINARY)
