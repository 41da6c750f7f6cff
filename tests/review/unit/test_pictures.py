"""Examples beside an image: the nearest ones of its two classes."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from pipeline.data.table import read_images, stream
from pipeline.review.images import TABLES
from pipeline.review.page import Page
from pipeline.review.pictures import EXAMPLES, Picture, encode_png, find_examples, find_pictures
from tests.review.listed import make_checkout


def test_examples_are_the_nearest_of_both_classes_and_not_listed(tmp_path: Path) -> None:
    review = make_checkout(tmp_path, images=400)
    table = tmp_path / TABLES["train"]
    ids = [id_ for rows in stream(table) for id_ in rows.ids.to_pylist()]
    images, labels = read_images(table)
    pixels = images.astype(np.float64).reshape(len(images), -1)
    pictures = find_pictures([item.id for item in review.items], {"train": table})
    examples = find_examples(review.items, pictures, table)
    for row, item in enumerate(review.items):
        distance = ((pixels - pixels[row]) ** 2).sum(1)
        distance[: len(review.items)] = np.inf
        for label in (item.given, item.suggested):
            nearest = np.argsort(np.where(labels == label, distance, np.inf), kind="stable")[:EXAMPLES]
            assert examples[item.id, label] == [ids[place] for place in nearest]


def test_pictures_are_found_in_both_splits(tmp_path: Path) -> None:
    review = make_checkout(tmp_path)
    tables = {split: tmp_path / path for split, path in TABLES.items()}
    (test,) = (rows.ids[3].as_py() for rows in stream(tables["test"]))
    pictures = find_pictures([review.items[0].id, test, "unknown"], tables)
    expected = {review.items[0].id: "train", f"test/{test}": "test"}
    assert {key: picture.split for key, picture in pictures.items()} == expected
    assert (pictures[f"test/{test}"].pixels == read_images(tables["test"])[0][3]).all()


def test_large_pictures_are_reduced_and_keep_their_colours() -> None:
    import io

    from PIL import Image

    pixels = np.zeros((40, 200, 3), np.uint8)
    pixels[..., 0] = 200
    assert (np.asarray(Image.open(io.BytesIO(encode_png(pixels)))) == pixels).all()
    reduced = Image.open(io.BytesIO(encode_png(pixels, 96)))
    assert (reduced.size, reduced.getpixel((5, 5))) == ((96, 19), (200, 0, 0))


def test_a_copy_in_the_other_split_is_an_image_of_its_own(tmp_path: Path) -> None:
    review = make_checkout(tmp_path)
    item = replace(review.items[0], twins=(review.items[0].id,))
    other = replace(item, split="test")
    pixels = np.zeros((28, 28), np.uint8)
    pictures = {item.key: Picture(pixels, item.given, "train"), other.key: Picture(pixels, 9, "test")}
    data = Page(review, [item, other], pictures, {}).describe("reader-1", served=True)
    first, second = data["items"]
    assert [first["id"], second["id"]] == [item.id, f"test/{item.id}"]
    assert [(twin["split"], twin["label"]) for twin in first["twins"]] == [("test", 9)]
    assert [(twin["split"], twin["label"]) for twin in second["twins"]] == [("train", item.given)]
