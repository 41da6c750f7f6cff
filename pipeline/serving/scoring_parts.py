"""Scoring of a partition: read it, predict, and write a part of the output. Runs in the processes of the workers.

A part is an Arrow file that is renamed into place when it is complete. The same partition gives the same bytes.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.data import features, table
from pipeline.data.drift_features import drift_features
from pipeline.data.imports.decoding import Form, decode_chunk
from pipeline.data.sources.collection import TEST, Chunk
from pipeline.evaluation.metrics import class_probabilities
from pipeline.models import interpreter
from pipeline.models.contract import CONTRACT_FILE, LITERT_FILE, Contract, read_contract
from pipeline.models.interpreter import ExportedModel
from pipeline.serving.scoring_partitions import Partition, Pictures

FEATURES_KEY = b"features"  # of the sampled images, in the metadata of a part
NO_NUMBER = "the output of the model is not a number"


@dataclass(frozen=True)
class ScoredBy:
    """The model of a scoring, and what is written for each picture."""

    folder: Path  # with model.tflite and contract.json
    version: str
    all_probabilities: bool


@dataclass(frozen=True)
class Task:
    """A partition to score."""

    partition: Partition
    part: Path  # to write
    model: ScoredBy
    stride: int  # one image of so many is sampled for the drift


def schema_of(contract: Contract, *, all_probabilities: bool) -> pa.Schema:
    """Columns of the parts and of the output. Without an error, only `error` is null; with one, all predictions are."""
    name = pa.dictionary(pa.int32(), pa.string())
    fields = [
        ("id", pa.string()),
        ("label", pa.uint16()),
        ("class", name),
        ("probability", pa.float32()),
        *([("probabilities", pa.list_(pa.float32(), len(_answers(contract))))] if all_probabilities else []),
        ("error", pa.string()),
        ("version", name),
        ("model", name),
    ]
    return pa.schema(fields)


def score_partition(task: Task) -> Path:
    """Score a partition, unless its part exists already. Returns the path of the part."""
    if _is_complete(task.part):
        return task.part
    contract, model = load_model(task.model.folder)
    schema = schema_of(contract, all_probabilities=task.model.all_probabilities)
    batches: list[pa.RecordBatch] = []
    sampled: list[np.ndarray] = []
    row = 0
    for ids, pictures in task.partition.read():
        pixels, is_readable, problems = _decode(ids, pictures, contract)
        probabilities = model.predict(pixels)
        if model.units == 1:
            probabilities = class_probabilities(probabilities).astype(np.float32)
        errors = {}
        if problems:
            errors = dict(zip(np.flatnonzero(~is_readable).tolist(), problems, strict=True))
            readable, probabilities = probabilities, np.full((len(ids), probabilities.shape[1]), np.nan, np.float32)
            probabilities[is_readable] = readable
        batches.append(_tabulate(ids, probabilities, errors, contract, schema, task.model.version))
        sampled.append(pixels[-row % task.stride :: task.stride].copy())  # a view would keep all pixels in memory
        row += len(pixels)
    metadata = {FEATURES_KEY: json.dumps(_measure(np.concatenate(sampled)))}
    schema = schema.with_metadata(metadata)
    partial = task.part.with_suffix(f".{os.getpid()}")
    with pa.OSFile(str(partial), "wb") as file, pa.ipc.new_file(file, schema) as writer:
        for batch in batches:
            writer.write_batch(batch.replace_schema_metadata(metadata))
    os.replace(partial, task.part)  # without fsync: after a power failure, an incomplete part is scored again
    return task.part


def _is_complete(part: Path) -> bool:
    """Return True if the end of a part, which is written last, can be read."""
    try:
        with pa.memory_map(str(part)) as file:
            pa.ipc.open_file(file)
    except (OSError, pa.ArrowException):
        return False
    return True


def read_part(path: Path) -> tuple[pa.Table, dict[str, list[float]]]:
    """Read a part: its rows, and the features of its sampled images by name.

    Raises:
        pa.ArrowException: it is damaged.
    """
    with pa.memory_map(str(path)) as file:
        rows = pa.ipc.open_file(file).read_all()
    return rows.replace_schema_metadata(None), json.loads(rows.schema.metadata[FEATURES_KEY])


@lru_cache(maxsize=1)
def load_model(folder: Path) -> tuple[Contract, ExportedModel]:
    """Load a model once in each process. Forked processes inherit the one of their parent.

    Raises:
        ModelError: a file is missing or damaged.
    """
    contract = read_contract(folder / CONTRACT_FILE)
    return contract, interpreter.load(folder / LITERT_FILE, contract, threads=1)


@lru_cache(maxsize=1)
def _answers(contract: Contract) -> tuple[str, ...]:
    return contract.create_task().classes


def _decode(ids: pa.Array, pictures: Pictures, contract: Contract) -> tuple[np.ndarray, np.ndarray, Sequence[str]]:
    """Return the pixels of the readable pictures, which ones these are, and the problems of the others."""
    if isinstance(pictures, np.ndarray) and pictures.shape[1:] == contract.shape:
        return pictures, np.ones(len(pictures), bool), ()
    ground = (contract.ground,) if isinstance(contract.ground, int) else contract.ground
    form = Form((contract.height, contract.width), contract.channels, contract.resizing, ground)
    decoded = decode_chunk((Chunk(ids.to_pylist(), pictures, np.zeros(len(ids), int), TEST), form))
    pixels = decoded.pixels if len(decoded.pixels) else np.empty((0, *contract.shape), np.uint8)
    return pixels, decoded.is_readable, decoded.problems


def _tabulate(
    ids: pa.Array,
    probabilities: np.ndarray,
    errors: dict[int, str],
    contract: Contract,
    schema: pa.Schema,
    version: str,
) -> pa.RecordBatch:
    """Tabulate predictions. probabilities: float32 [n, classes]; errors: by row."""
    rows = len(ids)
    labels = probabilities.argmax(axis=1)  # of a value that is not a number, if there is one
    best = probabilities[np.arange(rows), labels]
    is_valid = np.isfinite(best)
    valid = None
    if not is_valid.all():
        errors = dict.fromkeys(np.flatnonzero(~is_valid).tolist(), NO_NUMBER) | errors
        labels = np.where(is_valid, labels, 0)
        valid = pa.py_buffer(np.packbits(is_valid, bitorder="little"))
    names = pa.array(list(_answers(contract)), pa.string())

    def column(values: np.ndarray, kind: pa.DataType) -> pa.Array:
        return pa.Array.from_buffers(kind, rows, [valid, pa.py_buffer(np.ascontiguousarray(values))])

    def constant(value: str) -> pa.Array:
        zeros = pa.Array.from_buffers(pa.int32(), rows, [None, pa.py_buffer(np.zeros(rows, np.int32))])
        return pa.DictionaryArray.from_arrays(zeros, pa.array([value], pa.string()))

    columns = {
        "id": ids,
        "label": column(labels.astype(np.uint16), pa.uint16()),
        "class": pa.DictionaryArray.from_arrays(column(labels.astype(np.int32), pa.int32()), names),
        "probability": column(best, pa.float32()),
        "error": pa.array([errors.get(row) for row in range(rows)], pa.string())
        if errors
        else pa.nulls(rows, pa.string()),
        "version": constant(version),
        "model": constant(contract.litert_sha256),
    }
    if "probabilities" in schema.names:
        flat = pa.py_buffer(np.ascontiguousarray(probabilities))
        values = pa.Array.from_buffers(pa.float32(), probabilities.size, [None, flat])
        kind = schema.field("probabilities").type
        columns["probabilities"] = pa.Array.from_buffers(kind, rows, [valid], children=[values])
    return pa.RecordBatch.from_arrays([columns[name] for name in schema.names], schema=schema)


def _measure(images: np.ndarray) -> dict[str, list[float]]:
    """Measure the compared features of images."""
    texts = table.strings([""] * len(images))
    measured = features.measure([(images, np.zeros(len(images), np.uint16), texts)]) if len(images) else None
    return {name: values.tolist() for name, values in drift_features(measured).items()} if measured else {}
