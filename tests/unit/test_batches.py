"""Batches of labelled images that a team adds: their formats, what is refused, and where they must be."""

import gzip
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.data import idx
from pipeline.data.batch_formats import read_batch
from pipeline.data.batches import find_batches, require_same_batches
from pipeline.data.table import Dataset
from pipeline.errors import DataError

DATASET = Dataset("shapes", 4, 5, ("T-shirt/top", "Ankle boot", "Bag"), ("티셔츠/탑", "발목 부츠", "가방"), flip=True)
LABELS = np.array([0, 1, 1, 2, 0, 1], np.uint8)


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (6, 4, 5), dtype=np.uint8)


def write_idx(path: Path, images: np.ndarray) -> None:
    path.mkdir()
    idx.write(path / "images-idx3-ubyte", images)
    idx.write(path / "labels-idx1-ubyte", LABELS)


def write_idx_pairs(path: Path, images: np.ndarray) -> None:
    path.mkdir()
    for name, part in (("a-", slice(0, 2)), ("b-", slice(2, 6))):
        idx.write(path / f"{name}images-idx3-ubyte", images[part])
        idx.write(path / f"{name}labels-idx1-ubyte", LABELS[part])
    for name in ("a-images-idx3-ubyte", "b-labels-idx1-ubyte"):
        (path / f"{name}.gz").write_bytes(gzip.compress((path / name).read_bytes()))
        (path / name).unlink()
    (path / ".DS_Store").write_bytes(b"?")


def write_npz(path: Path, images: np.ndarray) -> None:
    np.savez_compressed(path, images=images, labels=LABELS.astype(np.int64))


def write_folders(path: Path, images: np.ndarray) -> None:
    for number, (image, label) in enumerate(zip(images, LABELS, strict=True)):
        folder = path / ["T-shirt top", unicodedata.normalize("NFD", "발목 부츠"), "2"][label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{number}.PNG")
    (path / "2" / ".DS_Store").write_bytes(b"?")


FORMATS = [("b", write_idx), ("b", write_idx_pairs), ("b.npz", write_npz), ("b", write_folders)]


def read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    chunks = list(read_batch(path, DATASET))
    return np.concatenate([images for images, _ in chunks]), np.concatenate([labels for _, labels in chunks])


def refusal(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        list(read_batch(path, DATASET))
    assert str(caught.value).startswith(f"batch {path.name} is refused: ")
    assert caught.value.remedy == f"correct {path}"
    return str(caught.value)


@pytest.mark.parametrize(("name", "write"), FORMATS)
def test_every_format_gives_the_same_images(
    tmp_path: Path, images: np.ndarray, name: str, write: Callable[[Path, np.ndarray], None]
) -> None:
    write(tmp_path / name, images)
    found, labels = read(tmp_path / name)
    assert (found.dtype, labels.dtype) == (np.uint8, np.uint16)
    order = [3, 0, 4, 1, 2, 5] if write is write_folders else list(range(6))  # by the folders' names, then the files'
    assert (found == images[order]).all()
    assert (labels == LABELS[order]).all()


def test_a_batch_that_is_in_place_already_can_be_taken_out(in_directory: Path) -> None:
    path = in_directory / "data/incoming/b.txt"
    path.parent.mkdir(parents=True)
    path.touch()
    with pytest.raises(DataError, match="b.txt is refused") as caught:
        list(read_batch(Path("data/incoming/b.txt"), DATASET))
    assert "dvc remove data/incoming/b.txt.dvc" in caught.value.remedy


@pytest.mark.parametrize("count", [idx.CHUNK_ROWS - 1, idx.CHUNK_ROWS + 1])
def test_a_long_npz_comes_in_chunks(tmp_path: Path, count: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (count, 4, 5), dtype=np.uint8)
    np.savez(tmp_path / "b.npz", images=images, labels=np.arange(count) % 3)
    chunks = list(read_batch(tmp_path / "b.npz", DATASET))
    assert len(chunks) == 1 + (count > idx.CHUNK_ROWS)
    assert (np.concatenate([images for images, _ in chunks]) == images).all()


def write_named(path: Path, *folders: str) -> None:
    """A batch with a picture in each folder, the first as bright as 0, the second 1, and so on."""
    for number, folder in enumerate(folders):
        (path / folder).mkdir(parents=True)
        Image.new("L", (5, 4), number).save(path / folder / "x.png")


PARTS = ("M1.5", "M15", "C", "C++", "볼트", "bolt, long", "a", "A", "Nut.M2", "nut m2", "Nut-M2")


def test_an_exact_name_wins(tmp_path: Path) -> None:
    write_named(tmp_path / "b", *PARTS[:7], "7", *PARTS[8:])  # a folder `A` beside `a` cannot be everywhere
    parts = Dataset("parts", 4, 5, PARTS, PARTS, flip=False)
    ((images, labels),) = read_batch(tmp_path / "b", parts)
    assert images[:, 0, 0].tolist() == labels.tolist()
    assert sorted(labels) == list(range(len(PARTS)))


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (["M1 5"], "M1 5 does not have the name of a class"),
        (["c#"], "c# does not have the name of a class"),
        (["++"], "[+][+] does not have the name of a class"),
        (["NUT M2"], "(?s)NUT M2 may mean more than one class.*found: +9 nut m2 or 10 Nut-M2"),
        (["c++", "C++"], "b/C[+][+] and .*b/c[+][+] match the same class, C[+][+]"),
        (["BOLT,long", "Bolt,_Long"], "match the same class, bolt, long"),
    ],
)
def test_a_name_that_may_be_of_another_class_is_refused(tmp_path: Path, folders: list[str], message: str) -> None:
    write_named(tmp_path / "b", *folders)
    with pytest.raises(DataError, match=message):
        list(read_batch(tmp_path / "b", Dataset("parts", 4, 5, PARTS, PARTS, flip=False)))


