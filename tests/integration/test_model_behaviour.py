"""What a trained model must do beyond a good score: a garment stays what it is when it is seen a little differently.

The networks of two presets, trained for seconds on generated garments; the thresholds leave room for other seeds and
processors.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from pipeline.data import tiny
from pipeline.data.image_background import measure_ground
from pipeline.evaluation.saliency import SaliencyCheck, check_saliency
from pipeline.models import archive, backend, networks, tasks, training
from pipeline.models.checkpoints import Checkpoint
from pipeline.models.inference import create_predictor
from pipeline.params import parse_params
from tests.conftest import REPOSITORY

pytestmark = pytest.mark.xdist_group("behaviour")  # each network is trained once

Model = Callable[[np.ndarray], np.ndarray]
Change = Callable[[np.ndarray], np.ndarray]

EPOCHS = {"mlp": 8, "cnn": 3}
TRAINING, VALIDATION, SEED = 1800, 200, 1


def train_model(preset: str, directory: Path, *, shuffle: bool = False) -> Model:
    """The model as its file holds it: uint8 [n, 28, 28] to probabilities [n, 10]."""
    raw = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
    raw["train"] |= {"preset": preset, "epochs": EPOCHS[preset], "batch_size": 64}
    settings = replace(parse_params(raw).train.settings, precision="float32", tta="none")
    images, labels = tiny.generate(TRAINING + VALIDATION, tiny.SEED)
    if shuffle:
        labels = np.random.default_rng(SEED).permutation(labels)
    task = tasks.create_task("sparse_categorical_crossentropy", [f"garment {label}" for label in range(10)])
    backend.make_repeatable(SEED)
    network = networks.create_network(settings, task, images.shape[1:])
    networks.whiten(network, lambda count: images[:count])
    parts = [training.Examples(images[part], labels[part]) for part in (slice(TRAINING), slice(TRAINING, None))]
    checkpoint = Checkpoint(directory / "checkpoint.npz")
    for _ in training.train(network, task, *parts, settings, seed=SEED, checkpoint=checkpoint):
        pass
    archive.save(archive.export(network, settings, task, steps=1), directory / "model.keras")
    return create_predictor(archive.load(directory / "model.keras"))


def shift(down: int, right: int) -> Change:
    return lambda images: np.roll(images, (down, right), axis=(1, 2))


def dim(brightness: float) -> Change:
    return lambda images: (images * brightness).astype(np.uint8)


def mirror(images: np.ndarray) -> np.ndarray:
    return images[:, :, ::-1]


def add_noise(images: np.ndarray) -> np.ndarray:
    noise = np.random.default_rng(SEED).integers(-8, 9, images.shape)
    return np.clip(images + noise, 0, 255).astype(np.uint8)


# What is done to a garment, and the share of the images that must keep their class, by the dense and the convolutional
# network. A dense network has no notion of a shift: it knows those that it was shown.
CHANGES: dict[str, tuple[Change, float, float]] = {
    "shifted down": (shift(1, 0), 0.80, 0.95),
    "shifted up": (shift(-1, 0), 0.80, 0.95),
    "shifted right": (shift(0, 1), 0.80, 0.95),
    "shifted left": (shift(0, -1), 0.80, 0.95),
    "mirrored": (mirror, 0.90, 0.95),
    "dimmed by a tenth": (dim(0.9), 0.95, 0.95),
    "dimmed by a third": (dim(0.67), 0.95, 0.90),
    "with a little noise": (add_noise, 0.95, 0.95),
}


@dataclass(frozen=True)
class Behaviour:
    """A model's answers about garments that it was not trained on, and about what was made of them."""

    preset: str
    labels: np.ndarray  # uint8 [n]
    probabilities: np.ndarray  # float32 [n, classes]
    alone: np.ndarray  # float32 [3, classes]: of the first three, asked without the others
    changed: dict[str, np.ndarray]  # float32 [n, classes], by the key of CHANGES
    saliency: SaliencyCheck


@pytest.fixture(scope="module", params=EPOCHS)
def behaviour(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Behaviour:
    model = train_model(request.param, tmp_path_factory.mktemp(request.param))
    images, labels = tiny.generate(200, tiny.SEED + 2)
    together = np.concatenate([images, *(change(images) for change, *_ in CHANGES.values())])
    plain, *changed = np.split(model(together), len(CHANGES) + 1)
    saliency = check_saliency(model, images, plain.argmax(axis=1), measure_ground(images))
    changes = dict(zip(CHANGES, changed, strict=True))
    return Behaviour(request.param, labels, plain, model(images[:3]), changes, saliency)


def test_unseen_garments_are_recognised(behaviour: Behaviour) -> None:
    assert (behaviour.probabilities.argmax(axis=1) == behaviour.labels).mean() > 0.9


def test_answers_are_probabilities(behaviour: Behaviour) -> None:
    assert behaviour.probabilities.dtype == np.float32
    assert behaviour.probabilities.min() >= 0
    assert np.allclose(behaviour.probabilities.sum(axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("change", CHANGES)
def test_a_garment_that_is_changed_a_little_keeps_its_class(behaviour: Behaviour, change: str) -> None:
    before, after = behaviour.probabilities, behaviour.changed[change]
    kept = (before.argmax(axis=1) == after.argmax(axis=1)).mean()
    assert kept >= CHANGES[change][1 if behaviour.preset == "mlp" else 2]


def test_an_answer_does_not_depend_on_the_other_images(behaviour: Behaviour) -> None:
    assert (behaviour.alone == behaviour.probabilities[:3]).all()


def test_pixels_that_the_saliency_marks_matter_more_than_others(behaviour: Behaviour) -> None:
    assert behaviour.saliency.is_meaningful
    assert behaviour.saliency.marked > 0.01


def test_labels_without_meaning_cannot_be_learnt(tmp_path: Path) -> None:
    images, labels = tiny.generate(200, tiny.SEED + 2)
    model = train_model("mlp", tmp_path, shuffle=True)
    assert (model(images).argmax(axis=1) == labels).mean() < 0.3
