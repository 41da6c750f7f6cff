"""Windows of the traffic of a server: their rows in the log, and the labels that came later."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.data.drift_features import COLOUR_NAMES, NAMES
from pipeline.data.traffic import Label, column_to_numpy, read_traffic
from pipeline.monitoring.traffic_reference import ModelReference

UNLABELLED = -1


@dataclass(frozen=True)
class Rows:
    """Answers of one model, in the order of their time."""

    times: np.ndarray  # float64 [n], seconds since 1970
    values: Mapping[str, np.ndarray]  # feature: float64 [n]
    predicted: np.ndarray  # int64 [n]
    confidences: np.ndarray  # float64 [n]
    outlier_scores: np.ndarray  # float64 [n]; empty without a reference of the model
    answers: np.ndarray  # int64 [n], the right answer; UNLABELLED if nobody told it

    def __len__(self) -> int:
        return len(self.times)

    def between(self, since: datetime, until: datetime) -> "Rows":
        """Return the rows from `since` up to `until`."""
        first, last = np.searchsorted(self.times, [since.timestamp(), until.timestamp()])
        columns = {name: values[first:last] for name, values in vars(self).items() if name != "values"}
        return Rows(values={name: values[first:last] for name, values in self.values.items()}, **columns)


def find_serving_model(directory: Path, since: datetime, until: datetime) -> tuple[str, str] | None:
    """Find the model that answered last: its version, and the SHA-256 of its model.tflite. None without any row."""
    newest: tuple[datetime, str, str] | None = None
    for rows in read_traffic(directory, since, until, ["time", "version", "sha256"]):
        times = column_to_numpy(rows, "time")
        place = int(times.argmax())
        time, version, sha256 = (rows.column(name)[place].as_py() for name in ("time", "version", "sha256"))
        if newest is None or time > newest[0]:
            newest = time, version, sha256
    return newest[1:] if newest else None


def read_rows(
    directory: Path,
    since: datetime,
    until: datetime,
    sha256: str,
    model: ModelReference | None,
    labels: Mapping[tuple[str, int], Label],
) -> tuple[Rows, int]:
    """Read the answers of a model from the log.

    Args:
        directory: `TRAFFIC` of the main repository.
        sha256: of the model's model.tflite.
        model: its reference, with which outliers are scored; None leaves them out.
        labels: what was told about images, by request id and index.

    Returns:
        the rows, and the number of rows of other models.
    """
    names = ["time", "sha256", "predicted", "probabilities", *NAMES, *COLOUR_NAMES]
    names += ["request_id", "index"] if labels else []
    chunks: list[Rows] = []
    others = 0
    for logged in read_traffic(directory, since, until, names):
        own = logged.filter(pc.equal(logged.column("sha256"), sha256))
        others += logged.num_rows - own.num_rows
        if own.num_rows:
            chunks.append(_convert(own, model, labels))
    if not chunks:
        return _EMPTY, others
    order = np.argsort(np.concatenate([chunk.times for chunk in chunks]), kind="stable")

    def join(parts: Sequence[np.ndarray]) -> np.ndarray:
        joined = np.concatenate(parts)
        return joined[order] if len(joined) else joined

    columns = {name: join([vars(chunk)[name] for chunk in chunks]) for name in vars(_EMPTY) if name != "values"}
    values = {name: join([chunk.values[name] for chunk in chunks]) for name in chunks[0].values}
    return Rows(values=values, **columns), others


def list_windows(until: datetime, length: timedelta, count: int) -> list[tuple[datetime, datetime]]:
    """List the last windows of a length, the latest last."""
    return [(until - length * (place + 1), until - length * place) for place in reversed(range(count))]


def _convert(rows: pa.Table, model: ModelReference | None, labels: Mapping[tuple[str, int], Label]) -> Rows:
    probabilities = np.nan_to_num(column_to_numpy(rows, "probabilities").astype(np.float64), nan=0.0)
    values = {name: column_to_numpy(rows, name) for name in (*NAMES, *COLOUR_NAMES) if not rows.column(name).null_count}
    matrix = np.stack(list(values.values()), axis=1)
    return Rows(
        times=column_to_numpy(rows, "time").astype("datetime64[us]").astype(np.int64) / 1e6,
        values=values,
        predicted=column_to_numpy(rows, "predicted").astype(np.int64),
        confidences=probabilities.max(axis=1),
        outlier_scores=model.outlier_score(matrix, probabilities) if model else np.empty(0),
        answers=_find_answers(rows, model, labels),
    )


def _find_answers(rows: pa.Table, model: ModelReference | None, labels: Mapping[tuple[str, int], Label]) -> np.ndarray:
    answers = np.full(rows.num_rows, UNLABELLED)
    if not labels or model is None:
        return answers
    right = dict(zip(model.labels, model.answer_of.tolist(), strict=True))
    keys = zip(rows.column("request_id").to_pylist(), rows.column("index").to_pylist(), strict=True)
    for place, key in enumerate(keys):
        if (label := labels.get(key)) and label.label in right:
            answers[place] = right[label.label]
    return answers


_EMPTY = Rows(np.empty(0), {}, np.empty(0, np.int64), np.empty(0), np.empty(0), np.empty(0, np.int64))
