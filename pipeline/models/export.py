"""Export of a trained network: its two files, and the check that they give the same answers; optionally in int8 too."""

import hashlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal
from pathlib import Path
from typing import Literal

import numpy as np

from pipeline.errors import ModelError
from pipeline.files import atomic_directory, atomic_file, file_digest
from pipeline.models import archive
from pipeline.models.backend import keras, tf
from pipeline.models.contract import (
    CONTRACT_FILE,
    INT8_FILE,
    KERAS_FILE,
    LITERT_FILE,
    QUANTIZED_FOLDER,
    Contract,
    ContractTask,
    ExportCheck,
    Ground,
    Int8Check,
    write_contract,
)
from pipeline.models.inference import create_predictor
from pipeline.models.interpreter import BATCH_PIXELS, ExportedModel
from pipeline.models.native_stderr import hold_stderr
from pipeline.models.tasks import Task

MOST_DIFFERENCE = 1e-4  # of two probabilities
OTHERS_ONE_IN = 10_000  # images may have another most probable class: one in so many, begun ones counted
REPRESENTATIVE_IMAGES = 1000  # at most; training images that set the ranges of the int8 numbers
REPRESENTATIVE_BATCH = 100  # bounds the memory
DIGITS = 6  # of an accuracy


@dataclass(frozen=True)
class Subject:
    """What the images of a model are."""

    dataset: str
    classes: tuple[str, ...]  # in English, in the order of the labels
    classes_ko: tuple[str, ...]
    ground: Ground  # of the training images
    resizing: Literal["fit", "crop"] = "fit"  # of pictures of another size


@dataclass(frozen=True)
class Quantization:
    """The images that an int8 file is made and judged by, and the limit on its loss of accuracy."""

    representative: np.ndarray  # training images uint8 [n, *shape]
    validation: Iterable[tuple[np.ndarray, np.ndarray]]  # images, and the dataset's labels uint16 [n], in blocks
    max_drop: float  # of the accuracy on the validation images


def write_model(
    directory: Path,
    network: keras.Model,
    task: Task,
    validation: Iterable[np.ndarray],
    subject: Subject,
    quantization: Quantization | None = None,
) -> None:
    """Write a trained network as `model.keras` and `model.tflite`, with their `contract.json`.

    With a quantization, also write `quantized/model.int8.tflite`. Otherwise that directory only says so.

    Args:
        network: as `archive.export` returns it.
        validation: images uint8 [n, *shape], in blocks.

    Raises:
        ModelError: the network cannot be converted, its two files do not give the same answers, or the int8 file loses
            too much accuracy. In the last case, nothing is written.
    """
    content, quantized, int8 = convert(network), b"", None
    if quantization:
        quantized = convert(network, quantization.representative)
        int8 = check_int8(ExportedModel(content), quantized, quantization, task)
    archive.save(network, directory / KERAS_FILE)
    with atomic_directory(directory / QUANTIZED_FOLDER) as partial:
        if int8:
            (partial / INT8_FILE).write_bytes(quantized)
        else:  # DVC warns about an empty directory
            (partial / "NOTE.txt").write_text("There is no int8 file, because train.quantize was none.\n")
    write_exported_model(directory, network, content, task, validation, subject, int8)


def write_exported_model(
    directory: Path,
    network: keras.Model,
    content: bytes,
    task: Task,
    validation: Iterable[np.ndarray],
    subject: Subject,
    int8: Int8Check | None = None,
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
        int8=int8,
    )
    write_contract(directory / CONTRACT_FILE, contract)


def convert(network: keras.Model, representative: np.ndarray | None = None) -> bytes:
    """Convert a network to the content of a `.tflite` file. Equal arguments give equal bytes.

    Args:
        representative: images uint8 [n, *shape]. The file then computes in int8, with the ranges of these
            images. It still takes uint8 and returns float32.

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
            converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete], module)
            if representative is not None:
                converter.optimizations = [tf.lite.Optimize.DEFAULT]
                converter.representative_dataset = lambda: _batches(representative)
                converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
            return bytes(converter.convert())
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


def check_int8(exported: ExportedModel, content: bytes, quantization: Quantization, task: Task) -> Int8Check:
    """Compare an int8 model with the exported model on the validation images.

    Args:
        content: of the int8 model.

    Raises:
        ModelError: its accuracy is lower by more than the limit.
    """
    model = ExportedModel(content)
    images = correct = float_correct = others = 0
    for block, labels in quantization.validation:
        true, ours, theirs = task.answers(labels), _top_class(exported.predict(block)), _top_class(model.predict(block))
        images += len(block)
        correct += int((theirs == true).sum())
        float_correct += int((ours == true).sum())
        others += int((ours != theirs).sum())
    accuracy, float_accuracy = correct / images, float_correct / images
    if (float_correct - correct) / images > quantization.max_drop:
        raise ModelError(
            f"{INT8_FILE} loses too much accuracy",
            expected=f"at most {100 * quantization.max_drop:g} points less than {LITERT_FILE} on the validation images "
            "(train.quantize_max_drop)",
            found=f"{accuracy:.2%} instead of {float_accuracy:.2%} of {images:,} images",
            remedy="set train.quantize to none, or raise train.quantize_max_drop; the same command then continues "
            "after the last epoch",
        )
    return Int8Check(
        sha256=hashlib.sha256(content).hexdigest(),
        images=images,
        accuracy=round(accuracy, DIGITS),
        float_accuracy=round(float_accuracy, DIGITS),
        other_top_class=others,
    )


def _batches(images: np.ndarray) -> Iterator[list[np.ndarray]]:
    """The inputs of the converter's calibration."""
    batch = min(REPRESENTATIVE_BATCH, max(1, BATCH_PIXELS // math.prod(images.shape[1:3])))
    return ([images[start : start + batch]] for start in range(0, len(images), batch))


def _top_class(answers: np.ndarray) -> np.ndarray:
    return answers.argmax(axis=1) if answers.shape[1] > 1 else answers[:, 0] > 0.5


def _round_up(value: float) -> float:
    """Round up to one digit, because the rest depends on the machine."""
    number = Decimal(value)
    return float(number.quantize(Decimal(1).scaleb(number.adjusted()), ROUND_CEILING)) if value else 0.0
