"""Check the tables with Great Expectations, and report the findings."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any

import great_expectations as gx
import numpy as np
import pandas as pd
from great_expectations.data_context import AbstractDataContext
from great_expectations.data_context.types.base import ProgressBarsConfig

from pipeline.data import table
from pipeline.data.applied_corrections import Applied, read_applied, summarise_applied
from pipeline.data.catalog import Entry
from pipeline.data.expectations import Severity, Suites, Tables, build_suites, build_tables, list_skipped
from pipeline.data.features import Features, overall_mean, overall_std, read_features
from pipeline.data.removed_images import read_removed
from pipeline.data.thresholds import KEYS
from pipeline.errors import DataError, ValidationFailed
from pipeline.params import ValidateParams

EXAMPLES, SHOWN = 5, 2  # of rows that violate an expectation: in the report, and in a line of text
DIGITS = 6  # after the decimal point, of every number in the report
CELL = 36  # maximum width of a cell of the summary, which then fits 120 columns

Identify = Callable[[Sequence[int]], Sequence[str]]
Origins = Mapping[str, tuple[tuple[str, ...], np.ndarray]]  # of each split: names of sources, and each image's number


@dataclass(frozen=True)
class Finding:
    """The result of one expectation."""

    name: str
    meaning: str
    severity: Severity
    passed: bool
    observed: float | dict[str, Any]  # the share of images that violate it; for other tables, the value of each row
    threshold: dict[str, Any]
    count: int  # rows that violate it
    examples: tuple[str, ...]  # the first of these rows: their names, or for images the result of `Identify`


@dataclass(frozen=True)
class Report:
    """The result of the validation. It contains no times and no run ids: equal data gives equal bytes."""

    dataset: str
    splits: dict[str, Any]  # the result of `describe_split` for each
    findings: tuple[Finding, ...]
    skipped: dict[str, str]  # expectations left out, and why
    corrections: tuple[Applied, ...] = ()  # images that people corrected, by split, classes and person

    @property
    def failures(self) -> list[Finding]:
        """Critical expectations that failed."""
        return [finding for finding in self.findings if finding.severity == "critical" and not finding.passed]

    @property
    def warnings(self) -> list[Finding]:
        """Other expectations that failed."""
        return [finding for finding in self.findings if finding.severity == "warning" and not finding.passed]

    def content(self) -> dict[str, Any]:
        """Return the content of `validation.json`."""
        content = {
            "dataset": self.dataset,
            "passed": not self.failures,
            "splits": self.splits,
            "expectations": [asdict(finding) for finding in self.findings],
            "skipped": self.skipped,
        }
        return content | ({"corrections": list(map(asdict, self.corrections))} if self.corrections else {})


def inspect(
    files: Mapping[str, Path], entry: Entry | None, thresholds: ValidateParams, share: float = 1.0
) -> tuple[Report, AbstractDataContext]:
    """Measure the images of the files and check every expectation.

    Args:
        files: the tables of `train` and `test`.
        entry: the catalogue's entry; None if there is none, as for the images of a local directory.
        thresholds: from `resolve_thresholds`.
        share: the share of the dataset's own training images that a window keeps.

    Returns:
        the report, and the context with Great Expectations' own results, for `validation_pages`.

    Raises:
        DataError: a file cannot be read, or an expectation cannot be evaluated.
    """
    dataset = table.read_dataset(files["train"])
    schemas = {split: table.read_schema(path) for split, path in files.items()}
    measurable = all(schema.equals(dataset.schema) for schema in schemas.values())
    features = {split: read_features(path) for split, path in files.items()} if measurable else {}

    def name_images(rows: Sequence[int]) -> list[str]:
        return _name_images(files, origins, rows)

    directory = files["train"].parent
    removed = Counter(image.split for image in read_removed(directory) if image.source == table.OFFICIAL)
    tables = build_tables(schemas, features, dataset, entry, share, removed)
    splits = {split: describe_split(measured) for split, measured in features.items()}
    origins = {split: (measured.sources, measured.source) for split, measured in features.items()}
    features.clear()  # Great Expectations needs as much memory as they do
    findings, context = validate(tables, build_suites(dataset, entry, thresholds), name_images)
    skipped, corrections = list_skipped(dataset, entry, thresholds), tuple(read_applied(directory))
    return Report(dataset.name, splits, findings, skipped, corrections), context


def validate(tables: Tables, suites: Suites, identify: Identify) -> tuple[tuple[Finding, ...], AbstractDataContext]:
    """Check every table against its suite.

    Args:
        tables, suites: from `pipeline.data.expectations`. The suite of a missing table is skipped.
        identify: converts row numbers of the table `images` to texts for the examples.

    Returns:
        the findings in the order of the suites, and the context with the results, for `validation_pages`.

    Raises:
        DataError: an expectation cannot be evaluated.
    """
    context = gx.get_context(mode="ephemeral")
    context.enable_analytics(enable=False)
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    source = context.data_sources.add_pandas(name="dataset")
    findings: list[Finding] = []
    for name, frame in tables.items():
        batch = source.add_dataframe_asset(name=name).add_batch_definition_whole_dataframe(name="all rows")
        suite = context.suites.add(gx.ExpectationSuite(name=name, expectations=list(suites[name])))
        definition = context.validation_definitions.add(gx.ValidationDefinition(name=name, data=batch, suite=suite))
        results = definition.run(
            batch_parameters={"dataframe": frame},
            result_format={"result_format": "SUMMARY", "partial_unexpected_count": EXAMPLES},
        )
        order = [expectation.meta["name"] for expectation in suites[name]]
        found = [_find(result, frame, identify) for result in results.results]
        findings += sorted(found, key=lambda finding: order.index(finding.name))
    return tuple(findings), context


def describe_split(features: Features) -> dict[str, Any]:
    """Return the report's facts about a split."""
    return {
        "images": len(features),
        "sources": features.images_by_source,
        "mean": _plain(overall_mean(features)),
        "std": _plain(overall_std(features)),
    }


