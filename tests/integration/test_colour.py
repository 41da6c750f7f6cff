"""Images in colour and of any proportions: training, the exported model, its contract and its evaluation."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.data.image_background import measure_ground
from pipeline.evaluation.gate import judge
from pipeline.evaluation.metrics import class_probabilities
from pipeline.evaluation.report import Answers, explain_mistakes, measure, write_evaluation
from pipeline.models import archive, backend, export, interpreter, networks, training
from pipeline.models.checkpoints import Checkpoint
from pipeline.models.contract import CONTRACT_FILE, LITERT_FILE, read_contract
from pipeline.models.inputs import Examples, Source, Stream
from pipeline.models.tasks import create_task
from pipeline.params import Loss, load_params
from pipeline.tracking.stage_outputs import read_csv
from tests.conftest import REPOSITORY
from tests.unit.test_networks import settings_of

CLASSES = ("red", "green", "blue")
SHAPE = (40, 24, 3)
GROUND = (30, 60, 90)


def draw_hues(count: int, seed: int) -> Examples:
    """Draw images that differ only in hue: the same random shape and brightness in the class's channel."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count).astype(np.uint16)
    images = np.full((count, *SHAPE), GROUND, np.uint8)
    for image, label in zip(images, labels, strict=True):
        top, left, height, width = rng.integers((2, 2, 8, 6), (20, 10, 18, 12))
        texture = rng.integers(120, 256, (height, width))
        image[top : top + height, left : left + width] = 0
        image[top : top + height, left : left + width, label] = texture
    return Examples(images, labels)


def as_stream(examples: Examples) -> Stream:
    """The same images, in groups that do not fit into memory together."""
    size = 32
    groups = [slice(first, first + size) for first in range(0, len(examples.labels), size)]
    sizes = [len(examples.labels[group]) for group in groups]
    return Stream(sizes, lambda number: (examples.images[groups[number]], examples.labels[groups[number]]), SHAPE, 1)


@dataclass(frozen=True)
class Case:
    preset: str
    changes: dict[str, Any]
    streamed: bool = False
    binary: bool = False


CASES = {
    "mlp": Case("mlp", {"epochs": 8, "flip": True, "shift": 2}),
    "cnn": Case("cnn", {"epochs": 3, "erase": 6}),
    "cnn-large": Case("cnn-large", {"epochs": 2, "widths": (8, 16, 16)}),
    "streamed": Case("cnn", {"epochs": 3, "flip": True, "widths": (16, 16)}, streamed=True),
    "yes or no": Case("cnn", {"epochs": 3, "widths": (16, 16)}, binary=True),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_hues_are_told_apart(case: Case, tmp_path: Path) -> None:
    settings = replace(settings_of(case.preset), batch_size=32, **case.changes)
    loss: Loss = "binary_crossentropy" if case.binary else "sparse_categorical_crossentropy"
    task = create_task(loss, CLASSES, ["blue"] if case.binary else [])
    backend.make_repeatable(1)
    examples, validation, test = (draw_hues(count, seed) for seed, count in enumerate((480, 120, 200)))
    source: Source = as_stream(examples) if case.streamed else examples
    ground = measure_ground(validation.images)
    network = networks.create_network(settings, task, SHAPE)
    networks.whiten(network, source.sample)
    checkpoint = Checkpoint(tmp_path / "checkpoint.npz")
    list(training.train(network, task, source, validation, settings, seed=1, checkpoint=checkpoint, ground=ground))
    exported = archive.export(network, settings, task, 100, ground=ground)
    subject = export.Subject("hues", CLASSES, (), ground)
    quantization = export.Quantization(examples.images[:100], [(validation.images, validation.labels)], max_drop=0.05)
    export.write_model(tmp_path, exported, task, [validation.images], subject, quantization if case.binary else None)

    contract = read_contract(tmp_path / CONTRACT_FILE)
    assert (contract.shape, contract.colour_order, contract.ground) == (SHAPE, "rgb", GROUND)
    assert contract.answers_ko == ()
    model = interpreter.load(tmp_path / LITERT_FILE, contract)
    answers = Answers(
        dataset="hues",
        classes=task.classes,
        classes_ko=contract.answers_ko,
        ids=[str(row) for row in range(len(test.labels))],
        images=test.images,
        labels=task.answers(test.labels),
        probabilities=class_probabilities(model.predict(test.images)),
    )
    metrics = measure(answers)
    assert metrics["accuracy"] > 0.95
    gate = judge(metrics, 1000, load_params(REPOSITORY / "params.yaml").evaluate)
    saliency = explain_mistakes(answers, model.predict, contract.ground)
    write_evaluation(tmp_path / "evaluation", answers, metrics, gate, saliency)
    assert "class_ko" not in read_csv(tmp_path / "evaluation/per_class.csv")[0]
    assert "클래스" not in (tmp_path / "evaluation/report.md").read_text()
