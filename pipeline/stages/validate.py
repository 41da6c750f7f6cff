"""Hold the data against the expectations; anything critical stops the pipeline here."""

import gc
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from pipeline.data import table
from pipeline.data.catalog import load_catalog
from pipeline.files import atomic_directory, write_json
from pipeline.params import Params
from pipeline.stages.entrypoint import execute

FILES = {"train": Path("data/dataset/train.parquet"), "test": Path("data/dataset/test.parquet")}
REPORT = Path("reports/validation.json")
PAGES = Path("reports/data_docs")  # no output of DVC: its HTML holds times, and a stage that fails can leave it behind


def run(params: Params) -> None:
    """Write `reports/data_docs/` and, if every critical expectation holds, `reports/validation.json`."""
    dataset = table.read_dataset(FILES["train"])
    print(f"measuring the images of {dataset.name}; Great Expectations takes some seconds to load", flush=True)
    validation, entry = _import_validation(), load_catalog().get(dataset.name)
    report, context = validation.inspect(FILES, entry, params.validate, params.dataset.share_of_own)
    print(validation.summarise(report), flush=True)
    _write_pages(lambda directory: validation.write_pages(context, directory), report.content())
    validation.require_passed(report, PAGES / REPORT.name)
    write_json(REPORT, report.content())


def _import_validation() -> ModuleType:
    """The module that imports Great Expectations: a fifth of its time is garbage collection while classes are made."""
    gc.disable()
    try:
        from pipeline.data import validation
    finally:
        gc.enable()
    return validation


def _write_pages(write: Callable[[Path], None], content: Mapping[str, Any]) -> None:
    """Replace the pages of the last run, with the report beside them: DVC has none of a run that fails.

    They are for reading. The verdict must not hang on them: a full disk is told, and not raised.
    """
    try:
        with atomic_directory(PAGES) as directory:
            write(directory)
            write_json(directory / REPORT.name, content)
    except OSError as error:
        print(f"{PAGES} could not be written: {error}", flush=True)


if __name__ == "__main__":
    execute("validate", run)
