"""Pictures for prediction: read, inverted, and resized to the size and on the background of the training images.

Training images are never resized (`pipeline.data.batches`).
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.data import idx
from pipeline.data.batch_formats import IMAGES
from pipeline.data.decoders import IMAGE_SUFFIXES, open_npz, read_grey
from pipeline.data.image_background import border_pixels
from pipeline.errors import DataError

BLACK = 0
MIN_DIFFERENCE = 64  # grey values between two different backgrounds
MOST_BYTES = 2**26  # limit for the pixels in a file of arrays
FORMATS = f"pictures ({', '.join(IMAGE_SUFFIXES)}), .npz files with `images`, or idx files (*{IMAGES}[.gz])"


@dataclass(frozen=True)
class Picture:
    """An image in the form that the model takes."""

    name: str  # its file, with the position in a file of arrays: `images.npz[3]`
    pixels: np.ndarray  # uint8 [height, width]
    notes: tuple[str, ...] = ()  # changes and warnings


def read_pictures(path: Path, size: tuple[int, int], *, invert: bool, background: int | None) -> list[Picture]:
    """Read the images of a file.

    Args:
        size: height and width that the model takes. A picture of another size is scaled, with its proportions kept, and
            padded with the background. Arrays must have this size.
        invert: swap dark and bright, for a picture with a dark background if the model's is bright, or the reverse.
        background: grey value of the background of the training images; None if unknown.

    Raises:
        DataError: the file has an unknown format, is damaged, empty or too large, or its arrays have another size.
    """
    if not path.is_file():
        raise DataError(f"{path} is not a file", expected=FORMATS)
    if path.suffix.lower() in IMAGE_SUFFIXES:
        grey = read_grey(path)
        grey = 255 - grey if invert else grey
        pixels, notes = _fit(grey, size, background)
        return [
            Picture(str(path), pixels, (*notes, *_check_background(grey, invert, background)))
        ]  # of the original: padding hides the border
    images = _read_arrays(path, size)
    if invert:
        images = 255 - images
    return [
        Picture(f"{path}[{place}]", pixels, tuple(_check_background(pixels, invert, background)))
        for place, pixels in enumerate(images)
    ]


def _fit(grey: np.ndarray, size: tuple[int, int], background: int | None) -> tuple[np.ndarray, list[str]]:
    from PIL import Image, ImageOps

    if grey.shape == size:
        return grey, []
    height, width = size
    colour = BLACK if background is None else background
    padded = ImageOps.pad(Image.fromarray(grey), (width, height), Image.Resampling.LANCZOS, color=colour)
    notes = [f"resized from {grey.shape[0]} x {grey.shape[1]} to {height} x {width}"]
    if background is None and grey.shape[0] * width != grey.shape[1] * height:
        notes.append("padded with black: the background of the training images is unknown")
    return np.asarray(padded), notes


def _read_arrays(path: Path, size: tuple[int, int]) -> np.ndarray:
    if path.suffix == ".npz":
        with open_npz(path, "images") as (images,):
            fits = images.dtype == np.uint8 and not images.fortran
            _require(path, images.shape, size, str(images), fits=fits)
            return images.read(images.shape[0])
    if not path.name.removesuffix(".gz").endswith(IMAGES):
        raise DataError(f"{path} has an unknown format", expected=FORMATS)
    shape = idx.read_shape(path, 3)
    _require(path, shape, size, f"uint8 {list(shape)}")
    return np.concatenate(list(idx.stream(path, 3)))


def _require(path: Path, shape: tuple[int, ...], size: tuple[int, int], found: str, *, fits: bool = True) -> None:
    """Refuse arrays of another size by their header, before they are read."""
    if not fits or len(shape) != 3 or shape[1:] != size or not shape[0]:
        raise DataError(
            f"{path} does not fit the model's input",
            expected=f"uint8 [n, {size[0]}, {size[1]}] in C order",
            found=found,
            remedy="use pictures, which are resized",
        )
    if math.prod(shape) > MOST_BYTES:
        most = MOST_BYTES // math.prod(size)
        raise DataError(
            f"{path} has too many images", expected=f"at most {most:,}", found=f"{shape[0]:,}", remedy="split the file"
        )


def _check_background(pixels: np.ndarray, inverted: bool, background: int | None) -> list[str]:
    if background is None:
        return []
    own = float(border_pixels(pixels[None]).mean())
    if abs(own - background) < MIN_DIFFERENCE or abs(own - background) <= abs(255 - own - background):
        return []
    trial = f"try it with{'out' * inverted} --invert"
    return [f"its background has grey value {own:.0f}, that of the training images {background}: {trial}"]
