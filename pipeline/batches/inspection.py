"""A batch of labelled images, looked at before it joins the training images."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.data import table
from pipeline.data.batches import read_batch, refused
from pipeline.data.features import Features, by_source, measure, read_features
from pipeline.data.sources import LOCAL
from pipeline.data.table import Dataset
from pipeline.errors import DataError
from pipeline.params import ValidateParams


@dataclass(frozen=True)
class Known:
    """The images that a batch must not repeat."""

    train: Mapping[str, Features]  # by source: `official`, or the name of a batch
    test: tuple[Features, ...]  # empty: nothing is known

    def with_batch(self, name: str, features: Features) -> "Known":
        """What is known once a batch has joined the training images, in the place of a former one of its name."""
        return replace(self, train={**self.train, name: features})


def read_known(tables: Path, dataset: Dataset) -> Known:
    """The images of `train.parquet` and `test.parquet`; none where these are missing, or hold another dataset.

    Those of a local directory, in the place of the dataset's own, are of it.

    Raises:
        DataError: a file is damaged.
    """
    files = [tables / f"{split}.parquet" for split in ("train", "test")]
    names = [table.read_dataset(file).name for file in files if file.is_file()]
    if len(names) < len(files) or any(name.split(LOCAL)[0] != dataset.name for name in names):
        return Known({}, ())
    train, test = map(read_features, files)
    return Known(by_source(train), (test,))


def inspect_batch(path: Path, name: str, dataset: Dataset, known: Known, params: ValidateParams) -> Features:
    """Read a batch from end to end, as `ingest` will, and hold its images against what `validate` expects of each.

    Args:
        path: the batch, wherever it is.
        name: under which it will be in `data/incoming/`: a former version of it is no hindrance.
        dataset: what its images must fit.
        known: what it must not collide with.
        params: the thresholds.

    Returns:
        what was measured of its images.

    Raises:
        DataError: naming the batch and what is wrong with it.
    """
    batch = measure(
        (images, labels, table.strings([name] * len(labels))) for images, labels in read_batch(path, dataset)
    )
    assert batch, "read_batch refuses a batch without images"
    # Great Expectations takes seconds to import, and 200 MB: a batch that cannot be read is refused without it.
    from pipeline.data.expectations import build_batch_suite, tabulate_batch
    from pipeline.data.validation import describe, validate

    others = [features for source, features in known.train.items() if source != name]
    frame, suite = tabulate_batch(batch, others, known.test), build_batch_suite(dataset, params)
    findings, _ = validate({"batch": frame}, {"batch": suite}, lambda rows: [f"image {row}" for row in rows])
    failures = [finding for finding in findings if not finding.passed]
    if failures:
        found = "\n            ".join(map(describe, failures))
        raise refused(path, DataError("its images are not fit to train on", found=found))
    return batch
