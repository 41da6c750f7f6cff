"""Imported data, corrections and groups through `ingest` and `split`."""

import dataclasses
import hashlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from pipeline.data import table
from pipeline.data.applied_corrections import count_by_class, count_by_person, read_applied
from pipeline.data.corrections import CORRECTIONS
from pipeline.data.removed_images import read_removed
from pipeline.errors import DataError
from pipeline.files import write_json
from pipeline.params import Params, parse_params
from pipeline.stages import ingest, split
from tests.conftest import REPOSITORY
from tests.own_data import PARTS, draw_parts, write_parts

HEADER = "id,given,label,who,when,why"
GREY = dataclasses.replace(PARTS, channels=1)
GROUPED = dataclasses.replace(GREY, grouped=True)


@pytest.fixture(autouse=True)
def workspace(in_directory: Path) -> Path:
    """A directory with what `ingest` reads, without a dataset."""
    for name in ("incoming", "local"):
        (in_directory / "data" / name).mkdir(parents=True)
    shutil.copytree(REPOSITORY / "data/catalog", "data/catalog")
    shutil.copy(REPOSITORY / CORRECTIONS, CORRECTIONS)
    return in_directory


def make_params(**dataset: Any) -> Params:
    raw = yaml.safe_load((REPOSITORY / "params.yaml").read_text(encoding="utf-8"))
    raw["dataset"] |= {"name": "parts", "path": "data/own/parts", **dataset}
    return parse_params(raw)


def run_stages(**dataset: Any) -> None:
    params = make_params(**dataset)
    ingest.run(params)
    write_json(split.VALIDATION_REPORT, {"passed": True})
    split.run(params)


def add_batch(images: np.ndarray, labels: np.ndarray) -> None:
    np.savez("data/incoming/spring.npz", images=images, labels=labels)
    Path("data/incoming/spring.npz.dvc").write_text("outs: []")


def correct(*lines: str) -> None:
    CORRECTIONS.write_text("\n".join([HEADER, *lines, ""]))


def read_rows(path: Path) -> dict[str, tuple[int, int]]:
    """Label and label as given of each image, by id."""
    return {
        id_: (label, given)
        for rows in table.stream(path)
        for id_, label, given in zip(rows.ids.to_pylist(), rows.labels.tolist(), rows.given.tolist(), strict=True)
    }


def read_splits() -> dict[str, set[str]]:
    return {name: set(table.read_ids(split.SPLITS / f"{name}.parquet")) for name in ("train", "validation", "test")}


def test_colours_pass_through_unchanged() -> None:
    write_parts(Path())
    run_stages()
    assert [path.name for path in ingest.RAW.iterdir()] == ["SHA256SUMS"]
    images, labels = table.read_images(split.TRAIN)
    drawn, drawn_labels = draw_parts(300, 0)
    assert images.shape == (300, 12, 10, 3)
    assert (images == drawn).all()
    assert (labels == drawn_labels).all()
    assert table.read_dataset(split.SPLITS / "test.parquet") == PARTS
    ids = read_splits()
    assert {name: len(members) for name, members in ids.items()} == {"train": 270, "validation": 30, "test": 60}
    assert table.read_ids(split.TRAIN)[0] == f"{hashlib.sha1(drawn[0].tobytes()).hexdigest()}-0"


def test_another_file_than_the_imported_one_is_refused() -> None:
    write_parts(Path())
    file = Path("data/own/parts/test.parquet")
    content = file.read_bytes()
    file.write_bytes(content[:-1])
    with pytest.raises(DataError, match=r"(?s)test\.parquet is not the file.*dvc checkout --force data/own/parts\.dvc"):
        ingest.run(make_params())
    file.unlink()
    with pytest.raises(DataError, match=r"(?s)test\.parquet is missing.*dvc checkout data/own/parts\.dvc, or dvc pull"):
        ingest.run(make_params())
    assert not ingest.DATASET.exists()


def test_a_path_and_a_name_of_two_datasets_are_refused() -> None:
    write_parts(Path())
    with pytest.raises(DataError, match=r"does not hold parts[^$]*set dataset\.path to data/own/parts"):
        ingest.run(make_params(path="data/local"))
    with pytest.raises(
        DataError, match=r"imported data[^$]*set dataset\.name to parts, or dataset\.path to data/local"
    ):
        ingest.run(make_params(name="tiny"))