def test_a_number_is_a_name_where_classes_are_named_by_other_numbers(tmp_path: Path) -> None:
    dataset = Dataset("sizes", 4, 5, ("1", "2", "3"), ("하나", "둘", "셋"), flip=False)
    write_named(tmp_path / "b", "1", "3", "둘")
    assert [labels.tolist() for _, labels in read_batch(tmp_path / "b", dataset)] == [[0, 2, 1]]
    write_named(tmp_path / "b", "0")
    with pytest.raises(DataError, match="b/0 does not have the name of a class"):
        list(read_batch(tmp_path / "b", dataset))
    digits = Dataset("digits", 4, 5, tuple("0123"), ("영", "일", "이", "삼"), flip=False)
    write_named(tmp_path / "c", "-1")
    with pytest.raises(DataError, match="c/-1 does not have the name of a class"):
        list(read_batch(tmp_path / "c", digits))


def test_a_number_in_arrays_is_a_label_even_if_another_class_has_this_name(tmp_path: Path, images: np.ndarray) -> None:
    dataset = Dataset("digits", 4, 5, ("1", "0", "2"), (), flip=False)
    np.savez(tmp_path / "ours.npz", images=images, labels=LABELS)
    np.savez(tmp_path / "keras.npz", x_train=images, y_train=LABELS)
    (tmp_path / "npy").mkdir()
    np.save(tmp_path / "npy/images.npy", images)
    np.save(tmp_path / "npy/labels.npy", LABELS)
    for name in ("ours.npz", "keras.npz", "npy"):
        assert [labels.tolist() for _, labels in read_batch(tmp_path / name, dataset)] == [LABELS.tolist()]
    np.savez(tmp_path / "keras.npz", x_train=images, y_train=LABELS + 1)
    with pytest.raises(DataError, match=r"labels out of range(?s:.*)0 to 2(?s:.*)3"):
        list(read_batch(tmp_path / "keras.npz", dataset))


@pytest.mark.parametrize("place", [".meta", "Bag/.thumb", "Bag/y.png", "Bag/.again", ".git/deep"])
def test_a_batch_with_a_link_is_refused_by_name(tmp_path: Path, place: str) -> None:
    write_named(tmp_path / "b", "Bag")
    (tmp_path / "b" / place).parent.mkdir(exist_ok=True)
    (tmp_path / "b" / place).symlink_to("." if "again" in place else tmp_path / "outside")
    (tmp_path / "outside").touch()
    assert f"b/{place} is a link\n  expected: regular files only" in refusal(tmp_path / "b")
    (tmp_path / "c").symlink_to("b")
    assert "c is a link" in refusal(tmp_path / "c")


def test_a_folder_that_is_named_like_a_picture_is_refused(tmp_path: Path) -> None:
    (tmp_path / "b/Bag/x.png").mkdir(parents=True)
    assert "Bag/x.png is not a picture" in refusal(tmp_path / "b")


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_coloured_pictures_become_grey(tmp_path: Path, suffix: str) -> None:
    (tmp_path / "b/Bag").mkdir(parents=True)
    Image.new("RGB", (5, 4), (200, 200, 200)).save(tmp_path / f"b/Bag/x.{suffix}")
    images, labels = read(tmp_path / "b")
    assert images.shape == (1, 4, 5)
    assert np.abs(images.astype(int) - 200).max() <= 1
    assert labels.tolist() == [2]


def test_pictures_of_another_size_are_refused(tmp_path: Path) -> None:
    (tmp_path / "b/Bag").mkdir(parents=True)
    Image.new("L", (4, 5)).save(tmp_path / "b/Bag/x.png")
    assert "Bag/x.png has images of another size\n  expected: 4 x 5 pixels" in refusal(tmp_path / "b")
    assert "found:    5 x 4" in refusal(tmp_path / "b")


