"""Great Expectations on generated data with one fault at a time: what it finds, and what the stage makes of that."""

import dataclasses
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.data import table, tiny, window
from pipeline.data.applied_corrections import Applied, write_applied
from pipeline.data.catalog import CATALOG, load_entry
from pipeline.data.thresholds import resolve_thresholds
from pipeline.errors import ValidationFailed
from pipeline.files import read_json
from pipeline.params import Params, load_params
from pipeline.stages import validate as stage
from tests.conftest import REPOSITORY

if TYPE_CHECKING:  # Great Expectations takes seconds to import: the tests that run it do
    from pipeline.data.validation import Finding, Report

TINY = load_entry("tiny", REPOSITORY / CATALOG)


@dataclass
class Data:
    """Images, labels and sources of both splits, to be spoilt and written."""

    images: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]
    sources: dict[str, list[str]]
    dataset: table.Dataset = field(default=TINY.dataset)

    def add(self, split: str, images: np.ndarray, labels: np.ndarray, source: str) -> None:
        self.images[split] = np.concatenate([self.images[split], images])
        self.labels[split] = np.concatenate([self.labels[split], labels])
        self.sources[split] += [source] * len(labels)

    def keep(self, split: str, rows: np.ndarray) -> None:
        self.images[split], self.labels[split] = self.images[split][rows], self.labels[split][rows]
        self.sources[split] = np.array(self.sources[split])[rows].tolist()

    def write(self) -> None:
        for split, path in stage.FILES.items():
            seen: dict[str, int] = {}
            with table.writer(path, self.dataset) as rows:
                ids = []
                for digest in map(bytes.hex, table.pixel_digests(self.images[split])):
                    ids.append(f"{digest}-{seen.setdefault(digest, 0)}")
                    seen[digest] += 1
                rows.write(
                    self.images[split], self.labels[split], table.strings(ids), table.strings(self.sources[split])
                )


@pytest.fixture(scope="module")
def generated() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    return {"train": tiny.generate(TINY.train, tiny.SEED), "test": tiny.generate(TINY.test, tiny.SEED + 1)}


@pytest.fixture
def data(generated: dict[str, tuple[np.ndarray, np.ndarray]], in_directory: Path) -> Data:
    """Good data, not yet written, and a current directory to validate it in."""
    shutil.copytree(REPOSITORY / CATALOG, CATALOG)
    return Data(
        images={split: images.copy() for split, (images, _) in generated.items()},
        labels={split: labels.copy() for split, (_, labels) in generated.items()},
        sources={split: [table.OFFICIAL] * len(labels) for split, (_, labels) in generated.items()},
    )


@pytest.fixture
def params() -> Params:
    return load_params(REPOSITORY / "params.yaml")


def inspect(data: Data, params: Params) -> "Report":
    """What validation says of the data, without the stage around it."""
    from pipeline.data import validation

    data.write()
    entry = TINY if data.dataset.name == TINY.name else None
    thresholds = resolve_thresholds(params.validate, TINY if data.dataset.name.startswith(TINY.name) else None)
    return validation.inspect(stage.FILES, entry, thresholds)[0]


def names(findings: Sequence["Finding"]) -> set[str]:
    return {finding.name for finding in findings}


def named(report: "Report", name: str) -> "Finding":
    return next(finding for finding in report.findings if finding.name == name)


def test_good_data_passes_without_a_warning(data: Data, params: Params, capsys: pytest.CaptureFixture[str]) -> None:
    data.write()
    stage.run(params)
    report = read_json(stage.REPORT)
    assert report["passed"]
    count = len(report["expectations"])
    assert count >= 16
    assert all(finding["passed"] and not finding["count"] for finding in report["expectations"])
    assert report["splits"]["train"]["sources"] == {table.OFFICIAL: TINY.train}
    assert (stage.PAGES / "index.html").is_file()
    printed = capsys.readouterr().out
    assert f"{count} of {count} expectations hold" in printed
    assert max(map(len, printed.splitlines())) <= 120


def test_a_rerun_gives_the_same_bytes(data: Data, params: Params) -> None:
    data.write()
    stage.run(params)
    before = stage.REPORT.read_bytes()
    stage.run(params)
    assert stage.REPORT.read_bytes() == before


def test_the_report_of_bad_data_is_left_where_dvc_does_not_delete_it(data: Data, params: Params) -> None:
    data.images["train"][::20] = 0
    data.write()
    with pytest.raises(ValidationFailed, match=r"blank_images .*100 \(4\.00%\).*allowed: up to 0\.1%") as error:
        stage.run(params)
    assert not stage.REPORT.exists()
    left = stage.PAGES / "validation.json"
    assert str(left) in str(error.value)
    assert read_json(left)["passed"] is False
    assert (stage.PAGES / "index.html").is_file()


def truncated(data: Data) -> None:
    data.keep("train", np.arange(TINY.train - 1))