def test_a_group_stays_in_one_split() -> None:
    groups = [f"object {row // 5}" for row in range(300)]  # of images of several classes
    write_parts(Path(), GROUPED, groups=groups)
    run_stages()
    found = {
        name: {group for rows in table.stream(split.SPLITS / f"{name}.parquet") for group in rows.groups.to_pylist()}
        for name in ("train", "validation")
    }
    assert not found["train"] & found["validation"]
    assert found["train"] | found["validation"] == set(groups)
    assert 15 <= len(read_splits()["validation"]) <= 60

    # A batch moves no group; its copies join the group of their image.
    before = read_splits()
    images, labels = draw_parts(40, 7, GREY)
    copies, copied_labels = draw_parts(300, 0, GREY)
    add_batch(np.concatenate([images, copies[:100]]), np.concatenate([labels, copied_labels[:100]]))
    run_stages()
    after = read_splits()
    assert all(before[name] <= after[name] for name in before)
    again = {name: {id_ for id_ in ids if id_.endswith("-1")} for name, ids in after.items()}
    assert sum(map(len, again.values())) == 100
    assert all(id_.replace("-1", "-0") in before[name] for name, ids in again.items() for id_ in ids)


def test_a_group_in_training_and_test_is_refused() -> None:
    write_parts(Path(), GROUPED, groups=["test 3", *(f"object {row}" for row in range(299))])
    with pytest.raises(DataError, match="1 training images, or groups of images, are also among the test images"):
        run_stages()


def test_a_class_in_a_single_group_is_refused() -> None:
    groups = ["washers" if label == 2 else f"object {row}" for row, label in enumerate(draw_parts(300, 0)[1])]
    write_parts(Path(), GROUPED, groups=groups)
    with pytest.raises(DataError, match="class washer has only one official training image or group"):
        run_stages()


def test_a_correction_moves_no_other_image() -> None:
    write_parts(Path())
    run_stages()
    before, rows = read_splits(), read_rows(split.TRAIN)
    validation, train = sorted(before["validation"]), sorted(before["train"])
    relabelled, removed = [validation[0], *train[:3]], [*validation[1:4], *train[4:6]]
    of_test = sorted(before["test"])[0]
    names = PARTS.classes
    lines = [f"{id_},{names[rows[id_][1]]},{names[rows[id_][1] - 1]},me,2026-11-28,blurred" for id_ in relabelled]
    lines += [f"{id_},{rows[id_][1]},,me,," for id_ in [*removed]]
    lines.append(f"test/{of_test},{names[read_rows(split.TEST)[of_test][1]]},bolt,me,,")
    correct(*lines)
    run_stages()
    after, corrected = read_splits(), read_rows(split.TRAIN)
    assert after == {name: ids - set(removed) for name, ids in before.items()}
    assert {id_: corrected[id_] for id_ in relabelled} == {
        id_: ((rows[id_][1] - 1) % 3, rows[id_][1]) for id_ in relabelled
    }
    assert all(corrected[id_] == rows[id_] for id_ in corrected if id_ not in relabelled)
    assert read_rows(split.TEST)[of_test][0] == 0


def test_a_correction_is_reverted_by_deleting_its_line() -> None:
    write_parts(Path())
    ingest.run(make_params())
    before = {path.name: path.read_bytes() for path in ingest.DATASET.iterdir()}
    first, second = table.read_ids(split.TRAIN)[:2]
    of_test = table.read_ids(split.TEST)[0]
    correct(
        f"{first},bolt,washer,reader-1,,",
        f"{second},nut,,reader-2,,",
        f"test/{of_test},{read_rows(split.TEST)[of_test][1]},,reader-1,,",
    )
    ingest.run(make_params())
    assert count_by_class(read_applied(ingest.DATASET)) == {
        "bolt removed (test)": 1,
        "bolt to washer": 1,
        "nut removed": 1,
    }
    assert count_by_person(read_applied(ingest.DATASET)) == {"reader-1": 2, "reader-2": 1}
    assert [(image.id, image.row) for image in read_removed(ingest.DATASET)] == [(second, 1), (of_test, 0)]
    correct()
    ingest.run(make_params())
    assert {path.name: path.read_bytes() for path in ingest.DATASET.iterdir()} == before


