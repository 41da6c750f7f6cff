"""The decisions of an import: size, copies, near duplicates, groups and the test split."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.data.imports.decoding import Measured, measure
from pipeline.data.imports.near_duplicates import LARGEST_GROUP, find_near_duplicates
from pipeline.data.imports.selection import choose_test_split, find_copies, name_groups, require_classes
from pipeline.data.imports.size import choose_size, parse_size
from pipeline.data.imports.survey import Options, survey
from pipeline.data.sources.recognise import Reading
from pipeline.errors import DataError

CLASSES = ("cat", "dog")
RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("sizes", "chosen"),
    [
        ({(40, 24): 9}, (40, 24)),
        ({(128, 128): 2}, (128, 128)),
        ({(2000, 3000): 5}, (44, 64)),
        ({(224, 224): 5}, (64, 64)),
        ({(2000, 3000): 5, (3000, 2000): 2}, (64, 64)),
        ({(24, 24): 5, (80, 80): 5, (52, 52): 1}, (52, 52)),
        ({(4, 900): 1}, (8, 64)),
    ],
)
def test_the_size_is_the_pictures_own_or_near_their_median(
    sizes: dict[tuple[int, int], int], chosen: tuple[int, int]
) -> None:
    assert choose_size(Counter(sizes)) == chosen


def test_sizes_are_written_as_one_number_or_two() -> None:
    assert (parse_size("64"), parse_size("40x24")) == ((64, 64), (40, 24))
    for text in ("", "7", "513", "64x", "a", "-8", "1x1x1"):
        with pytest.raises(DataError, match="--size"):
            parse_size(text)


def digests(count: int) -> np.ndarray:
    return np.array([f"{number:040x}" for number in RNG.permutation(10 * count)[:count]], "S40")


def test_one_of_each_set_of_copies_is_kept_and_test_pictures_have_priority() -> None:
    found = np.array([b"a", b"a", b"b", b"b", b"b", b"c", b"c", b"d"], "S40")
    labels = np.array([0, 0, 1, 1, 1, 0, 1, 0], np.uint16)
    is_test = np.array([0, 0, 0, 1, 1, 0, 0, 0], bool)
    copies = find_copies(found, labels, is_test)
    assert copies.is_kept.tolist() == [True, False, False, True, True, False, False, True]
    assert (copies.repeated, copies.repeated_tests, copies.contradictions) == (1, 1, [[5, 6]])


def compare(pictures: np.ndarray) -> tuple[list[int], int]:
    """Group of each picture, and pairs that were left apart."""
    flat = pictures.astype(np.float32)
    means = flat.reshape(len(flat), 8, 2, 8, 2).mean(axis=(2, 4)).reshape(len(flat), -1)
    rows = np.arange(len(flat))
    found = find_near_duplicates(pictures, rows, means, flat.reshape(len(flat), -1).std(axis=1))
    return found.group.tolist(), found.left_apart


def test_pictures_that_differ_by_noise_are_near_duplicates_and_others_are_not() -> None:
    bases = RNG.integers(0, 256, (20, 16, 16))
    shots = [(base + RNG.integers(-4, 5, base.shape)).clip(0, 255).astype(np.uint8) for base in bases for _ in range(5)]
    group, left_apart = compare(np.stack(shots))
    assert group == [5 * (row // 5) for row in range(100)]
    assert left_apart == 0


def test_faint_pictures_are_not_near_duplicates_of_each_other() -> None:
    faint = 100 + RNG.integers(0, 5, (50, 16, 16))
    group, _ = compare(faint.astype(np.uint8))
    assert group == list(range(50))


def test_a_chain_of_near_duplicates_does_not_become_one_group() -> None:
    """Such as the frames of a film, of which the first and the last have nothing in common."""
    first, last = RNG.integers(0, 256, (2, 16, 16))
    share = np.linspace(0, 1, 2 * LARGEST_GROUP + 50)[:, None, None]
    group, left_apart = compare(((1 - share) * first + share * last).round().astype(np.uint8))
    assert max(Counter(group).values()) <= LARGEST_GROUP
    assert len(set(group)) < 20
    assert left_apart > 0


def test_groups_of_the_column_are_joined_by_near_duplicates() -> None:
    found = digests(6)
    near = np.array([0, 1, 1, 3, 4, 4])
    assert name_groups(None, np.arange(6), found) is None
    names = name_groups(["b", "b", "a", "", "", ""], near, found)
    assert names is not None
    assert names[:4] == ["a", "a", "a", ""]
    assert names[4] == names[5] == f"near-{min(found[4:]).decode()[:12]}"


def test_a_group_is_on_one_side_of_the_test_split_that_the_collection_has(tmp_path: Path) -> None:
    pictures = np.random.default_rng(0).integers(0, 250, (24, 8, 8), dtype=np.uint8)
    pictures[1], pictures[3] = pictures[0] + 1, pictures[0] + 2
    serials = ["a", "b", *map(str, range(2, 24))]
    rows = []
    for row, picture in enumerate(pictures):
        Image.fromarray(picture).save(tmp_path / f"{row}.png")
        rows.append(f"{row}.png,{'cat' if row % 4 < 2 else 'dog'},{'test' if row % 2 else 'train'},{serials[row]}")
    table = tmp_path / "table.csv"
    for group in (None, "serial"):
        table.write_text("\n".join(["path,label,split,serial", *rows, ""]))
        (scratch := tmp_path / f"scratch-{group}").mkdir()
        found = survey(table, Options(Reading(group=group)), scratch, lambda *_: lambda _: None)
        sides = found.groups and {(name, bool(side)) for name, side in zip(found.groups, found.is_test, strict=True)}
        assert sides
        assert len({name for name, _ in sides if name}) == len([name for name, _ in sides if name])
        assert found.near_tests == 1
    table.write_text(table.read_text().replace(",b\n", ",a\n"))
    with pytest.raises(DataError, match=r"1 groups have training and test pictures(?s:.*)found: +a"):
        survey(table, Options(Reading(group="serial")), scratch, lambda *_: lambda _: None)


def test_the_background_of_arrays_in_colour_becomes_grey_with_the_pictures(tmp_path: Path) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), dtype=np.uint8)
    pictures[:, [0, -1]] = pictures[:, :, [0, -1]] = (200, 10, 10)
    np.savez(tmp_path / "a.npz", images=pictures, labels=np.arange(20) % 2)
    options = Options(color="grey", size="8x16")
    found = survey(tmp_path / "a.npz", options, tmp_path, lambda *_: lambda _: None)
    assert found.form.ground == (67,)
    assert (found.pictures.pixels[:, :, 0] == 67).all()


@pytest.mark.parametrize("groups", [None, [f"g{row // 4}" for row in range(400)]])
def test_the_chosen_test_split_is_stratified_and_depends_on_pictures_and_groups_alone(groups: list[str] | None) -> None:
    found, labels = digests(400), np.repeat([0, 1], [300, 100]).astype(np.uint16)
    is_test = choose_test_split(found, labels, groups, CLASSES, 0.15)
    assert np.abs(np.bincount(labels[is_test]) - [45, 15]).max() <= 2
    order = RNG.permutation(400)
    shuffled = None if groups is None else [groups[row] for row in order]
    assert (choose_test_split(found[order], labels[order], shuffled, CLASSES, 0.15) == is_test[order]).all()
    if groups:
        assert all(len({bool(is_test[row]) for row in range(first, first + 4)}) == 1 for first in range(0, 400, 4))
    require_classes(labels, is_test, CLASSES)


def test_more_pictures_move_few_others() -> None:
    found, labels = digests(1000), np.zeros(1000, np.uint16)
    labels[::2] = 1
    before = choose_test_split(found[:900], labels[:900], None, CLASSES, 0.15)
    after = choose_test_split(found, labels, None, CLASSES, 0.15)[:900]
    assert (before != after).sum() < 30


def test_a_class_needs_pictures_on_both_sides() -> None:
    labels = np.array([0, 0, 0, 1], np.uint16)
    with pytest.raises(DataError, match="the class dog has too few pictures"):
        choose_test_split(digests(4), labels, None, CLASSES, 0.15)
    with pytest.raises(DataError, match="no test pictures of the classes dog"):
        require_classes(labels, np.array([1, 0, 0, 0], bool), CLASSES)


def test_measurements_do_not_depend_on_the_number_of_processes(tmp_path: object) -> None:
    empty = measure(np.empty((0, 8, 8), np.uint8), lambda count: None)
    assert isinstance(empty, Measured)
    assert len(empty.digests) == 0
