"""Check the data against the expectations; a critical failure stops the pipeline."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pipeline.data import table
from pipeline.data.catalog import LOCAL, load_catalog
from pipeline.data.thresholds import resolve_thresholds
from pipeline.deferred_imports import deferred
from pipeline.files import atomic_directory, write_json
from pipeline.params import Params
from pipeline.stages.entrypoint import execute

UNUSED = ("scipy.stats", "altair", "boto3")  # by our expectations; a third of the import of Great Expectations
FILES = {"train": Path("data/dataset/train.parquet"), "test": Path("data/dataset/test.parquet")}
REPORT = Path("reports/validation.json")
PAGES = Path("reports/data_docs")  # not a DVC output: its HTML contains times, and it must remain after a failed stage


def run(params: Params) -> None:
    """Write `reports/data_docs/` and, if every critical expectation holds, `reports/validation.json`."""
    dataset = table.read_dataset(FILES["train"])
    print(f"measuring the images of {dataset.name}; Great Expectations takes some seconds to load", flush=True)
    with deferred(*UNUSED):
        from pipeline.data import validation, validation_pages

    catalog = load_catalog()
    entry = catalog.get(dataset.name)  # None for the images of a local directory, which have no reference
    thresholds = resolve_thresholds(params.validate, catalog.get(dataset.name.split(LOCAL)[0]))
    report, context = validation.inspect(FILES, entry, thresholds, params.dataset.share_of_own)
    print(validation.summarise(report), flush=True)
    _write_pages(lambda directory: validation_pages.write_pages(report, context, directory), report.content())
    validation.require_passed(report, PAGES / REPORT.name)
    write_json(REPORT, report.content())


def _write_pages(write: Callable[[Path], None], content: Mapping[str, Any]) -> None:
    """Replace the pages of the last run and the copy of the report beside them, which also a failed run leaves.

    They are informative only. If the disk is full, a message is printed and no error is raised.
    """
    try:
        with atomic_directory(PAGES) as directory:
            write(directory)
            write_json(directory / REPORT.name, content)
    except OSError as error:
        print(f"cannot write {PAGES}: {error}", flush=True)


if __name__ == "__main__":
    execute("validate", run)
