"""A model's predictions, and their file `predictions.parquet` with one row for each image.

Columns: `id` string; `label` uint16, the true class; `predicted` uint16, the most probable class; `probabilities`
fixed_size_list<float32>[classes]. The names of the classes are in the file's metadata.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import DataError

PREDICTIONS = "predictions.parquet"
_CLASSES_KEY = b"classes"


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """A model's predictions for images, with the true labels."""

    classes: tuple[str, ...]  # in English
    ids: Sequence[str]
    labels: np.ndarray  # uint16 [n], indices into `classes`
    probabilities: np.ndarray  # float [n, classes]

    @cached_property
    def predicted(self) -> np.ndarray:
        """The most probable class: uint16 [n]. Among equals, the first."""
        return self.probabilities.argmax(axis=1).astype(np.uint16)

    @cached_property
    def confidences(self) -> np.ndarray:
        """The probability of the predicted class: float64 [n]. Zero if the model's output is not a number."""
        return np.nan_to_num(self.probabilities.max(axis=1).astype(np.float64), nan=0.0)

    @cached_property
    def correct(self) -> np.ndarray:
        """True if the predicted class is the true one: bool [n]."""
        return self.predicted == self.labels

    def in_order_of(self, ids: Sequence[str]) -> "Predictions":
        """Return the predictions in the order of the given ids.

        Raises:
            DataError: the ids are not those of the predictions.
        """
        if list(self.ids) == list(ids):
            return self
        position = {identity: row for row, identity in enumerate(self.ids)}
        foreign = [identity for identity in ids if identity not in position]
        if foreign or len(ids) != len(self.ids):
            example = f", {foreign[0]} among them" if foreign else ""
            raise DataError(
                "two sets of predictions are for different images",
                expected=f"the same {len(self.ids):,} ids in both",
                found=f"{len(ids):,} ids, {len(foreign):,} of them unknown to the other{example}",
            )
        rows = [position[identity] for identity in ids]
        return replace(self, ids=ids, labels=self.labels[rows], probabilities=self.probabilities[rows])

    def among(self, classes: tuple[str, ...]) -> "Predictions":
        """Return the predictions for the images of some classes, as if the model knew only these.

        The probabilities of these classes are scaled to sum to one. If all of them are zero, each gets the same.
        """
        if classes == self.classes:
            return self
        columns = [self.classes.index(name) for name in classes]
        new_labels = np.full(len(self.classes), len(classes))  # out of range for the other classes
        new_labels[columns] = np.arange(len(classes))
        labels = new_labels[self.labels]
        rows = np.flatnonzero(labels < len(classes))
        kept = self.probabilities[rows][:, columns].astype(np.float64)
        total = kept.sum(axis=1, keepdims=True)
        scaled = np.divide(kept, total, out=np.full(kept.shape, 1 / len(classes)), where=total != 0)
        return Predictions(
            classes=classes,
            ids=[self.ids[row] for row in rows.tolist()],
            labels=labels[rows].astype(self.labels.dtype),
            probabilities=scaled,
        )


def write_predictions(path: Path, predictions: Predictions) -> None:
    """Write predictions to a file for `read_predictions`."""
    flat = pa.array(predictions.probabilities.astype(np.float32).ravel())
    columns = {
        "id": pa.array(predictions.ids, pa.string()),
        "label": pa.array(predictions.labels, pa.uint16()),
        "predicted": pa.array(predictions.predicted, pa.uint16()),
        "probabilities": pa.FixedSizeListArray.from_arrays(flat, len(predictions.classes)),
    }
    metadata = {_CLASSES_KEY: json.dumps(predictions.classes, ensure_ascii=False)}
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), path, compression="zstd")


def read_predictions(path: Path) -> Predictions:
    """Read the predictions that `evaluate` wrote.

    Raises:
        DataError: the file is missing, damaged, or has no predictions.
    """
    try:
        table = pq.read_table(path)
        classes = json.loads((table.schema.metadata or {})[_CLASSES_KEY])
        flat = table.column("probabilities").combine_chunks().flatten()
        labels = table.column("label").combine_chunks()
        return Predictions(
            classes=tuple(classes),
            ids=table.column("id").to_pylist(),
            labels=labels.to_numpy(zero_copy_only=False).astype(np.uint16),
            probabilities=flat.to_numpy(zero_copy_only=False).reshape(-1, len(classes)),
        )
    except FileNotFoundError:
        raise DataError(f"{path} is missing", remedy="dvc repro evaluate") from None
    except (pa.ArrowException, KeyError, ValueError) as error:
        raise DataError(
            f"{path} has no predictions", expected="a file written by `evaluate`", found=str(error)
        ) from None