def test_the_test_split_is_corrected_only_by_ids_of_the_test_split() -> None:
    write_parts(Path(), GREY)
    images, labels = table.read_images(Path("data/own/parts/test.parquet"))
    add_batch(images[:1], labels[:1])  # a copy of a test image
    ingest.run(make_params())
    copied, other = table.read_ids(split.TEST)[:2]
    given = int(labels[0])
    correct(f"{copied},{given},{(given + 1) % 3},me,,")
    ingest.run(make_params())
    assert read_rows(split.TRAIN)[copied] == ((given + 1) % 3, given)
    assert read_rows(split.TEST)[copied] == (given, given)
    correct(f"test/{copied},{given},{(given + 2) % 3},me,,", f"{copied},{given},{(given + 1) % 3},me,,")
    ingest.run(make_params())
    assert read_rows(split.TRAIN)[copied] == ((given + 1) % 3, given)
    assert read_rows(split.TEST)[copied] == ((given + 2) % 3, given)
    correct(f"{other},{labels[1]},{(labels[1] + 1) % 3},me,,")
    with pytest.raises(DataError, match=rf"of images of the test split[^$]*test/{other}[^$]*write test/ before"):
        ingest.run(make_params())


def test_a_correction_holds_for_copies_in_batches() -> None:
    write_parts(Path(), GREY)
    images, labels = draw_parts(300, 0, GREY)
    add_batch(images[:2], labels[:2])
    ingest.run(make_params())
    first, second = table.read_ids(split.TRAIN)[:2]
    correct(f"{first},bolt,washer,me,,", f"{second},nut,,me,,")
    run_stages()
    rows = read_rows(split.TRAIN)
    assert rows[first] == rows[first.replace("-0", "-1")] == (2, 0)
    assert second not in rows
    assert second.replace("-0", "-1") not in rows
    ids = read_splits()
    assert any({first, first.replace("-0", "-1")} <= ids[name] for name in ("train", "validation"))


def test_corrections_that_do_not_fit_are_refused() -> None:
    write_parts(Path())
    ingest.run(make_params())
    first, second = table.read_ids(split.TRAIN)[:2]
    unknown = f"{'0' * 40}-0"
    for lines, message in (
        ([f"{first},nut,washer,me,,"], r"of another label\n  expected: given: bolt.*\n  found:    'nut'"),
        ([f"{first},bolt,screw,me,,"], "does not name a class"),
        ([f"{first},bolt,nut,me,,", f"{unknown},bolt,nut,me,,"], f"are of no image of parts[^$]*{unknown}"),
        ([f"{first},bolt,nut,me,,", f"{first},bolt,washer,me,,"], "line 3 .* corrects .* again"),
        ([f"{first},bolt"], "line 2 of data/corrections.csv is not a correction"),
        (["first,bolt,nut,me,,"], "line 2 of data/corrections.csv is not a correction"),
    ):
        correct(*lines)
        with pytest.raises(DataError, match=message):
            ingest.run(make_params())
    for content, message in (("", "other columns"), ("id,label\n", "other columns"), ('"', "not a CSV file")):
        CORRECTIONS.write_text(content)
        with pytest.raises(DataError, match=message):
            ingest.run(make_params())
    CORRECTIONS.unlink()
    with pytest.raises(DataError, match=r"corrections\.csv is missing"):
        ingest.run(make_params())
    assert read_rows(split.TRAIN)[second] == (1, 1)


def test_corrections_of_another_dataset_are_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
    write_parts(Path())
    unknown = f"{'0' * 40}-0"
    correct(f"{unknown},bolt,nut,me,,")
    ingest.run(make_params())
    assert "corrections: 0 applied, 1 of no image here" in capsys.readouterr().out
    correct(f"{table.read_ids(split.TRAIN)[0]},bolt,nut,me,,", f"{unknown},Sandal,Sneaker,me,,")
    ingest.run(make_params())
    assert "corrections: 1 applied, 1 of no image here" in capsys.readouterr().out
