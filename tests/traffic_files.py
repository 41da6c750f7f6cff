"""Files of a traffic log, as a server writes them."""

from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data import features, table
from pipeline.data.drift_features import COLOUR_NAMES, drift_features
from pipeline.data.traffic import HOUR, SCHEMA, TRAFFIC


def log_answers(
    root: Path,
    at: datetime,
    images: np.ndarray,
    probabilities: np.ndarray,
    sha256: str,
    version: str = "1",
    *,
    keep_images: bool = False,
) -> list[str]:
    """Write the file of a server that was asked grey images one by one, a second each. Returns the request ids."""
    count = len(images)
    requests = [f"{at:%d-%H}-{number}" for number in range(count)]
    columns = {
        "request_id": requests,
        "index": [0] * count,
        "time": [at + timedelta(seconds=number) for number in range(count)],
        "version": [version] * count,
        "sha256": [sha256] * count,
        "predicted": probabilities.argmax(axis=1).tolist(),
        "probabilities": probabilities.tolist(),
        "shape": [list(images.shape[1:])] * count,
        **({"image": [image.tobytes() for image in images]} if keep_images else {}),
        **{name: column.tolist() for name, column in measure_for_drift(images).items()},
        **dict.fromkeys(COLOUR_NAMES, [None] * count),
    }
    arrays = [pa.array(columns.get(field.name, [None] * count), field.type) for field in SCHEMA]
    directory = root / TRAFFIC
    directory.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_arrays(arrays, schema=SCHEMA), directory / f"{at:{HOUR}}-{version}.parquet")
    return requests


def measure_for_drift(images: np.ndarray) -> dict[str, np.ndarray]:
    """Measure the features of images that are compared: float64 [n] each."""
    measured = features.measure([(images, np.zeros(len(images), np.uint16), table.strings([""] * len(images)))])
    assert measured
    return drift_features(measured)