def test_a_damaged_picture_is_named(tmp_path: Path, images: np.ndarray) -> None:
    write_folders(tmp_path / "b", images)
    picture = tmp_path / "b/2/3.PNG"
    picture.write_bytes(picture.read_bytes()[:60])
    assert "2/3.PNG is damaged" in refusal(tmp_path / "b")
    picture.write_bytes(b"GIF89a")
    assert "2/3.PNG is damaged" in refusal(tmp_path / "b")


def test_what_no_format_has_is_refused(tmp_path: Path, images: np.ndarray) -> None:
    write_folders(tmp_path / "b", images)
    (tmp_path / "b/2/notes.txt").write_text("?")
    assert "notes.txt is not a picture" in refusal(tmp_path / "b")
    (tmp_path / "b/2/notes.txt").rename(tmp_path / "b/notes.txt")
    assert "b holds both files and folders" in refusal(tmp_path / "b")
    (tmp_path / "b/notes.txt").unlink()
    (tmp_path / "b/2").rename(tmp_path / "b/3")
    assert "b/3 does not have the name of a class" in refusal(tmp_path / "b")
    (tmp_path / "notes.txt").write_text("?")
    assert "has an unknown format" in refusal(tmp_path / "notes.txt")
    assert "does not exist" in refusal(tmp_path / "none")


def test_idx_files_without_partners_are_refused(tmp_path: Path, images: np.ndarray) -> None:
    write_idx_pairs(tmp_path / "b", images)
    (tmp_path / "b/a-labels-idx1-ubyte").unlink()
    assert "a-images-idx3-ubyte.gz belongs to no pair" in refusal(tmp_path / "b")
    (tmp_path / "b/a-images-idx3-ubyte.gz").unlink()
    (tmp_path / "b/c-labels-idx1-ubyte").write_bytes(b"?")
    assert "c-labels-idx1-ubyte belongs to no pair" in refusal(tmp_path / "b")


def test_the_same_idx_file_twice_is_refused(tmp_path: Path, images: np.ndarray) -> None:
    write_idx(tmp_path / "b", images)
    content = (tmp_path / "b/images-idx3-ubyte").read_bytes()
    (tmp_path / "b/images-idx3-ubyte.gz").write_bytes(gzip.compress(content))
    assert "exists twice" in refusal(tmp_path / "b")


