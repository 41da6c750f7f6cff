"""The validation split: stratified, decided image by image, and stable as data is added."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline.data import split, table
from pipeline.errors import DataError, ValidationFailed
from pipeline.files import file_digest, read_json, write_json
from pipeline.params import Params, SplitParams, load_params
from pipeline.stages import split as stage
from tests.conftest import REPOSITORY

CLASSES = ("a", "b", "c")
DATASET = table.Dataset("shapes", 4, 5, CLASSES, ("가", "나", "다"), flip=True)
Batch = tuple[np.ndarray, np.ndarray, str]


def draw_images(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 256, (count, 4, 5), dtype=np.uint8)
    return images, np.repeat(np.arange(3, dtype=np.uint8), [count // 2, count // 3, count - count // 2 - count // 3])


def write_table(path: Path, *batches: Batch) -> None:
    seen: dict[str, int] = {}
    with table.writer(path, DATASET) as rows:
        for images, labels, source in batches:
            ids = []
            for digest in map(bytes.hex, table.pixel_digests(images)):
                ids.append(f"{digest}-{seen.setdefault(digest, 0)}")
                seen[digest] += 1
            rows.write(images, labels, table.strings(ids), table.strings([source] * len(labels)))


def read_splits(directory: Path) -> dict[str, set[str]]:
    """The images of each split, by their ids."""
    return {name: set(table.read_ids(directory / f"{name}.parquet")) for name in ("train", "validation", "test")}


@pytest.fixture
def params() -> Params:
    params = load_params(REPOSITORY / "params.yaml")
    return dataclasses.replace(params, split=SplitParams(seed=20, validation_fraction=0.1))


@pytest.fixture
def official() -> Batch:
    return *draw_images(10_000, seed=0), table.OFFICIAL


@pytest.fixture
def workspace(in_directory: Path, official: Batch) -> Path:
    """The current directory, holding validated data."""
    write_table(stage.TRAIN, official)
    write_table(stage.TEST, (*draw_images(60, seed=1), table.OFFICIAL))
    write_json(stage.VALIDATION_REPORT, {"passed": True})
    return in_directory


def test_copies_draw_the_same_number_and_seeds_differ() -> None:
    first, copy, other = ("ab" * 20, "ab" * 20, "cd" * 20)
    numbers = split.draw_numbers([first, copy, other], seed=1)
    assert numbers[0] == numbers[1] != numbers[2]
    assert (split.draw_numbers([first, other], seed=2) != numbers[[0, 2]]).all()


def test_the_draw_of_an_image_never_changes() -> None:
    # What the committed splits rest on.
    assert split.draw_numbers(["ab" * 20], seed=20).tolist() == [11787830264711010105]


def test_every_class_gives_its_share_of_the_official_images(workspace: Path, params: Params, official: Batch) -> None:
    stage.run(params)
    ids = read_splits(stage.SPLITS)
    assert {name: len(members) for name, members in ids.items()} == {"train": 9_000, "validation": 1_000, "test": 60}
    assert ids["train"] | ids["validation"] == set(table.read_ids(stage.TRAIN))
    validation = np.bincount(table.read_images(stage.SPLITS / "validation.parquet")[1])
    assert validation.tolist() == [500, 333, 167]
    report = read_json(stage.REPORT)
    assert report["validation_fraction"] == 0.1
    assert report["splits"]["validation"] == {"images": 1000, "classes": {"a": 500, "b": 333, "c": 167}}
    assert report["splits"]["train"]["classes"] == {"a": 4500, "b": 3000, "c": 1500}


def test_rows_keep_their_order_images_and_labels(workspace: Path, params: Params, official: Batch) -> None:
    stage.run(params)
    place = {id_: row for row, id_ in enumerate(table.read_ids(stage.TRAIN))}
    for name in ("train", "validation"):
        path = stage.SPLITS / f"{name}.parquet"
        rows = [place[id_] for id_ in table.read_ids(path)]
        assert rows == sorted(rows)
        images, labels = table.read_images(path)
        assert (images == official[0][rows]).all()
        assert (labels == official[1][rows]).all()
        assert table.read_dataset(path) == DATASET


def test_the_official_test_table_is_carried_over_as_it_is(workspace: Path, params: Params) -> None:
    stage.run(params)
    assert (stage.SPLITS / "test.parquet").read_bytes() == stage.TEST.read_bytes()


def test_the_same_data_and_seed_give_the_same_bytes(workspace: Path, params: Params) -> None:
    outputs = [*(stage.SPLITS / f"{name}.parquet" for name in ("train", "validation", "test")), stage.REPORT]
    stage.run(params)
    before = [file_digest(path) for path in outputs]
    stage.run(params)
    assert [file_digest(path) for path in outputs] == before


def test_another_seed_gives_another_split_of_the_same_size(workspace: Path, params: Params) -> None:
    stage.run(params)
    before = read_splits(stage.SPLITS)["validation"]
    stage.run(dataclasses.replace(params, split=SplitParams(seed=21, validation_fraction=0.1)))
    after = read_splits(stage.SPLITS)["validation"]
    assert len(after) == len(before)
    assert len(after & before) < 0.2 * len(before)


def test_added_images_move_no_earlier_image_and_share_the_split_of_their_copies(
    workspace: Path, params: Params, official: Batch
) -> None:
    stage.run(params)
    before = read_splits(stage.SPLITS)
    new, labels = draw_images(3_000, seed=5)
    copies, copied_labels = official[0][:500], official[1][:500]
    write_table(stage.TRAIN, official, (new, labels, "spring"), (copies, copied_labels, "again"))
    stage.run(params)
    after = read_splits(stage.SPLITS)
    for name, members in before.items():
        assert members <= after[name]
    added = {name: after[name] - before[name] for name in ("train", "validation")}
    again = {name: {id_ for id_ in ids if id_.endswith("-1")} for name, ids in added.items()}
    assert sum(map(len, again.values())) == 500
    assert all(id_.replace("-1", "-0") in before[name] for name, ids in again.items() for id_ in ids)
    share = len(added["validation"] - again["validation"]) / len(new)
    assert 0.08 < share < 0.12


@pytest.mark.parametrize(("fraction", "validation"), [(0.0001, [1, 1, 1]), (0.9999, [4999, 3332, 1666])])
def test_each_class_has_an_image_on_both_sides(
    workspace: Path, params: Params, fraction: float, validation: list[int]
) -> None:
    stage.run(dataclasses.replace(params, split=SplitParams(seed=1, validation_fraction=fraction)))
    assert list(read_json(stage.REPORT)["splits"]["validation"]["classes"].values()) == validation


def test_a_class_with_one_image_is_refused(workspace: Path, params: Params, official: Batch) -> None:
    images, labels, _ = official
    kept = (labels < 2) | (np.arange(len(labels)) == len(labels) - 1)
    write_table(stage.TRAIN, (images[kept], labels[kept], table.OFFICIAL))
    with pytest.raises(DataError, match="class c has only one official training image"):
        stage.run(params)
    assert not stage.SPLITS.exists()
    assert not stage.REPORT.exists()


def test_a_class_without_official_images_is_refused(workspace: Path, params: Params, official: Batch) -> None:
    images, labels, _ = official
    write_table(stage.TRAIN, (images[labels < 2], labels[labels < 2], table.OFFICIAL), (images, labels, "spring"))
    with pytest.raises(DataError, match="class c has no official training images"):
        stage.run(params)


def test_an_added_class_gives_the_fraction_of_all_draws(workspace: Path, params: Params, official: Batch) -> None:
    """A later batch moves no image of it, and copies stay together, as with classes that have official images."""
    images, labels, _ = official
    known, hats = labels < 2, (images[labels == 2], labels[labels == 2], "hats")
    test = draw_images(60, seed=1)
    is_hat = test[1] == 2
    write_table(
        stage.TEST, (test[0][~is_hat], test[1][~is_hat], table.OFFICIAL), (test[0][is_hat], test[1][is_hat], "hats")
    )
    write_table(stage.TRAIN, (images[known], labels[known], table.OFFICIAL), hats)
    stage.run(params)
    before = read_splits(stage.SPLITS)
    counts = read_json(stage.REPORT)["splits"]["validation"]["classes"]
    assert list(counts.values())[:2] == [500, 333]
    assert 0.08 < counts["c"] / len(hats[1]) < 0.12

    more = draw_images(600, seed=2)[0]
    spring = (np.concatenate([more, hats[0][:50]]), np.full(650, 2), "spring")
    write_table(stage.TRAIN, (images[known], labels[known], table.OFFICIAL), hats, spring)
    stage.run(params)
    after = read_splits(stage.SPLITS)
    assert all(before[name] <= after[name] for name in before)
    assert not {id_[:40] for id_ in after["train"]} & {id_[:40] for id_ in after["validation"]}


def test_an_added_class_needs_an_image_on_both_sides(workspace: Path, params: Params, official: Batch) -> None:
    images, labels, _ = official
    known, hats = labels < 2, np.flatnonzero(labels == 2)
    test, of_test = draw_images(60, seed=1)
    official_test = (test[of_test < 2], of_test[of_test < 2], table.OFFICIAL)
    write_table(stage.TEST, official_test, (test[of_test == 2], of_test[of_test == 2], "hats"))
    one = (images[hats[:1]], labels[hats[:1]], "hats")
    write_table(stage.TRAIN, (images[known], labels[known], table.OFFICIAL), one)
    with pytest.raises(DataError, match=r"class c has too few training images(.|\n)*about 44 images") as error:
        stage.run(params)
    assert "1 for training, 0 for validation" in error.value.found
    assert not stage.SPLITS.exists()


def test_a_class_missing_in_test_is_refused(workspace: Path, params: Params) -> None:
    images, labels = draw_images(60, seed=1)
    write_table(stage.TEST, (images[labels > 0], labels[labels > 0], table.OFFICIAL))
    with pytest.raises(DataError, match="test split has no images of a"):
        stage.run(params)


def test_a_training_image_among_the_test_images_is_refused(workspace: Path, params: Params, official: Batch) -> None:
    images, labels = draw_images(60, seed=1)
    images[7] = official[0][4_321]
    write_table(stage.TEST, (images, labels, table.OFFICIAL))
    with pytest.raises(DataError, match="also among the test images") as error:
        stage.run(params)
    assert table.read_ids(stage.TRAIN)[4_321] in str(error.value)
    assert not stage.SPLITS.exists()


def test_copies_that_two_labels_would_part_are_refused(workspace: Path, params: Params, official: Batch) -> None:
    images, labels, _ = official
    write_table(stage.TRAIN, official, (images, (labels + 1) % 3, "relabelled"))
    with pytest.raises(DataError, match="both training and validation, under two labels"):
        stage.run(params)


@pytest.mark.parametrize("content", ['{"passed": false}', '{"passed":', None])
def test_nothing_is_split_that_did_not_pass_validation(workspace: Path, params: Params, content: str | None) -> None:
    stage.VALIDATION_REPORT.unlink()
    if content is not None:
        stage.VALIDATION_REPORT.write_text(content)
    with pytest.raises(DataError, match=r"validation\.json") as error:
        stage.run(params)
    assert isinstance(error.value, ValidationFailed) == (content == '{"passed": false}')
    assert not stage.SPLITS.exists()


def test_the_stage_does_not_import_pandas(workspace: Path) -> None:
    # Arrow's conversions would, unasked, and take longer than the split.
    code = f"""if True:
        import sys
        from pathlib import Path
        from pipeline.params import load_params
        from pipeline.stages import split
        split.run(load_params(Path({str(REPOSITORY / "params.yaml")!r})))
        print(sorted({{"pandas", "great_expectations", "tensorflow", "mlflow"}} & set(sys.modules)))
    """
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"
    assert stage.REPORT.is_file()