def summarise(report: Report) -> str:
    """Return the report as one screen of text."""
    rows: list[tuple[str, ...]] = [("expectation", "result", "observed", "allowed")]
    rows += [
        (finding.name, describe_verdict(finding), describe_observed(finding), describe_allowed(finding))
        for finding in report.findings
    ]
    rows += [(name, "skipped", reason, "") for name, reason in report.skipped.items()]
    rows = [tuple(shorten(cell, CELL, placeholder=" …") for cell in row) for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    counts = " and ".join(f"{facts['images']:,} {split}" for split, facts in report.splits.items())
    held = sum(finding.passed for finding in report.findings)
    warnings = [f"warning: {describe(finding)}" for finding in report.warnings]
    if report.corrections:
        lines.append(f"corrections: {summarise_applied(report.corrections)}")
    verdict = f"{held} of {len(report.findings)} expectations hold"
    return "\n".join([f"{report.dataset}: {counts or 'no'} images", *lines, *warnings, verdict])


def describe(finding: Finding) -> str:
    """Return a finding as one line: the expectation, what violates it, what is allowed, and the keys that set this."""
    if isinstance(finding.observed, float):
        shown = f"{finding.count:,} ({finding.observed:.2%}), such as {', '.join(finding.examples[:SHOWN])}"
    else:
        shown = ", ".join(f"{row} {finding.observed[row]}" for row in finding.examples)
    keys = " and ".join(f"validate.{key}" for key in KEYS.get(finding.name, ()))
    set_by = f", set by {keys}" if keys else ", in every dataset"
    return f"{finding.name} ({finding.meaning}): {shown}; allowed: {describe_allowed(finding)}{set_by}"


def require_passed(report: Report, where: Path) -> None:
    """Stop the pipeline if a critical expectation failed. `where` is the file with the full report.

    Raises:
        ValidationFailed: lists every such expectation, and the images that violate it.
    """
    if report.failures:
        raise ValidationFailed(
            f"the images of {report.dataset} violate critical expectations",
            found="\n            ".join(map(describe, report.failures)),
            remedy="correct the data, remove a batch (dvc remove data/incoming/NAME.dvc; rm -r data/incoming/NAME), or "
            "set the keys named above in params.yaml if the images are as they should be; the full report: "
            f"{where}",
        )


def _find(result: Any, frame: pd.DataFrame, identify: Identify) -> Finding:
    """Convert Great Expectations' result, without its times and run ids."""
    config, details = result.expectation_config, result.result
    name, kwargs = config.meta["name"], config.kwargs
    if "unexpected_count" not in details:
        raise DataError(f"cannot evaluate the expectation {name}", found=str(result.exception_info))
    threshold = {key: kwargs[key] for key in ("min_value", "max_value", "value_set") if kwargs.get(key) is not None}
    observed: float | dict[str, Any]
    rows = details["partial_unexpected_index_list"]
    if isinstance(frame.index, pd.RangeIndex):  # images have row numbers, the rows of the other tables have names
        threshold["fraction"] = round(1 - kwargs.get("mostly", 1), DIGITS)
        observed = round(details["unexpected_count"] / len(frame), DIGITS)
        rows = identify(rows)
    else:
        observed = {row: _plain(value) for row, value in frame[kwargs["column"]].items()}
    return Finding(
        name=name,
        meaning=config.notes,
        severity=config.severity.value,
        passed=bool(result.success),
        observed=observed,
        threshold=threshold,
        count=int(details["unexpected_count"]),
        examples=tuple(rows),
    )


def _name_images(files: Mapping[str, Path], origins: Origins, rows: Sequence[int]) -> list[str]:
    """Return split, id and source of images, by their row numbers in train followed by test."""
    names = []
    for split, (names_of, source) in origins.items():
        inside = [row for row in rows if 0 <= row < len(source)]
        ids = table.ids_at(files[split], inside) if inside else []
        names += [f"{split} {id_} ({names_of[source[row]]})" for id_, row in zip(ids, inside, strict=True)]
        rows = [row - len(source) for row in rows]
    return names


def _plain(value: Any) -> Any:
    """Round a number. Strings are returned unchanged."""
    return round(value, DIGITS) + 0.0 if isinstance(value, float) else value  # -0.0 + 0.0 is 0.0


def describe_verdict(finding: Finding) -> str:
    """Return the result of an expectation: `ok`, `warning` or `FAILED`."""
    if finding.passed:
        return "ok"
    return "FAILED" if finding.severity == "critical" else "warning"


def describe_observed(finding: Finding) -> str:
    """Return what an expectation found in the data."""
    if isinstance(finding.observed, float):
        return f"{finding.count:,} ({finding.observed:.2%})" if finding.count else "none"
    values = finding.observed.values()
    if all(isinstance(value, str) for value in values):
        return "as allowed" if finding.passed else ", ".join(finding.examples)
    if len(values) == 2:
        return ", ".join(f"{row} {value}" for row, value in finding.observed.items())
    return f"{min(values)} to {max(values)}"


def describe_allowed(finding: Finding) -> str:
    """Return what an expectation allows."""
    limits = finding.threshold
    if "fraction" in limits:
        return f"up to {limits['fraction']:.1%}" if limits["fraction"] else "none"
    if "value_set" in limits:
        return ", ".join(map(str, limits["value_set"]))
    if "max_value" not in limits:
        return f"{limits['min_value']:g} or more"
    return f"{limits['min_value']:g} to {limits['max_value']:g}"
