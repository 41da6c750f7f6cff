"""The expectations about the images, as Great Expectations suites, and the tables that they check.

There are four tables: `files` has a row for each Parquet file, `splits` for each split, `classes` for each split and
class, `images` for each image. A critical expectation that fails stops the pipeline; a warning is only reported.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal

import great_expectations.expectations as gxe
import numpy as np
import pandas as pd
import pyarrow as pa

from pipeline.data.catalog import Entry
from pipeline.data.features import (
    WHITE,
    Features,
    class_separation,
    find_conflicts,
    find_mirrored,
    overall_mean,
    overall_std,
)
from pipeline.data.table import OFFICIAL, Dataset, are_among
from pipeline.data.thresholds import KEYS, list_missing
from pipeline.data.window import kept_range
from pipeline.params import ValidateParams

Tables = Mapping[str, pd.DataFrame]
Suites = Mapping[str, Sequence[gxe.Expectation]]
Severity = Literal["critical", "warning"]
Limits = Mapping[str, float]  # thresholds by their key of `validate`

BATCH_ONLY = ("already_there",)
UNBALANCED = 0.5  # a class of twice or half the mean, and beyond, is a warning for a dataset without a threshold


def build_tables(
    schemas: Mapping[str, pa.Schema],
    features: Mapping[str, Features],
    dataset: Dataset,
    entry: Entry | None,
    share: float = 1.0,
    removed: Mapping[str, int] = MappingProxyType({}),
) -> Tables:
    """Build the tables that the expectations check.

    Args:
        schemas: the schemas of the files of `train` and `test`.
        features: the features of their images; empty if the columns of a file do not allow to measure them.
        dataset: the facts that are stored with the images.
        entry: the catalogue's entry; None if there is none, as for the images of a local directory.
        share: the share of the dataset's own training images that a window keeps.
        removed: number of the dataset's own images that corrections removed, by split.
    """
    columns = {split: describe_schema(schema) for split, schema in schemas.items()}
    files = pd.DataFrame({"columns": columns})
    if not features:
        return {"files": files}
    return {
        "files": files,
        "splits": _tabulate_splits(features, entry, share, removed),
        "classes": _tabulate_classes(features, dataset),
        "images": _tabulate_images(features["train"], features["test"]),
    }


def describe_schema(schema: pa.Schema) -> str:
    """Return the columns of a table and their types as one line."""
    return ", ".join(f"{field.name}: {field.type}" for field in schema)


def _tabulate_splits(
    features: Mapping[str, Features], entry: Entry | None, share: float, removed: Mapping[str, int]
) -> pd.DataFrame:
    rows = {}
    for split, measured in features.items():
        darkest, brightest = int(measured.darkest.min()), int(measured.brightest.max())
        rows[split] = {
            "pixel_range": (brightest - darkest) / WHITE,
            "class_separation": class_separation(measured, features["train"]),
        }
        if entry:
            images, kept = (entry.train, share) if split == "train" else (entry.test, 1.0)
            fewest, most = kept_range(images, len(entry.classes), kept)
            official = measured.images_by_source.get(OFFICIAL, 0) + removed.get(split, 0)
            rows[split] |= {
                "surplus": official - min(max(official, fewest), most),
                "mean_shift": overall_mean(measured) - entry.mean,
                "std_shift": overall_std(measured) - entry.std,
            }
    return pd.DataFrame.from_dict(rows, orient="index")


def _tabulate_classes(features: Mapping[str, Features], dataset: Dataset) -> pd.DataFrame:
    classes = len(dataset.classes)
    rows = {}
    for split, measured in features.items():
        counts = np.bincount(measured.label, minlength=classes)[:classes].tolist()
        for name, count in zip(dataset.classes, counts, strict=True):
            rows[f"{split} {name}"] = {"images": count, "imbalance": count * classes / len(measured) - 1}
    return pd.DataFrame.from_dict(rows, orient="index")


def _tabulate_images(train: Features, test: Features) -> pd.DataFrame:
    """Build the table of images, `train` before `test`. Strings would take more memory than all other columns."""
    digest = np.concatenate([train.digest, test.digest])
    label = np.concatenate([train.label, test.label])
    is_test = np.repeat(np.array([0, 1], np.int8), [len(train), len(test)])
    return pd.DataFrame(
        {
            "split": pd.Categorical.from_codes(is_test, categories=pd.Index(["train", "test"])),
            "label": label,
            "std": np.concatenate([train.std, test.std]).astype(np.float32),
            "white": (np.concatenate([train.white, test.white]) / train.pixels).astype(np.float32),
            "digest": digest,
            "conflicting": find_conflicts(digest, label),
            "leaked": np.concatenate([np.zeros(len(train), bool), are_among(test.digest, train.digest)]),
            "mirrored": np.concatenate([find_mirrored(train, digest), find_mirrored(test, digest)]),
            "mirrored_leak": np.concatenate([np.zeros(len(train), bool), find_mirrored(test, train.digest)]),
        },
        copy=False,  # they need a tenth of the memory of the process
    )


def tabulate_batch(batch: Features, train: Sequence[Features], test: Sequence[Features]) -> pd.DataFrame:
    """Build the table of a batch's images.

    Args:
        train, test: the features of the images that the batch is compared with.
    """
    labels = np.concatenate([batch.label, *(features.label for features in (*train, *test))])
    digests = np.concatenate([batch.digest, *(features.digest for features in (*train, *test))])
    of_train, of_test = np.split(digests[len(batch) :], [sum(map(len, train))])
    return pd.DataFrame(
        {
            "split": "train",
            "label": batch.label,
            "std": batch.std.astype(np.float32),
            "white": (batch.white / batch.pixels).astype(np.float32),
            "digest": batch.digest,
            "conflicting": find_conflicts(digests, labels)[: len(batch)],
            "leaked": are_among(batch.digest, of_test),
            "repeated": are_among(batch.digest, of_train),
        }
    )


def build_batch_suite(dataset: Dataset, thresholds: ValidateParams) -> list[gxe.Expectation]:
    """Build the expectations about the images of a batch: those that `validate` would refuse it for."""
    limits = _fill(thresholds)
    already_there = _allowed(
        "already_there",
        "images that are already training images",
        "repeated",
        [False],
        tolerated=limits["max_duplicate_fraction"],
    )
    return _checked([*_image_expectations(dataset, limits), already_there], thresholds)


def build_suites(dataset: Dataset, entry: Entry | None, thresholds: ValidateParams) -> Suites:
    """Build the expectations about each table, without those that lack a threshold (see `list_skipped`).

    Args:
        dataset, entry: as for `build_tables`.
        thresholds: from `resolve_thresholds`.
    """
    limits = _fill(thresholds)
    suites = {
        "files": [_allowed("schema", "columns and types of the file", "columns", [describe_schema(dataset.schema)])],
        "splits": _split_expectations(entry, limits),
        "classes": [
            _between("class_presence", "images of each class in each split", "images", least=1),
            _expect_balance(thresholds.max_class_imbalance),
        ],
        "images": [*_image_expectations(dataset, limits), *_mirror_expectations(dataset, limits)],
    }
    return {name: _checked(suite, thresholds) for name, suite in suites.items()}


def list_skipped(dataset: Dataset, entry: Entry | None, thresholds: ValidateParams) -> dict[str, str]:
    """Return the expectations that `build_suites` leaves out for this dataset, each with the reason."""
    no_reference = f"the catalogue has no reference for {dataset.name}"
    no_flip = f"a mirrored image of {dataset.name} need not keep its class"
    missing = {name: list_missing(name, thresholds) for name in KEYS if name not in BATCH_ONLY}
    no_threshold = "no threshold: validate.{} is null in params.yaml and not in the catalogue entry"
    return {
        **{name: no_threshold.format(keys[0]) for name, keys in missing.items() if keys},
        **({} if entry else dict.fromkeys(("official_images", "mean", "std"), no_reference)),
        **({} if dataset.flip else dict.fromkeys(("mirrored_images", "mirrored_across_splits"), no_flip)),
    }


def _fill(thresholds: ValidateParams) -> Limits:
    """Return the thresholds with zeros for those that are unknown: `_checked` removes their expectations."""
    return {key: value or 0.0 for key, value in vars(thresholds).items()}


def _checked(suite: list[gxe.Expectation], thresholds: ValidateParams) -> list[gxe.Expectation]:
    """Remove the expectations whose thresholds are unknown."""
    return [expectation for expectation in suite if not list_missing(expectation.meta["name"], thresholds)]


def _expect_balance(threshold: float | None) -> gxe.Expectation:
    most = UNBALANCED if threshold is None else threshold
    return _between(
        "class_balance",
        "images of each class, against the mean of the split's classes: 0.5 is half as many again",
        "imbalance",
        least=-most,
        most=most,
        severity="warning" if threshold is None else "critical",
    )


def _split_expectations(entry: Entry | None, limits: Limits) -> list[gxe.Expectation]:
    expectations = [
        _between(
            "pixel_range",
            "brightest less darkest pixel of the split, 0 to 1",
            "pixel_range",
            least=limits["min_pixel_range"],
        ),
        _between(
            "class_separation",
            "share of a simple feature's variance that the training classes' means explain; 0 for shuffled labels",
            "class_separation",
            least=limits["min_class_separation"],
        ),
    ]
    if entry:
        mean, std = limits["max_mean_shift"], limits["max_std_shift"]
        expectations += [
            _allowed("official_images", "official images beyond, or short of, the catalogue's", "surplus", [0]),
            _between("mean", "mean pixel, 0 to 1, less the catalogue's", "mean_shift", least=-mean, most=mean),
            _between(
                "std", "standard deviation of all pixels, less the catalogue's", "std_shift", least=-std, most=std
            ),
        ]
    return expectations


def _image_expectations(dataset: Dataset, limits: Limits) -> list[gxe.Expectation]:
    return [
        _allowed("labels", "labels that are no class", "label", list(range(len(dataset.classes)))),
        _between(
            "blank_images",
            "images with nothing to see: the standard deviation of their pixels, 0 to 1",
            "std",
            least=limits["min_contrast"],
            tolerated=limits["max_blank_fraction"],
        ),
        _between(
            "saturated_images",
            "images overexposed or on a white ground: their share of pixels at 255",
            "white",
            most=limits["max_white"],
            tolerated=limits["max_saturated_fraction"],
        ),
        _expect(
            gxe.ExpectCompoundColumnsToBeUnique,
            "duplicates_within_splits",
            "images that occur more than once within a split",
            column_list=["split", "digest"],
            mostly=1 - limits["max_duplicate_fraction"],
        ),
        _allowed("conflicting_labels", "images that also occur with another label", "conflicting", [False]),
        _allowed("duplicates_across_splits", "test images that are training images too", "leaked", [False]),
    ]


def _mirror_expectations(dataset: Dataset, limits: Limits) -> list[gxe.Expectation]:
    if not dataset.flip:
        return []
    return [
        _allowed(
            "mirrored_images",
            "images whose mirror image is there too",
            "mirrored",
            [False],
            tolerated=limits["max_mirrored_fraction"],
            severity="warning",
        ),
        _allowed(
            "mirrored_across_splits",
            "test images that are mirrored training images",
            "mirrored_leak",
            [False],
            severity="warning",
        ),
    ]


def _between(
    name: str,
    meaning: str,
    column: str,
    *,
    least: float | None = None,
    most: float | None = None,
    tolerated: float = 0.0,
    severity: Severity = "critical",
) -> gxe.Expectation:
    return _expect(
        gxe.ExpectColumnValuesToBeBetween,
        name,
        meaning,
        severity=severity,
        column=column,
        min_value=least,
        max_value=most,
        mostly=1 - tolerated,
    )


def _allowed(
    name: str,
    meaning: str,
    column: str,
    values: list[Any],
    *,
    tolerated: float = 0.0,
    severity: Severity = "critical",
) -> gxe.Expectation:
    return _expect(
        gxe.ExpectColumnValuesToBeInSet,
        name,
        meaning,
        severity=severity,
        column=column,
        value_set=values,
        mostly=1 - tolerated,
    )


def _expect(
    kind: type[gxe.Expectation], name: str, meaning: str, *, severity: Severity = "critical", **kwargs: Any
) -> gxe.Expectation:
    return kind(meta={"name": name}, notes=meaning, severity=severity, **kwargs)
