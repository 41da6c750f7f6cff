"""Answers of an exported model (`model.tflite`, `model.int8.tflite`) by LiteRT, without TensorFlow.

Starting takes a tenth of a second, and memory for the model and one batch.
"""

import hashlib
import math
import shlex
from pathlib import Path

import numpy as np

from pipeline.errors import ModelError
from pipeline.models.contract import Contract
from pipeline.models.native_stderr import hold_stderr

BATCH, BATCH_PIXELS = 256, 2**18  # at most so many images and pixels, to bound the memory; answers do not depend on it
THREADS = 2  # fixed: LiteRT does not promise the same last bits for another number of threads


class ExportedModel:
    """A loaded model. Use it in one thread at a time."""

    def __init__(self, content: bytes, *, threads: int = THREADS) -> None:
        """Load a model.

        Args:
            content: of a file that `export.convert` made. LiteRT does not detect all damage: check its digest first.

        Raises:
            ModelError: LiteRT cannot load it, or it is not a model of this pipeline.
        """
        from ai_edge_litert.interpreter import Interpreter

        try:
            with hold_stderr():
                self._interpreter = Interpreter(model_content=content, num_threads=threads)
                self._interpreter.allocate_tensors()
            (image,), (answer,) = self._interpreter.get_input_details(), self._interpreter.get_output_details()
        except (ValueError, RuntimeError) as error:
            found = (str(error).splitlines() or [type(error).__name__])[0]
            raise ModelError("LiteRT cannot load the model", expected="a .tflite file", found=found) from None
        self._image, self._answer = int(image["index"]), int(answer["index"])
        self._batch = 0
        shapes = [tuple(map(int, tensor["shape_signature"])) for tensor in (image, answer)]
        kinds = [tensor["dtype"] for tensor in (image, answer)]
        is_image = len(shapes[0]) == 3 or (len(shapes[0]) == 4 and shapes[0][3] == 3)
        if not is_image or len(shapes[1]) != 2 or kinds != [np.uint8, np.float32]:
            raise ModelError(
                "the exported model has another input or output than the models of this pipeline",
                expected="uint8 [n, height, width] or [n, height, width, 3], and float32 [n, outputs]",
                found=" and ".join(
                    f"{np.dtype(kind)} {list(shape)}" for kind, shape in zip(kinds, shapes, strict=True)
                ),
            )
        self.shape = shapes[0][1:]  # of an image: (height, width) or (height, width, 3)
        self.units = shapes[1][1]  # outputs for an image

    def predict(self, images: np.ndarray) -> np.ndarray:
        """Probabilities for images uint8 [n, *shape]: float32 [n, outputs].

        Raises:
            ModelError: the images have another type or shape.
        """
        if images.dtype != np.uint8 or images.shape[1:] != self.shape:
            raise ModelError(
                "the model does not take these images",
                expected=f"uint8 [n, {', '.join(map(str, self.shape))}]",
                found=f"{images.dtype} {list(images.shape)}",
            )
        answers = np.empty((len(images), self.units), np.float32)
        batch = min(BATCH, max(1, BATCH_PIXELS // math.prod(self.shape[:2])))
        for start in range(0, len(images), batch):
            answers[start : start + batch] = self._predict_batch(images[start : start + batch])
        return answers

    def _predict_batch(self, images: np.ndarray) -> np.ndarray:
        if len(images) != self._batch:
            self._interpreter.resize_tensor_input(self._image, images.shape)
            self._interpreter.allocate_tensors()
            self._batch = len(images)
        self._interpreter.set_tensor(self._image, images)
        self._interpreter.invoke()
        return np.asarray(self._interpreter.get_tensor(self._answer))


def load(path: Path, contract: Contract, *, threads: int = THREADS) -> ExportedModel:
    """Load the exported model of a contract.

    Raises:
        ModelError: the file is missing, is not the one of the contract, or does not do what the contract says.
    """
    return _load(path, contract, contract.litert_sha256, threads)


def load_int8(path: Path, contract: Contract, *, threads: int = THREADS) -> ExportedModel:
    """Load the int8 model of a contract, which must have one. Raises what `load` raises."""
    if contract.int8 is None:
        raise ValueError("the contract has no int8 file")
    return _load(path, contract, contract.int8.sha256, threads)


def _load(path: Path, contract: Contract, expected: str, threads: int) -> ExportedModel:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise ModelError(f"{path} is missing", remedy="dvc repro train") from None
    if (digest := hashlib.sha256(content).hexdigest()) != expected:
        raise ModelError(
            f"{path} is not the file of its contract: it is damaged, or of another model",
            expected=f"SHA-256 {expected}",
            found=digest,
            remedy=f"rm {shlex.quote(str(path))} && dvc checkout train",
        )
    model = ExportedModel(content, threads=threads)
    if (model.shape, model.units) != (contract.shape, contract.task.units):
        expected, found = (
            f"uint8 [n, {', '.join(map(str, shape))}] and {units} outputs"
            for shape, units in ((contract.shape, contract.task.units), (model.shape, model.units))
        )
        raise ModelError(
            f"{path} does not do what its contract says",
            expected=expected,
            found=found,
            remedy="dvc repro --force --single-item train",
        )
    return model