def test_labels_out_of_range_are_refused_in_every_format(tmp_path: Path, images: np.ndarray) -> None:
    write_idx(tmp_path / "b", images)
    idx.write(tmp_path / "b/labels-idx1-ubyte", LABELS + 1)
    assert "labels out of range\n  expected: 0 to 2\n  found:    3 at position 3" in refusal(tmp_path / "b")
    np.savez(tmp_path / "b.npz", images=images, labels=LABELS.astype(int) - 1)
    assert "labels out of range\n  expected: 0 to 2\n  found:    -1 at position 0" in refusal(tmp_path / "b.npz")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"labels": LABELS}, "lacks images.npy"),
        ({"images": np.zeros((6, 4, 5), np.float32), "labels": LABELS}, "found:    images float32 [6, 4, 5]"),
        ({"images": np.zeros((6, 20), np.uint8), "labels": LABELS}, "found:    images uint8 [6, 20]"),
        ({"images": np.zeros((6, 4, 5), np.uint8, "F"), "labels": LABELS}, "in Fortran order"),
        ({"images": np.zeros((6, 4, 5), np.uint8), "labels": LABELS / 2}, "labels float64 [6]"),
        ({"images": np.zeros((6, 4, 5), np.uint8), "labels": LABELS[:5]}, "found:    6 images, 5 labels"),
        ({"images": np.zeros((6, 5, 4), np.uint8), "labels": LABELS}, "found:    5 x 4"),
        ({"images": np.zeros((0, 4, 5), np.uint8), "labels": LABELS[:0]}, "holds no images"),
        ({"images": np.array([None]), "labels": LABELS}, "images object [1]"),
        ({"images": np.zeros((6, 4, 5), np.uint8), "labels": np.array([None])}, "labels object [1]"),
        ({"images": np.zeros((6, 4, 5), np.uint8), "labels": np.array(6)}, "labels int64 []"),
    ],
)
def test_npz_files_with_anything_else_are_refused(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    np.savez(tmp_path / "b.npz", **arrays)
    assert message in refusal(tmp_path / "b.npz")


@pytest.mark.parametrize("kept", [10, 300, -30])
def test_a_truncated_npz_is_refused(tmp_path: Path, images: np.ndarray, kept: int) -> None:
    write_npz(tmp_path / "b.npz", images)
    (tmp_path / "b.npz").write_bytes((tmp_path / "b.npz").read_bytes()[:kept])
    assert "b.npz is damaged" in refusal(tmp_path / "b.npz")


def test_an_npz_with_a_flipped_byte_is_refused(tmp_path: Path, images: np.ndarray) -> None:
    np.savez(tmp_path / "b.npz", images=images, labels=LABELS)
    content = bytearray((tmp_path / "b.npz").read_bytes())
    content[content.index(images.tobytes()) + 20] ^= 1
    (tmp_path / "b.npz").write_bytes(content)
    assert "b.npz is damaged" in refusal(tmp_path / "b.npz")


def test_empty_batches_and_the_official_name_are_refused(tmp_path: Path, images: np.ndarray) -> None:
    (tmp_path / "b").mkdir()
    assert "holds no images" in refusal(tmp_path / "b")
    (tmp_path / "b/Bag").mkdir()
    assert "holds no images" in refusal(tmp_path / "b")
    write_idx(tmp_path / "official", images)
    assert "official marks the dataset's own images" in refusal(tmp_path / "official")


def add(directory: Path, name: str, content: str, *, pointer: str | None = None) -> None:
    """A batch, as far as its place is concerned, and its pointer."""
    (directory / name).mkdir(parents=True, exist_ok=True)
    (directory / name / "x").write_text(content)
    (directory / f"{name}.dvc").write_text(pointer or f"outs: {content}")


def test_batches_are_found_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in ("b", "a", "10", "9"):
        add(tmp_path, name, name)
    for name in (".gitignore", ".gitkeep", ".hidden"):
        (tmp_path / name).write_text("")
    assert [path.name for path in find_batches(tmp_path)] == ["10", "9", "a", "b"]
    assert find_batches(tmp_path / "none") == []


def test_a_batch_without_a_pointer_and_a_pointer_without_a_batch_are_errors(tmp_path: Path) -> None:
    add(tmp_path, "a", "1")
    add(tmp_path, "b", "2")
    (tmp_path / "b.dvc").unlink()
    with pytest.raises(DataError, match=rf"batch b has no pointer(?s:.)*(pipeline add-data|dvc add) {tmp_path}/b"):
        find_batches(tmp_path)
    (tmp_path / "b/x").unlink()
    (tmp_path / "b").rmdir()
    (tmp_path / "b.dvc").write_text("outs: 2")
    with pytest.raises(DataError, match=rf"batch b is missing(?s:.)*dvc checkout {tmp_path}/b\.dvc"):
        find_batches(tmp_path)


@pytest.fixture
def here(tmp_path: Path) -> Path:
    for name in ("a", "b"):
        add(tmp_path / "here", name, name)
        add(tmp_path / "main", name, name)
    return tmp_path / "here"


@pytest.fixture
def main(here: Path) -> Path:
    return here.parent / "main"


def test_equal_batches_are_the_same(here: Path, main: Path) -> None:
    require_same_batches(here, main)
    require_same_batches(main, main)
    add(here, "c", "only in the worktree")
    require_same_batches(here, main)


def test_content_that_is_not_checked_out_is_known_by_its_pointer(here: Path, main: Path) -> None:
    for directory in (here, main):
        (directory / "a/x").unlink()
        (directory / "a").rmdir()
        require_same_batches(here, main)


def test_an_edit_that_dvc_took_along_is_the_same(here: Path, main: Path) -> None:
    """`dvc exp run --temp` adds an edited batch in the copy, where its pointer then differs."""
    add(here, "b", "edited")
    (main / "b/x").write_text("edited")
    require_same_batches(here, main)


def test_a_batch_that_was_never_added_is_missed(here: Path, main: Path) -> None:
    add(main, "c", "new")
    (main / "c.dvc").unlink()
    with pytest.raises(DataError, match=rf"batch c as the main(?s:.)*(pipeline add-data|dvc add) {main}/c"):
        require_same_batches(here, main)


def test_a_batch_whose_pointer_is_not_committed_is_missed(here: Path, main: Path) -> None:
    add(main, "c", "new")
    with pytest.raises(DataError, match=rf"batch c as the main(?s:.)*git add {main}/c\.dvc"):
        require_same_batches(here, main)


@pytest.mark.parametrize("edit", ["b/x", "b/y"])
def test_an_edit_that_was_not_added_is_missed(here: Path, main: Path, edit: str) -> None:
    (main / edit).write_text("edited")
    with pytest.raises(DataError, match=rf"batch b as the main(?s:.)*dvc add {main}/b"):
        require_same_batches(here, main)


def test_an_edit_whose_pointer_is_not_committed_is_missed(here: Path, main: Path) -> None:
    add(main, "b", "edited")
    with pytest.raises(DataError, match=rf"batch b as the main(?s:.)*commit {main}/b\.dvc"):
        require_same_batches(here, main)
