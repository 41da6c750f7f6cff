"""Images from anywhere, made fit for a model."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.data import idx
from pipeline.data.pictures import read_pictures
from pipeline.errors import DataError

SIZE = (4, 5)  # height, width
PIXELS = np.zeros(SIZE, np.uint8)
PIXELS[1:3, 1:4] = 200


def test_a_picture_of_the_models_size_is_taken_as_it_is(tmp_path: Path) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    (picture,) = read_pictures(tmp_path / "a.png", SIZE, invert=False)
    assert (picture.pixels == PIXELS).all()
    assert picture.notes == ()


def test_a_larger_one_keeps_its_proportions_and_gets_black_around_it(tmp_path: Path) -> None:
    Image.new("RGB", (10, 40), (200, 200, 200)).save(tmp_path / "tall.jpg")
    (picture,) = read_pictures(tmp_path / "tall.jpg", SIZE, invert=False)
    assert picture.pixels.shape == SIZE
    assert (picture.pixels[:, 2] > 190).all()  # 4 high, 1 wide, in the middle
    assert not picture.pixels[:, [0, 1, 3, 4]].any()
    assert picture.notes == ("resized from 40 x 10 to 4 x 5",)


def test_the_surroundings_are_black_also_when_inverted(tmp_path: Path) -> None:
    Image.new("L", (10, 40), 55).save(tmp_path / "dark.png")
    (picture,) = read_pictures(tmp_path / "dark.png", SIZE, invert=True)
    assert (picture.pixels[:, 2] == 200).all()
    assert not picture.pixels[:, 0].any()


def test_a_photograph_is_turned_as_its_camera_says(tmp_path: Path) -> None:
    photograph = Image.fromarray(np.rot90(PIXELS))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    photograph.save(tmp_path / "a.png", exif=exif)
    (picture,) = read_pictures(tmp_path / "a.png", SIZE, invert=False)
    assert (picture.pixels == PIXELS).all()


@pytest.mark.parametrize(("pixels", "invert", "advice"), [(255 - PIXELS, False, "with"), (PIXELS, True, "without")])
def test_a_bright_background_is_doubted(tmp_path: Path, pixels: np.ndarray, invert: bool, advice: str) -> None:
    Image.fromarray(pixels).save(tmp_path / "a.png")
    (picture,) = read_pictures(tmp_path / "a.png", SIZE, invert=invert)
    assert picture.notes == (f"its background is bright, and the model knows black ones: try it {advice} --invert",)


def test_arrays_are_read_from_npz_and_idx(tmp_path: Path) -> None:
    images = np.stack([PIXELS, 255 - PIXELS, PIXELS // 2])
    np.savez(tmp_path / "a.npz", images=images)
    idx.write(tmp_path / "t10k-images-idx3-ubyte", images)
    for name in ("a.npz", "t10k-images-idx3-ubyte"):
        pictures = read_pictures(tmp_path / name, SIZE, invert=False)
        assert (np.stack([picture.pixels for picture in pictures]) == images).all()
        assert pictures[2].name == f"{tmp_path / name}[2]"


def test_what_is_no_image_is_refused_by_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "size.npz", images=np.zeros((2, 3, 3), np.uint8))
    np.savez(tmp_path / "other.npz", labels=np.zeros(2))
    (tmp_path / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (tmp_path / "a.txt").touch()
    for name in ("size.npz", "other.npz", "cut.png", "a.txt", "missing.png"):
        with pytest.raises(DataError, match=name):
            read_pictures(tmp_path / name, SIZE, invert=False)
