"""A batch of labelled images, looked at before it joins the training images."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.data import table
from pipeline.data.expectations import build_batch_suite, tabulate_batch
from pipeline.data.features import measure, read_features
from pipeline.data.incoming import read_batch, refused
from pipeline.data.table import Dataset
from pipeline.data.validation import describe, validate
from pipeline.errors import DataError
from pipeline.params import ValidateParams


def inspect_batch(path: Path, dataset: Dataset, tables: Path, params: ValidateParams) -> dict[str, int]:
    """Read a batch from end to end, as `ingest` will, and hold its images against what `validate` expects of each.

    Args:
        path: the batch, wherever it is.
        dataset: what its images must fit.
        tables: the directory of `train.parquet` and `test.parquet`, with which it must not collide; may be missing.
        params: the thresholds.

    Returns:
        The number of images of each class, by English name, in the classes' order.

    Raises:
        DataError: naming the batch and what is wrong with it.
    """
    batch = measure(_chunks(path, dataset))
    assert batch, "read_batch refuses a batch without images"
    files = {split: tables / f"{split}.parquet" for split in ("train", "test")}
    known = {split: read_features(file) for split, file in files.items()} if _are_of(files, dataset) else {}
    frame, suite = tabulate_batch(batch, known), build_batch_suite(dataset, params)
    findings, _ = validate({"batch": frame}, {"batch": suite}, lambda rows: [f"image {row}" for row in rows])
    failures = [finding for finding in findings if not finding.passed]
    if failures:
        found = "\n            ".join(map(describe, failures))
        raise refused(path, DataError("its images are not fit to train on", found=found))
    counts = np.bincount(batch.label, minlength=len(dataset.classes)).tolist()
    return dict(zip(dataset.classes, counts, strict=True))


def _chunks(path: Path, dataset: Dataset) -> Iterator[tuple[np.ndarray, np.ndarray, pa.Array]]:
    for images, labels in read_batch(path, dataset):
        yield images, labels, table.strings([path.name] * len(labels))


def _are_of(files: dict[str, Path], dataset: Dataset) -> bool:
    """Whether the tables are there, and hold images of this dataset and not of one chosen before."""
    return all(file.is_file() and table.read_dataset(file).name == dataset.name for file in files.values())
