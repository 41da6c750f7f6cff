"""Rows of the traffic log: the answers to requests, with the features of their images."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipeline.data import features, table
from pipeline.data.drift_features import COLOUR_NAMES, NAMES, drift_features
from pipeline.data.traffic import SCHEMA


@dataclass(frozen=True)
class ShadowAnswers:
    """What another model would have answered to a request."""

    version: str
    sha256: str  # of its model.tflite
    probabilities: np.ndarray  # float32 [n, classes]


@dataclass(frozen=True)
class Answers:
    """The answers to a request."""

    request_id: str
    time: float  # seconds since 1970
    version: str
    sha256: str
    images: np.ndarray  # uint8 [n, *shape]
    probabilities: np.ndarray  # float32 [n, classes]
    shadow: ShadowAnswers | None


def tabulate(chunk: Sequence[Answers], keep_images: bool) -> pa.RecordBatch:
    """Measure the images of some requests, and make their rows. The images have one shape."""
    counts = [len(answers.images) for answers in chunk]
    images = chunk[0].images if len(chunk) == 1 else np.concatenate([answers.images for answers in chunk])
    rows = len(images)
    measured = features.measure([(images, np.zeros(rows, np.uint16), table.strings([""] * rows))])
    assert measured, "there are images"
    compared = drift_features(measured)
    predicted = np.concatenate([answers.probabilities.argmax(axis=1) for answers in chunk])
    shape = np.tile(np.array(images.shape[1:], np.uint16), (rows, 1))
    columns: dict[str, pa.Array] = {
        "request_id": _repeat([answers.request_id for answers in chunk], counts),
        "index": _fixed(np.concatenate([np.arange(count, dtype=np.uint32) for count in counts]), pa.uint32()),
        "time": _fixed(np.repeat([int(answers.time * 1e6) for answers in chunk], counts), SCHEMA.field("time").type),
        "version": _repeat([answers.version for answers in chunk], counts),
        "sha256": _repeat([answers.sha256 for answers in chunk], counts),
        "predicted": _fixed(predicted.astype(np.uint16), pa.uint16()),
        "probabilities": _lists([answers.probabilities for answers in chunk], counts),
        **{
            name: _fixed(compared[name], pa.float64()) if name in compared else pa.nulls(rows, pa.float64())
            for name in (*NAMES, *COLOUR_NAMES)
        },
        "shape": _list_array(shape.ravel(), np.full(rows, shape.shape[1]), pa.uint16()),
        "image": _binaries(images) if keep_images else pa.nulls(rows, pa.binary()),
        "shadow_version": _repeat([each.shadow.version if each.shadow else None for each in chunk], counts),
        "shadow_sha256": _repeat([each.shadow.sha256 if each.shadow else None for each in chunk], counts),
        "shadow_probabilities": _lists([each.shadow.probabilities if each.shadow else None for each in chunk], counts),
    }
    return pa.RecordBatch.from_arrays([columns[name] for name in SCHEMA.names], schema=SCHEMA)


# Columns are made of buffers: `pyarrow.array` would import pandas, which needs 46 MB.


def _fixed(values: np.ndarray, type_: pa.DataType) -> pa.Array:
    return pa.Array.from_buffers(type_, len(values), [None, pa.py_buffer(np.ascontiguousarray(values))])


def _repeat(values: Sequence[str | None], counts: Sequence[int]) -> pa.Array:
    """Repeat the text of each request for its images. None becomes null."""
    repeated = [value or "" for value, count in zip(values, counts, strict=True) for _ in range(count)]
    is_null = np.repeat([value is None for value in values], counts)
    buffers = table.strings(repeated).buffers()
    return pa.Array.from_buffers(pa.string(), len(repeated), [_pack(~is_null), *buffers[1:]])


def _lists(values: Sequence[np.ndarray | None], counts: Sequence[int]) -> pa.Array:
    """Make a list of probabilities for each image. values: float32 [count, classes] of each request; None: nulls."""
    present = [value for value in values if value is not None]
    if not present:
        return pa.nulls(sum(counts), pa.list_(pa.float32()))
    flat = np.concatenate([np.asarray(value, np.float32).ravel() for value in present])
    lengths = np.repeat([0 if value is None else value.shape[1] for value in values], counts)
    is_null = None if len(present) == len(values) else np.repeat([value is None for value in values], counts)
    return _list_array(flat, lengths, pa.float32(), is_null)


def _list_array(
    flat: np.ndarray, lengths: np.ndarray, type_: pa.DataType, is_null: np.ndarray | None = None
) -> pa.Array:
    offsets = np.zeros(len(lengths) + 1, np.int32)
    np.cumsum(lengths, out=offsets[1:])
    buffers = [None if is_null is None else _pack(~is_null), pa.py_buffer(offsets)]
    return pa.Array.from_buffers(pa.list_(type_), len(lengths), buffers, children=[_fixed(flat, type_)])


def _binaries(images: np.ndarray) -> pa.Array:
    flat = np.ascontiguousarray(images).reshape(len(images), -1)
    offsets = np.arange(len(flat) + 1, dtype=np.int32) * np.int32(flat.shape[1])
    return pa.Array.from_buffers(pa.binary(), len(flat), [None, pa.py_buffer(offsets), pa.py_buffer(flat)])


def _pack(is_valid: np.ndarray) -> pa.Buffer:
    return pa.py_buffer(np.packbits(is_valid, bitorder="little"))