def enlarged(data: Data) -> None:
    images, labels = tiny.generate(10, seed=9)
    data.add("test", images, labels, table.OFFICIAL)


def label_out_of_range(data: Data) -> None:
    data.labels["train"][17] = 10


def class_missing(data: Data) -> None:
    data.labels["test"][data.labels["test"] == 4] = 5


def unbalanced(data: Data) -> None:
    images, labels = tiny.generate(3000, seed=9)
    data.add("train", images[labels == 3], labels[labels == 3], "dresses")


def blank(data: Data) -> None:
    data.images["train"][::20] = np.arange(100, dtype=np.uint8)[:, None, None]  # each in a grey of its own


def white_ground(data: Data) -> None:
    images, labels = tiny.generate(200, seed=9)
    data.add("train", 255 - images, labels, "inverted")


def repeated(data: Data) -> None:
    data.add("train", data.images["train"][:50], data.labels["train"][:50], "again")


def leaked(data: Data) -> None:
    data.images["test"][:3], data.labels["test"][:3] = data.images["train"][:3], data.labels["train"][:3]


def relabelled(data: Data) -> None:
    data.add("train", data.images["train"][:1], (data.labels["train"][:1] + 1) % 10, "relabelled")


def overexposed(data: Data) -> None:
    data.images["train"] = np.where(data.images["train"] > 180, 255, data.images["train"]).astype(np.uint8)


def shuffled(data: Data) -> None:
    np.random.default_rng(0).shuffle(data.labels["train"])


def shuffled_test(data: Data) -> None:
    np.random.default_rng(0).shuffle(data.labels["test"])


def renumbered_test(data: Data) -> None:
    data.labels["test"] = (data.labels["test"] + 1) % 10


