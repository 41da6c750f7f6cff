"""The model that answers: loaded from verified files, checked with its recorded example, and replaced while serving."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from pipeline.data.decoders import open_npz
from pipeline.errors import ModelError, TrackingError
from pipeline.evaluation.metrics import class_probabilities
from pipeline.models import interpreter
from pipeline.models.contract import CONTRACT_FILE, LITERT_FILE, Contract, read_contract

# Beside the model: `images` uint8 [n, *shape], and the recorded `probabilities` float32 [n, classes].
EXAMPLE_FILE = "example.npz"
TOLERANCE = 1e-4  # of a recorded answer: other processors round differently


@dataclass(frozen=True)
class ServedModel:
    """A version that is loaded and answers. Safe to use in several threads."""

    name: str  # of the registered model
    version: str
    sha256: str  # of model.tflite
    contract: Contract
    predict: Callable[[np.ndarray], np.ndarray]  # images uint8 [n, *shape] to probabilities float32 [n, classes]

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """The possible answers in English, in the order of the probabilities."""
        return self.contract.create_task().classes


class ModelHolder:
    """The model that answers now. One thread replaces it while others read it."""

    def __init__(self, model: ServedModel | None = None, problem: str = "no model is loaded yet") -> None:
        self._model = model
        self.problem: str | None = None if model else problem  # the reason that no model, or not the newest, answers
        self.checked_at: float | None = None  # time of the registry's last answer, in seconds since 1970

    def current(self) -> ServedModel:
        """Return the model that answers.

        Raises:
            TrackingError: there is none.
        """
        if (model := self._model) is None:
            raise TrackingError("no model can answer now", found=self.problem or "", temporary=True)
        return model

    def replace(self, model: ServedModel | None, problem: str | None = None) -> None:
        """Let another model answer from now on. None: no model answers, for the reason `problem`."""
        self._model, self.problem = model, problem


def load_served_model(folder: Path, name: str, version: str, *, threads: int) -> ServedModel:
    """Load a model, and check that it answers its recorded example as recorded.

    Args:
        folder: with model.tflite, contract.json and example.npz.

    Raises:
        ModelError: a file of the model is missing or damaged, or the model gives another answer.
        DataError: the example is damaged.
        OSError: the example cannot be read.
    """
    contract = read_contract(folder / CONTRACT_FILE)
    exported, lock = interpreter.load(folder / LITERT_FILE, contract, threads=threads), threading.Lock()
    with open_npz(folder / EXAMPLE_FILE, "images", "probabilities") as (example, answers):
        images, recorded = example.read(example.shape[0]), answers.read(answers.shape[0])
    difference = float(np.abs(class_probabilities(exported.predict(images)) - recorded).max(initial=0))
    if not difference <= TOLERANCE:
        raise ModelError(
            f"version {version} of {name} does not answer its recorded example as recorded",
            expected=f"probabilities that differ by at most {TOLERANCE}",
            found=f"a difference of {difference:.2g}",
        )

    def predict(pixels: np.ndarray) -> np.ndarray:
        with lock:
            return class_probabilities(exported.predict(pixels)).astype(np.float32)

    return ServedModel(name, version, contract.litert_sha256, contract, predict)
