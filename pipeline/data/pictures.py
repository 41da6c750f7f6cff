"""Images from anywhere, made fit for a model: what it takes is grey, of one size, and bright on black.

Nothing here is for training, which never resizes (`pipeline.data.incoming`).
"""

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.data import idx
from pipeline.data.incoming import IMAGE_SUFFIXES, IMAGES, open_picture
from pipeline.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

BRIGHT = 128  # mean grey value of an image's border from which its background is no black one
FORMATS = f"pictures ({', '.join(IMAGE_SUFFIXES)}), .npz files with `images`, or idx files (*{IMAGES}[.gz])"


@dataclass(frozen=True)
class Picture:
    """An image as the model is given it."""

    name: str  # its file, with the position in a file of many: `images.npz[3]`
    pixels: np.ndarray  # uint8 [height, width]
    notes: tuple[str, ...] = ()  # what was done to it, and what looks wrong


def read_pictures(path: Path, size: tuple[int, int], *, invert: bool) -> list[Picture]:
    """The images of a file.

    Args:
        size: height and width that the model takes. A picture of another size is scaled into it, its proportions kept,
            with black around it. Arrays must have it.
        invert: turn dark into bright, for a picture on a bright background.

    Raises:
        DataError: the file is in no known format, damaged or empty, or its arrays have another size.
    """
    if not path.is_file():
        raise DataError(f"{path} is not a file", expected=FORMATS)
    if path.suffix.lower() in IMAGE_SUFFIXES:
        with open_picture(path) as picture:
            pixels, notes = _fit(picture, size, invert)
        return [Picture(str(path), pixels, (*notes, *_doubts(pixels, invert)))]
    images = _read_arrays(path, size)
    if invert:
        images = 255 - images
    return [Picture(f"{path}[{place}]", pixels, tuple(_doubts(pixels, invert))) for place, pixels in enumerate(images)]


def _fit(picture: "Image", size: tuple[int, int], invert: bool) -> tuple[np.ndarray, list[str]]:
    from PIL import Image, ImageOps

    grey = ImageOps.exif_transpose(picture).convert("L")  # upright, as the camera meant it
    if invert:
        grey = ImageOps.invert(grey)
    height, width = size
    if grey.size == (width, height):
        return np.asarray(grey), []
    note = f"resized from {grey.height} x {grey.width} to {height} x {width}"
    return np.asarray(ImageOps.pad(grey, (width, height), Image.Resampling.LANCZOS, color=0)), [note]


def _read_arrays(path: Path, size: tuple[int, int]) -> np.ndarray:
    if path.suffix == ".npz":
        try:
            with np.load(path, allow_pickle=False) as content:
                images = content["images"]
        except (KeyError, OSError, ValueError, zipfile.BadZipFile) as error:
            raise DataError(f"{path} is damaged, or has no `images`", expected=FORMATS, found=str(error)) from None
    elif path.name.removesuffix(".gz").endswith(IMAGES):
        images = np.concatenate(list(idx.stream(path, 3)))
    else:
        raise DataError(f"{path} is in no known format", expected=FORMATS)
    if images.dtype != np.uint8 or images.ndim != 3 or images.shape[1:] != size or not len(images):
        raise DataError(
            f"{path} does not hold what the model takes",
            expected=f"uint8 [n, {size[0]}, {size[1]}]",
            found=f"{images.dtype} {list(images.shape)}",
            remedy="give it pictures, which are resized",
        )
    return np.asarray(images)


def _doubts(pixels: np.ndarray, inverted: bool) -> list[str]:
    border = np.concatenate([pixels[0], pixels[-1], pixels[1:-1, 0], pixels[1:-1, -1]])
    if border.mean() < BRIGHT:
        return []
    return [f"its background is bright, and the model knows black ones: try it with{'out' * inverted} --invert"]
