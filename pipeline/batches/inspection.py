"""Check a batch of labelled images before it is added to the training images."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.data import table
from pipeline.data.batch_formats import read_batch
from pipeline.data.batches import as_batch_error
from pipeline.data.catalog import LOCAL
from pipeline.data.features import Features, by_source, measure, read_features
from pipeline.data.table import Dataset
from pipeline.errors import DataError
from pipeline.params import ValidateParams


@dataclass(frozen=True)
class Known:
    """The images that a batch must not repeat."""

    train: Mapping[str, Features]  # by source: `official` or the name of a batch
    test: Mapping[str, Features]  # likewise; empty if there are no images to compare with

    def with_batch(self, name: str, features: Features) -> "Known":
        """Return a copy with a batch among the training images. It replaces a batch of the same name."""
        return replace(self, train={**self.train, name: features})


def read_known(tables: Path, dataset: Dataset) -> Known:
    """Read the images of `train.parquet` and `test.parquet`.

    Returns no images if a file is missing or belongs to another dataset. Images from a local directory (`dataset.path`)
    count as images of the dataset.

    Raises:
        DataError: a file is damaged.
    """
    files = [tables / f"{split}.parquet" for split in ("train", "test")]
    names = [table.read_dataset(file).name for file in files if file.is_file()]
    if len(names) < len(files) or any(name.split(LOCAL)[0] != dataset.name for name in names):
        return Known({}, {})
    train, test = map(read_features, files)
    return Known(by_source(train), by_source(test))


def inspect_batch(path: Path, name: str, dataset: Dataset, known: Known, thresholds: ValidateParams) -> Features:
    """Read a batch like `ingest`, and check its images like `validate`.

    Args:
        path: the batch, in any folder.
        name: its name in `data/incoming/`. It may repeat images of an earlier batch of this name.
        dataset: the dataset whose shape and classes the images must have.
        known: the images that it must not repeat.
        thresholds: from `resolve_thresholds`.

    Returns:
        the features of its images.

    Raises:
        DataError: names the batch and the problem.
    """
    batch = measure(
        (images, labels, table.strings([name] * len(labels))) for images, labels in read_batch(path, dataset)
    )
    assert batch, "read_batch refuses a batch without images"
    # Great Expectations takes seconds and 200 MB to import. It is not needed to refuse an unreadable batch.
    from pipeline.data.expectations import build_batch_suite, tabulate_batch
    from pipeline.data.validation import describe, validate

    official = [known.test[table.OFFICIAL]] if table.OFFICIAL in known.test else []
    # A copy of a batch's test image becomes a test image too: `ingest` decides by the pixels.
    of_batches = [item for item in known.test.items() if item[0] != table.OFFICIAL]
    others = [features for source, features in [*known.train.items(), *of_batches] if source != name]
    frame, suite = tabulate_batch(batch, others, official), build_batch_suite(dataset, thresholds)
    findings, _ = validate({"batch": frame}, {"batch": suite}, lambda rows: [f"image {row}" for row in rows])
    failures = [finding for finding in findings if not finding.passed]
    if failures:
        found = "\n            ".join(map(describe, failures))
        raise as_batch_error(path, DataError("its images fail the checks", found=found))
    return batch
