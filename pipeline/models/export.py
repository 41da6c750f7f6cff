"""Export of a trained network: its two files, and the check that they give the same answers."""

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal
from pathlib import Path
from typing import Literal

import numpy as np

from pipeline.errors import ModelError
from pipeline.files import atomic_file, file_digest
from pipeline.models import archive
from pipeline.models.backend import keras, tf
from pipeline.models.contract import (
    CONTRACT_FILE,
    KERAS_FILE,
    LITERT_FILE,
    Contract,
    ContractTask,
    ExportCheck,
    Ground,
    write_contract,
)
from pipeline.models.inference import create_predictor
from pipeline.models.interpreter import ExportedModel
from pipeline.models.native_stderr import hold_stderr
from pipeline.models.tasks import Task

MOST_DIFFERENCE = 1e-4  # of two probabilities
OTHERS_ONE_IN = 10_000  # images may have another most probable class: one in so many, begun ones counted


@dataclass(frozen=True)
class Subject:
    """What the images of a model are."""

    dataset: str
    classes: tuple[str, ...]  # in English, in the order of the labels
    classes_ko: tuple[str, ...]
    ground: Ground  # of the training images
    resizing: Literal["fit", "crop"] = "fit"  # of pictures of another size


def write_model(
    directory: Path, network: keras.Model, task: Task, validation: Iterable[np.ndarray], subject: Subject
) -> None:
    """Write a trained network as `model.keras` and `model.tflite`, with their `contract.json`.

    Args:
        network: as `archive.export` returns it.
        validation: images uint8 [n, *shape], in blocks.

    Raises:
        ModelError: the network cannot be converted, or its two files do not give the same answers.
    """
    archive.save(network, directory / KERAS_FILE)
    write_exported_model(directory, network, convert(network), task, validation, subject)


def write_exported_model(
    directory: Path,
    network: keras.Model,
    content: bytes,
    task: Task,
    validation: Iterable[np.ndarray],
    subject: Subject,
) -> None:
    """Write `model.tflite` and `contract.json` beside the `model.keras` of a network.

    Args:
        content: of the exported model, as `convert` returns it.
        validation: images uint8 [n, *shape], in blocks.

    Raises:
        ModelError: the two files do not give the same answers.
    """
    check = compare(network, ExportedModel(content), validation)
    with atomic_file(directory / LITERT_FILE) as partial:
        partial.write_bytes(content)
    _, height, width, *colours = network.input_shape
    positive = tuple(subject.classes[label] for label in task.positive)
    contract = Contract(
        dataset=subject.dataset,
        classes=subject.classes,
        classes_ko=subject.classes_ko,
        height=height,
        width=width,
        channels=3 if colours else 1,
        colour_order="rgb" if colours else "grey",
        ground=subject.ground,
        resizing=subject.resizing,
        task=ContractTask(loss=task.loss, units=task.units, positive_classes=positive),
        keras_sha256=file_digest(directory / KERAS_FILE),
        litert_sha256=hashlib.sha256(content).hexdigest(),
        check=check,
    )
    write_contract(directory / CONTRACT_FILE, contract)


def convert(network: keras.Model) -> bytes:
    """Convert a network to the content of a `.tflite` file. Equal networks give equal bytes.

    Raises:
        ModelError: LiteRT lacks an operation of the network.
    """
    image = tf.TensorSpec(network.input_shape, tf.uint8, name="image")
    module = tf.Module()
    module.answer = tf.function(lambda image: network(image, training=False), input_signature=[image], autograph=False)
    module.weights = [variable.value for variable in network.variables]  # or the file would contain none
    concrete = module.answer.get_concrete_function()
    try:
        with hold_stderr():
            return bytes(tf.lite.TFLiteConverter.from_concrete_functions([concrete], module).convert())
    except Exception as error:  # the converter's own class is not public
        raise ModelError(
            f"cannot convert the network {network.name} for LiteRT",
            expected="operations that LiteRT has",
            found=str(error).splitlines()[0],
            remedy="replace the layer that is named above",
        ) from error


def compare(network: keras.Model, exported: ExportedModel, blocks: Iterable[np.ndarray]) -> ExportCheck:
    """Compare the answers of a network and of its exported model.

    Args:
        blocks: images uint8 [n, *shape].

    Raises:
        ModelError: they differ by more than rounding explains.
    """
    predict = create_predictor(network)
    images, largest, others = 0, 0.0, 0
    for block in blocks:
        ours, theirs = predict(block), exported.predict(block)
        images += len(block)
        largest = float(np.maximum(largest, np.abs(ours - theirs).max(initial=0)))  # of NaN it is NaN
        others += int((_top_class(ours) != _top_class(theirs)).sum())
    if not largest <= MOST_DIFFERENCE or others > math.ceil(images / OTHERS_ONE_IN):
        raise ModelError(
            "the exported model does not give the answers of the network",
            expected=f"probabilities that differ by at most {MOST_DIFFERENCE:g}, and another most probable class for "
            f"at most one image in {OTHERS_ONE_IN:,}",
            found=f"a difference of {largest:.2g}, and another class for {others:,} of {images:,} validation images",
            remedy="replace the layers that LiteRT computes differently, or report the network",
        )
    return ExportCheck(images=images, largest_difference=_round_up(largest), other_top_class=others)


def _top_class(answers: np.ndarray) -> np.ndarray:
    return answers.argmax(axis=1) if answers.shape[1] > 1 else answers[:, 0] > 0.5


def _round_up(value: float) -> float:
    """Round up to one digit, because the rest depends on the machine."""
    number = Decimal(value)
    return float(number.quantize(Decimal(1).scaleb(number.adjusted()), ROUND_CEILING)) if value else 0.0
