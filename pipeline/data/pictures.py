"""Images from anywhere, made fit for a model: what it takes is grey, of one size, on the ground of its training images.

Nothing here is for training, which never resizes (`pipeline.data.batches`).
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.data import idx
from pipeline.data.batches import IMAGES
from pipeline.data.decoders import IMAGE_SUFFIXES, open_npz, read_grey
from pipeline.data.ground import border_pixels
from pipeline.errors import DataError

BLACK = 0
FAR = 64  # grey values between two grounds that are not the same
MOST_BYTES = 2**26  # of the pixels of a file of many images
FORMATS = f"pictures ({', '.join(IMAGE_SUFFIXES)}), .npz files with `images`, or idx files (*{IMAGES}[.gz])"


@dataclass(frozen=True)
class Picture:
    """An image as the model is given it."""

    name: str  # its file, with the position in a file of many: `images.npz[3]`
    pixels: np.ndarray  # uint8 [height, width]
    notes: tuple[str, ...] = ()  # what was done to it, and what looks wrong


def read_pictures(path: Path, size: tuple[int, int], *, invert: bool, ground: int | None) -> list[Picture]:
    """The images of a file.

    Args:
        size: height and width that the model takes. A picture of another size is scaled into it, its proportions kept,
            with the ground around it. Arrays must have it.
        invert: turn dark into bright, for a picture whose ground is dark where the model's is bright, or the reverse.
        ground: grey value of that of the images that the model was trained on; None where it is not known.

    Raises:
        DataError: the file is in no known format, damaged, empty or too large, or its arrays have another size.
    """
    if not path.is_file():
        raise DataError(f"{path} is not a file", expected=FORMATS)
    if path.suffix.lower() in IMAGE_SUFFIXES:
        grey = read_grey(path)
        grey = 255 - grey if invert else grey
        pixels, notes = _fit(grey, size, ground)
        return [Picture(str(path), pixels, (*notes, *_doubts(grey, invert, ground)))]  # padding would hide the border
    images = _read_arrays(path, size)
    if invert:
        images = 255 - images
    return [
        Picture(f"{path}[{place}]", pixels, tuple(_doubts(pixels, invert, ground)))
        for place, pixels in enumerate(images)
    ]


def _fit(grey: np.ndarray, size: tuple[int, int], ground: int | None) -> tuple[np.ndarray, list[str]]:
    from PIL import Image, ImageOps

    if grey.shape == size:
        return grey, []
    height, width = size
    around = BLACK if ground is None else ground
    padded = ImageOps.pad(Image.fromarray(grey), (width, height), Image.Resampling.LANCZOS, color=around)
    notes = [f"resized from {grey.shape[0]} x {grey.shape[1]} to {height} x {width}"]
    if ground is None and grey.shape[0] * width != grey.shape[1] * height:
        notes.append("with black around it: the ground of the training images is not known")
    return np.asarray(padded), notes


def _read_arrays(path: Path, size: tuple[int, int]) -> np.ndarray:
    if path.suffix == ".npz":
        with open_npz(path, "images") as (images,):
            fits = images.dtype == np.uint8 and not images.fortran
            _require(path, images.shape, size, str(images), fits=fits)
            return images.read(images.shape[0])
    if not path.name.removesuffix(".gz").endswith(IMAGES):
        raise DataError(f"{path} is in no known format", expected=FORMATS)
    shape = idx.read_shape(path, 3)
    _require(path, shape, size, f"uint8 {list(shape)}")
    return np.concatenate(list(idx.stream(path, 3)))


def _require(path: Path, shape: tuple[int, ...], size: tuple[int, int], found: str, *, fits: bool = True) -> None:
    """Refuse arrays by their header, before any of them is read."""
    if not fits or len(shape) != 3 or shape[1:] != size or not shape[0]:
        raise DataError(
            f"{path} does not hold what the model takes",
            expected=f"uint8 [n, {size[0]}, {size[1]}] in C order",
            found=found,
            remedy="give it pictures, which are resized",
        )
    if math.prod(shape) > MOST_BYTES:
        most = MOST_BYTES // math.prod(size)
        raise DataError(
            f"{path} holds too many images", expected=f"at most {most:,}", found=f"{shape[0]:,}", remedy="divide it"
        )


def _doubts(pixels: np.ndarray, inverted: bool, ground: int | None) -> list[str]:
    if ground is None:
        return []
    own = float(border_pixels(pixels[None]).mean())
    if abs(own - ground) < FAR or abs(own - ground) <= abs(255 - own - ground):
        return []
    trial = f"try it with{'out' * inverted} --invert"
    return [f"its ground has grey value {own:.0f}, that of the training images {ground}: {trial}"]
