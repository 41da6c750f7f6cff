"""Split the training images into train and validation; the test images are not changed."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.data import split, table
from pipeline.data.removed_images import read_removed
from pipeline.errors import DataError, ValidationFailed
from pipeline.files import atomic_file, read_json, write_json
from pipeline.params import Params, SplitParams
from pipeline.stages.entrypoint import execute

TRAIN, TEST = Path("data/dataset/train.parquet"), Path("data/dataset/test.parquet")
VALIDATION_REPORT = Path("reports/validation.json")
SPLITS = Path("data/splits")
REPORT = Path("reports/split.json")


def run(params: Params) -> None:
    """Write `data/splits/` and `reports/split.json`. If the data cannot be split as configured, nothing is written."""
    _require_validated()
    dataset, seed = table.read_dataset(TRAIN), params.split.seed
    train, test = split.read_draws(TRAIN, seed), split.read_draws(TEST, seed)
    removed = split.draw_removed([image for image in read_removed(TRAIN.parent) if image.split == "train"], seed)
    given = train + removed if len(removed.number) else train
    strata = split.find_strata(given, grouped=dataset.grouped)
    added = split.find_added(given, test, len(dataset.classes))
    thresholds = split.find_thresholds(given, strata, dataset.classes, params.split.validation_fraction, added)
    is_validation = split.choose_validation(train, strata[: len(train.number)], thresholds)
    labels = {"train": train.label[~is_validation], "validation": train.label[is_validation], "test": test.label}
    counts = {name: split.count_classes(name, of_split, dataset.classes) for name, of_split in labels.items()}
    split.require_disjoint(train, is_validation, test, TRAIN, grouped=dataset.grouped)

    split.write_splits(TRAIN, is_validation, SPLITS / "train.parquet", SPLITS / "validation.parquet")
    with atomic_file(SPLITS / "test.parquet") as partial:
        shutil.copyfile(TEST, partial)
    report = _describe(counts, params.split)
    write_json(REPORT, report)
    print(_summarise(report))


def _require_validated() -> None:
    try:
        passed = read_json(VALIDATION_REPORT)["passed"]
    except (FileNotFoundError, ValueError, KeyError):
        raise DataError(f"{VALIDATION_REPORT} is missing or damaged", remedy="dvc repro validate") from None
    if passed is not True:
        raise ValidationFailed(f"the data did not pass validation: {VALIDATION_REPORT}", remedy="dvc repro validate")


def _describe(counts: Mapping[str, Mapping[str, int]], params: SplitParams) -> dict[str, Any]:
    images = {name: sum(by_class.values()) for name, by_class in counts.items()}
    training = images["train"] + images["validation"]
    return {
        "seed": params.seed,
        "validation_fraction": round(images["validation"] / training, 6),
        "splits": {name: {"images": images[name], "classes": counts[name]} for name in counts},
    }


def _summarise(report: Mapping[str, Any]) -> str:
    splits = report["splits"].items()
    lines = []
    for name, facts in splits:
        smallest, largest = min(facts["classes"].values()), max(facts["classes"].values())
        span = f"{smallest:,}" if smallest == largest else f"{smallest:,} to {largest:,}"
        lines.append(f"{name:11} {facts['images']:>9,} images, {span} of each class")
    return "\n".join(lines)


if __name__ == "__main__":
    execute("split", run)