def small_scale(data: Data) -> None:
    data.images = {split: images // 16 for split, images in data.images.items()}


@pytest.mark.parametrize(
    ("spoil", "expectations", "count"),
    [
        (truncated, {"official_images"}, 1),
        (enlarged, {"official_images"}, 1),
        (label_out_of_range, {"labels"}, 1),
        (class_missing, {"class_presence", "class_balance"}, None),
        (unbalanced, {"class_balance"}, 1),
        (blank, {"blank_images"}, 100),
        (white_ground, {"saturated_images", "mean", "std"}, None),
        (repeated, {"duplicates_within_splits"}, 100),
        (leaked, {"duplicates_across_splits"}, 3),
        (relabelled, {"conflicting_labels"}, 2),
        (overexposed, {"saturated_images", "mean", "std"}, None),
        (shuffled, {"class_separation"}, 2),
        (shuffled_test, {"class_separation"}, 1),
        (renumbered_test, {"class_separation"}, 1),
        (small_scale, {"pixel_range", "blank_images", "mean", "std"}, None),
    ],
    ids=lambda value: value.__name__ if callable(value) else None,
)
def test_bad_data_is_refused(
    data: Data, params: Params, spoil: Callable[[Data], None], expectations: set[str], count: int | None
) -> None:
    from pipeline.data import validation

    spoil(data)
    report = inspect(data, params)
    assert names(report.failures) == expectations
    with pytest.raises(ValidationFailed) as error:
        validation.require_passed(report, stage.REPORT)
    for finding in report.failures:
        assert finding.name in str(error.value)
        assert finding.examples[0] in str(error.value)
        assert finding.count == (count or finding.count)


def test_examples_are_the_images_at_fault(data: Data, params: Params) -> None:
    data.labels["train"][17], data.labels["test"][3] = 10, 200
    data.sources["train"][17] = "spring"
    report = inspect(data, params)
    images = (data.images["train"][17:18], data.images["test"][3:4])
    digests = [table.pixel_digests(image)[0].hex() for image in images]
    assert named(report, "labels").examples == (f"train {digests[0]}-0 (spring)", f"test {digests[1]}-0 (official)")


def test_mirrored_images_are_a_warning(data: Data, params: Params) -> None:
    from pipeline.data import validation

    data.add("train", data.images["train"][:60, :, ::-1], data.labels["train"][:60], "mirrored")
    data.images["test"][0], data.labels["test"][0] = data.images["train"][70][:, ::-1], data.labels["train"][70]
    report = inspect(data, params)
    assert report.content()["passed"]
    assert names(report.warnings) == {"mirrored_images", "mirrored_across_splits"}
    assert named(report, "mirrored_images").count == 122
    assert named(report, "mirrored_across_splits").count == 1
    assert "warning: mirrored_images" in validation.summarise(report)


def test_a_batch_leaves_the_official_count_alone(data: Data, params: Params) -> None:
    images, labels = tiny.generate(300, seed=9)
    data.add("train", images, labels, "spring")
    report = inspect(data, params)
    assert not report.failures
    assert not report.warnings
    assert report.splits["train"]["sources"] == {table.OFFICIAL: TINY.train, "spring": 300}


def test_a_window_expects_its_share_of_the_official_images(data: Data, params: Params) -> None:
    images, labels = data.images["train"], data.labels["train"]
    kept = window.choose(images, labels, window.find_thresholds([(images, labels)], len(TINY.classes), 0.5))
    data.images["train"], data.labels["train"] = images[kept], labels[kept]
    data.sources["train"] = [table.OFFICIAL] * int(kept.sum())
    data.write()
    stage.run(with_window(params, 0.5))
    assert read_json(stage.REPORT)["passed"]
    for other in (params, with_window(params, 0.4), with_window(params, 0.6)):
        with pytest.raises(ValidationFailed, match="official_images"):
            stage.run(other)


def with_window(params: Params, share: float) -> Params:
    return dataclasses.replace(params, dataset=dataclasses.replace(params.dataset, window=1, window_older=share))


def test_what_has_no_reference_is_skipped_and_said_so(data: Data, params: Params) -> None:
    from pipeline.data import validation

    data.keep("train", np.arange(1500))
    data.dataset = dataclasses.replace(data.dataset, name="tiny-local-1a2b3c4d", flip=False)
    report = inspect(data, params)
    assert not report.failures
    skipped = {"official_images", "mean", "std", "mirrored_images", "mirrored_across_splits"}
    assert set(report.skipped) == skipped
    assert skipped.isdisjoint(names(report.findings))
    assert "the catalogue has no reference" in validation.summarise(report)


def test_the_report_counts_the_corrections(data: Data, params: Params) -> None:
    from pipeline.data import validation

    data.write()
    corrected = Applied("train", "square", "disc", "reader-1", 3), Applied("train", "disc", "", "reader-2", 1)
    write_applied(stage.FILES["train"].parent, corrected)
    report = inspect(data, params)
    assert report.content()["corrections"] == [dataclasses.asdict(one) for one in corrected]
    assert "corrections: 3 images relabelled, 1 removed, by reader-1 (3), reader-2 (1)" in validation.summarise(report)


def test_a_table_of_another_schema_is_not_measured(data: Data, params: Params) -> None:
    data.write()
    path = stage.FILES["test"]
    rows = pq.read_table(path)
    column = rows.schema.get_field_index("label")
    pq.write_table(rows.set_column(column, "label", rows.column("label").cast(pa.int64())), path)
    with pytest.raises(ValidationFailed, match=r"schema .*label: int64"):
        stage.run(params)
    report = read_json(stage.PAGES / "validation.json")
    assert [(finding["name"], finding["examples"]) for finding in report["expectations"]] == [("schema", ["test"])]


def test_pages_that_cannot_be_written_do_not_change_the_verdict(
    data: Data, params: Params, capsys: pytest.CaptureFixture[str]
) -> None:
    data.write()
    stage.PAGES.parent.mkdir()
    stage.PAGES.write_text("a file where the directory should be")
    stage.run(params)
    assert read_json(stage.REPORT)["passed"]
    assert "cannot write reports/data_docs" in capsys.readouterr().out


def test_images_of_another_kind_are_checked_for_what_holds_for_all(data: Data, params: Params) -> None:
    """Dark objects on white, classes of 1 to 20, no contrast to speak of between them."""
    data.dataset = dataclasses.replace(data.dataset, name="own", flip=False)
    rare = np.flatnonzero(data.labels["train"] == 9)[10:]
    data.images = {split: 255 - images for split, images in data.images.items()}
    data.keep("train", np.setdiff1d(np.arange(TINY.train), rare))
    report = inspect(data, params)
    assert not report.failures
    assert names(report.warnings) == {"class_balance"}
    assert "validate.max_white is null" in report.skipped["saturated_images"]
    small = Data({k: v // 32 for k, v in data.images.items()}, data.labels, data.sources, data.dataset)
    assert {"pixel_range"} <= names(inspect(small, params).failures)


def test_a_refusal_names_the_key_that_allows_it(data: Data, params: Params) -> None:
    from pipeline.data import validation

    unbalanced(data)
    data.images["train"][0, 0, 0], data.labels["train"][0] = 1, 10
    with pytest.raises(ValidationFailed) as error:
        validation.require_passed(inspect(data, params), stage.REPORT)
    assert "allowed: -0.5 to 0.5, set by validate.max_class_imbalance" in str(error.value)
    allowed = dataclasses.replace(params, validate=dataclasses.replace(params.validate, max_class_imbalance=2.0))
    assert names(inspect(data, allowed).failures) == {"labels"}


def test_thresholds_come_from_params(data: Data, params: Params) -> None:
    data.images["train"][0] = 0
    assert not inspect(data, params).failures
    strict = dataclasses.replace(params, validate=dataclasses.replace(params.validate, max_blank_fraction=0.0))
    assert names(inspect(data, strict).failures) == {"blank_images"}
