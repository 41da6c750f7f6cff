"""Images from anywhere, made fit for a model."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.data import idx
from pipeline.data.image_background import measure_ground
from pipeline.data.prediction_input import read_pictures
from pipeline.errors import DataError

SIZE = (4, 5)  # height, width
PIXELS = np.zeros(SIZE, np.uint8)
PIXELS[1:3, 1:4] = 200


def test_a_picture_of_the_models_size_is_taken_as_it_is(tmp_path: Path) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    (picture,) = read_pictures(tmp_path / "a.png", SIZE, invert=False, background=0)
    assert (picture.pixels == PIXELS).all()
    assert picture.notes == ()


def test_a_larger_one_keeps_its_proportions_and_gets_black_around_it(tmp_path: Path) -> None:
    Image.new("RGB", (10, 40), (200, 200, 200)).save(tmp_path / "tall.jpg")
    (picture,) = read_pictures(tmp_path / "tall.jpg", SIZE, invert=False, background=0)
    assert picture.pixels.shape == SIZE
    assert (picture.pixels[:, 2] > 190).all()  # 4 high, 1 wide, in the middle
    assert not picture.pixels[:, [0, 1, 3, 4]].any()
    assert picture.notes[0] == "resized from 40 x 10 to 4 x 5"
    assert picture.notes[1].startswith("its background has grey value 200")


def test_the_surroundings_are_black_also_when_inverted(tmp_path: Path) -> None:
    Image.new("L", (10, 40), 55).save(tmp_path / "dark.png")
    (picture,) = read_pictures(tmp_path / "dark.png", SIZE, invert=True, background=0)
    assert (picture.pixels[:, 2] == 200).all()
    assert not picture.pixels[:, 0].any()


def test_a_photograph_is_turned_as_its_camera_says(tmp_path: Path) -> None:
    photograph = Image.fromarray(np.rot90(PIXELS))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    photograph.save(tmp_path / "a.png", exif=exif)
    (picture,) = read_pictures(tmp_path / "a.png", SIZE, invert=False, background=0)
    assert (picture.pixels == PIXELS).all()


@pytest.mark.parametrize("background", [0, 245])
def test_a_picture_is_padded_with_the_background_of_the_training_images(tmp_path: Path, background: int) -> None:
    Image.new("RGB", (10, 40), (120, 120, 120)).save(tmp_path / "tall.png")
    for invert in (False, True):
        (picture,) = read_pictures(tmp_path / "tall.png", SIZE, invert=invert, background=background)
        assert (picture.pixels[:, [0, 1, 3, 4]] == background).all()
        assert abs(int(picture.pixels[0, 2]) - (135 if invert else 120)) <= 1
        assert picture.notes[0] == "resized from 40 x 10 to 4 x 5"


def test_an_unknown_background_is_padded_with_black_and_noted(tmp_path: Path) -> None:
    for name, size in (("tall", (10, 40)), ("whole", (10, 8)), ("fits", (5, 4))):
        Image.new("L", size, 250).save(tmp_path / f"{name}.png")
    notes = {
        name: read_pictures(tmp_path / f"{name}.png", SIZE, invert=False, background=None)[0].notes
        for name in ("tall", "whole", "fits")
    }
    unknown = "padded with black: the background of the training images is unknown"
    assert notes == {
        "tall": ("resized from 40 x 10 to 4 x 5", unknown),
        "whole": ("resized from 8 x 10 to 4 x 5",),
        "fits": (),
    }


@pytest.mark.parametrize(
    ("pixels", "background", "invert", "advice"),
    [
        (255 - PIXELS, 0, False, "with --invert"),
        (PIXELS, 0, True, "without --invert"),
        (PIXELS, 245, False, "with --invert"),
        (255 - PIXELS, 245, True, "without --invert"),
        (PIXELS, 0, False, None),
        (255 - PIXELS, 245, False, None),
        (PIXELS + 120, 128, False, None),
        (np.full(SIZE, 160, np.uint8), 110, False, None),
    ],
)
def test_a_different_background_is_warned_about(
    tmp_path: Path, pixels: np.ndarray, background: int, invert: bool, advice: str | None
) -> None:
    Image.fromarray(pixels).save(tmp_path / "a.png")
    np.savez(tmp_path / "a.npz", images=pixels[None])
    for name in ("a.png", "a.npz"):
        (picture,) = read_pictures(tmp_path / name, SIZE, invert=invert, background=background)
        assert len(picture.notes) == (advice is not None)
        ending = f"that of the training images {background}: try it {advice}"
        assert all(note.endswith(ending) for note in picture.notes)


def test_the_background_is_the_median_of_the_borders() -> None:
    images = np.stack([PIXELS, PIXELS, np.full(SIZE, 90, np.uint8)])
    assert measure_ground(images) == 0
    assert measure_ground(255 - images) == 255


def test_arrays_are_read_from_npz_and_idx(tmp_path: Path) -> None:
    images = np.stack([PIXELS, 255 - PIXELS, PIXELS // 2])
    np.savez(tmp_path / "a.npz", images=images)
    idx.write(tmp_path / "t10k-images-idx3-ubyte", images)
    for name in ("a.npz", "t10k-images-idx3-ubyte"):
        pictures = read_pictures(tmp_path / name, SIZE, invert=False, background=0)
        assert (np.stack([picture.pixels for picture in pictures]) == images).all()
        assert pictures[2].name == f"{tmp_path / name}[2]"


def test_what_is_no_image_is_refused_by_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "size.npz", images=np.zeros((2, 3, 3), np.uint8))
    np.savez(tmp_path / "other.npz", labels=np.zeros(2))
    (tmp_path / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (tmp_path / "a.txt").touch()
    for name in ("size.npz", "other.npz", "cut.png", "a.txt", "missing.png"):
        with pytest.raises(DataError, match=name):
            read_pictures(tmp_path / name, SIZE, invert=False, background=0)


def test_a_model_in_colour_gets_colours_on_its_own_background(tmp_path: Path) -> None:
    Image.new("RGB", (10, 40), (200, 60, 20)).save(tmp_path / "tall.png")
    Image.new("L", (5, 4), 90).save(tmp_path / "grey.png")
    Image.new("RGBA", (5, 4), (1, 2, 3, 0)).save(tmp_path / "through.webp", lossless=True)
    background = (10, 120, 30)
    tall, grey, through = (
        read_pictures(tmp_path / name, (*SIZE, 3), invert=False, background=background)[0].pixels
        for name in ("tall.png", "grey.png", "through.webp")
    )
    assert (tall[:, [0, 1, 3, 4]] == background).all()
    assert np.abs(tall[:, 2].astype(int) - (200, 60, 20)).max() <= 1
    assert (grey == 90).all()
    assert grey.shape == (*SIZE, 3)
    assert (through == background).all()
    (cropped,) = read_pictures(tmp_path / "tall.png", (*SIZE, 3), invert=True, background=background, resizing="crop")
    assert np.abs(cropped.pixels.astype(int) - (55, 195, 235)).max() <= 1
